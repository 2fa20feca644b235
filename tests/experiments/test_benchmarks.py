"""Benchmarks at their smallest."""

import json

from experiments import bench_train


def test_the_training_benchmark_measures_every_variant_of_the_mlp(tmp_path, monkeypatch):
    cases, mlp = bench_train._cases, bench_train.models.mlp
    monkeypatch.setattr(bench_train.models, "resnet", mlp)  # the others are not measured: no need to make them
    monkeypatch.setattr(bench_train.models, "by_name", lambda name, num_classes: mlp())
    monkeypatch.setattr(bench_train, "_cases", lambda config: {"MLP": cases(config)["MLP"]})
    figures = bench_train.run(bench_train.Config(samples=256, epochs=1, repeats=1), tmp_path)
    speeds = figures["samples_per_second"]
    assert {f"updcomp MLP {what}" for what in ("plain", "recording", "masked", "masked, 4 bits")} <= set(speeds)
    assert min(speeds.values()) > 0
    assert json.loads((tmp_path / "bench_train.json").read_text()) == figures

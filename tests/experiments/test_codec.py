"""The codec's benchmark at its smallest."""

import json
import sys

import numpy as np
import pytest

from experiments import bench_codec, codec_cases, codec_images, codec_lossy, codec_nncodec, codec_report
from updcomp.wire.errors import Error


def pair(seed=0, rows=40, columns=50):
    rng = np.random.default_rng(seed)
    old = {"w": rng.normal(0, 0.05, (rows, columns)).astype(np.float32), "b": np.zeros(columns, np.float32)}
    return old, {name: (leaf + rng.normal(0, 0.01, leaf.shape)).astype(np.float32) for name, leaf in old.items()}


def test_every_part_of_the_benchmark_runs_and_is_reported(tmp_path, monkeypatch):
    old, new = pair()
    monkeypatch.setitem(codec_cases.CASES, "A", ("a little one", lambda folder, data_dir: [old, new]))
    monkeypatch.setattr(codec_cases, "_SHAPES", {"w": (60, 50)})
    near = codec_images.Judge(*[lambda model: 1 - codec_lossy.largest_error(model, new)] * 2)
    monkeypatch.setattr(codec_images, "judge", lambda name, data_dir: near)
    config = bench_codec.Config(cases="A", lossy="A", repeats=1, large_bytes=6_000)
    figures = bench_codec.run(config, tmp_path)
    rows = figures["cases"]["A"]["rows"]
    assert rows["updcomp"]["bytes"] < sum(leaf.nbytes for leaf in old.values())
    own = figures["cases"]["A"]["entropy"]["entropy of its own models, and all else"]
    assert 0.9 * rows["updcomp"]["bytes"] < own <= rows["updcomp"]["bytes"]
    found = figures["lossy"]["A"]
    assert found["at equal accuracy"]["updcomp, a step"]["largest error"] <= 0.001
    assert found["at equal error"]["updcomp, a step"]["bytes"] == found["at equal accuracy"]["updcomp, a step"]["bytes"]
    assert [row["MB"] for row in figures["growth"]] == [0.006]
    assert json.loads((tmp_path / "bench_codec.json").read_text()) == json.loads(json.dumps(figures))
    assert "How time and memory grow" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "sizes.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("flag", "value"), [("cases", "A,X"), ("lossy", "C")])
def test_a_case_that_is_not_there_is_refused(flag, value, tmp_path):
    with pytest.raises(Error, match=f"--{flag}: expected some of A"):
        bench_codec.run(bench_codec.Config(**{flag: value}), tmp_path)


def test_ways_are_nearer_with_smaller_steps_and_give_the_old_model_back_with_huge_ones():
    zstandard = pytest.importorskip("zstandard")
    old, new = pair()
    for way in codec_lossy.ways(zstandard).values():
        errors = [codec_lossy.relative_error(way(old, new, step).model, old, new) for step in (0.02, 0.005, 0.001)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.1


def test_a_worker_in_another_process_sees_kernels_with_fan_out_first(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys, numpy\n"
        "given = numpy.load(sys.argv[1])\n"
        "assert given['arr_1'].shape == (50, 40)\n"
        "numpy.savez(sys.argv[2], size=int(sys.argv[3]) + 100, **given)\n"
    )
    monkeypatch.setattr(codec_nncodec, "_WORKER", worker)
    old, new = pair()
    ordered = [dict(sorted(model.items())) for model in (old, new)]
    made = codec_nncodec.ways(sys.executable)["NNCodec"](*ordered, 2.0**-5)
    assert made.size == 80
    assert codec_lossy.largest_error(made.model, new) < 1e-6
    worker.write_text("raise SystemExit('not this one')")
    with pytest.raises(Error, match="--nncodec_python: .* failed: not this one"):
        codec_nncodec.ways(sys.executable)["NNCodec"](*ordered, 1.0)


def test_figures_are_shown_in_four_digits():
    assert [codec_report._shown(value) for value in (None, 2, 1999.4, 0.123456)] == ["-", "2", "1,999", "0.1235"]

"""The benchmark of scale at its smallest, and what it reads of compiled programs."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import updcomp
from experiments import bench_scale, scale_cells, scale_models
from experiments.collectives import exchanged
from experiments.scale_models import WAYS, Size
from updcomp.training import devices


def test_what_devices_exchange_is_read_from_the_compiled_program():
    mesh = devices.make_mesh(jax.devices()[:2], model=2)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("model",), ()))

    def gathers(x, turns):
        def turn(_, total):
            return total + jax.lax.with_sharding_constraint(jnp.sin(x * jnp.sum(total)), whole)

        once = jax.lax.fori_loop(0, 3, turn, jnp.zeros(x.shape))
        return jax.lax.fori_loop(0, turns, turn, once)

    compiled = jax.jit(gathers, in_shardings=(split, whole)).lower(jnp.ones((4, 8)), jnp.int32(5)).compile()
    found = exchanged(compiled.as_text())
    assert found.bytes["all-gather"] == (3 + 1) * 4 * 8 * 4
    assert found.gathered == 4 * 8
    assert found.unknown_loops == 1
    assert exchanged(jax.jit(jnp.sum).lower(jnp.ones(4)).compile().as_text()).total == 0


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setitem(scale_models.SIZES, "tiny", Size(32, 1))
    monkeypatch.setattr(bench_scale, "_in_a_process", scale_cells.measure)
    quarter = next(iter(WAYS))
    monkeypatch.setattr(scale_cells, "WAYS", {quarter: WAYS[quarter], "all blocks, Adam": None})
    train = scale_cells._train
    monkeypatch.setattr(scale_cells, "_train", lambda scene, mask, way: way and train(scene, mask, way))
    return bench_scale.Config(sizes=("tiny",), meshes=("data2",))


def test_everything_is_measured_once_and_reported(little, tmp_path, monkeypatch):
    figures = bench_scale.run(little, tmp_path)
    cell = figures["cells"]["tiny data2"]
    step = cell["train"][next(iter(WAYS))]
    assert cell["devices"] == 2
    assert cell["encode"]["sent"] <= 0.01 * cell["kernels"]
    assert step["gathered_leaves"] <= 1
    assert max(step["split"], cell["select"]["split"]) < 1.1
    assert min(sum(part["exchanged"].values()) for part in (step, cell["select"])) > 0
    assert json.loads((tmp_path / "bench_scale.json").read_text()) == json.loads(json.dumps(figures))
    assert "Projected for W = 70 B" in (tmp_path / "report.md").read_text()
    monkeypatch.setattr(bench_scale, "_in_a_process", None)
    assert bench_scale.run(little, tmp_path)["cells"] == json.loads(json.dumps(figures["cells"]))
    monkeypatch.setattr(bench_scale, "RATIO", 0.5)
    with pytest.raises(updcomp.Error, match="use another --workdir"):
        bench_scale.run(little, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("sizes", "2M"), ("meshes", "data"), ("meshes", "0")])
def test_settings_are_checked(name, value):
    with pytest.raises(updcomp.Error, match=f"--{name}"):
        bench_scale.Config(**{name: (value,)})

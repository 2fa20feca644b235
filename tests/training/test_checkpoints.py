import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from updcomp.training.checkpoints import Checkpoints, load_model, save_model
from updcomp.training.devices import batch_sharding, make_mesh, replicate
from updcomp.wire.errors import FileError


def state(value):
    """A training state with every kind of leaf and container that a loop may carry."""
    params = {"kernel": jnp.full((4, 3), value), "bias": jnp.full(3, value, jnp.bfloat16)}
    mesh = make_mesh()
    return {
        "params": params,
        "optimizer": optax.chain(optax.clip(1.0), optax.adam(0.1)).init(params),
        "key": jax.random.key(int(value)),
        "keys": jax.random.split(jax.random.key(int(value), impl="rbg"), 2),
        "step": jnp.int32(value),
        "loss": np.float32(value),
        "empty": (jnp.zeros((0, 3)), {}, None),
        "replicated": replicate(jnp.full(4, value), mesh),
        "split": jax.device_put(jnp.full(4, value), batch_sharding(mesh)),
    }


def bits(tree):
    """The leaves as arrays, keys as their bits."""

    def plain(leaf):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(plain, tree)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), bits(one), bits(other))


def test_every_kind_of_leaf_comes_back_where_it_was(tmp_path):
    saved = state(3.0)
    Checkpoints(tmp_path / "new" / "folder").save(7, saved)
    step, restored = Checkpoints(tmp_path / "new" / "folder").restore_latest(state(0.0))
    assert step == 7
    assert_same(restored, saved)
    for name in ("replicated", "split"):
        assert restored[name].sharding == saved[name].sharding
    draw = jax.random.bits(restored["keys"][1])
    assert draw == jax.random.bits(saved["keys"][1])


def test_a_restored_state_can_be_donated(tmp_path):
    Checkpoints(tmp_path).save(1, {"a": jnp.ones(2), "b": jnp.ones(2)})
    _, restored = Checkpoints(tmp_path).restore_latest({"a": jnp.zeros(2), "b": jnp.zeros(2)})
    out = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(restored)
    assert out["b"].tolist() == [2.0, 2.0]


def test_the_latest_state_wins_and_only_as_many_stay_as_asked_for(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (2, 10, 9 + 4):
        checkpoints.save(step, {"x": jnp.int32(step)})
    assert sorted(os.listdir(tmp_path)) == ["10", "13"]
    assert checkpoints.restore_latest({"x": jnp.int32(0)}) == (13, {"x": 13})


def test_without_a_state_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nothing").restore_latest({"x": jnp.int32(0)}) is None
    assert Checkpoints(tmp_path).restore_latest({"x": jnp.int32(0)}) is None
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("step", [4, 5])
def test_steps_must_grow(tmp_path, step):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, {"x": jnp.int32(5)})
    with pytest.raises(FileError, match=f"expected a step above the saved 5, found {step}"):
        checkpoints.save(step, {"x": jnp.int32(0)})
    assert checkpoints.restore_latest({"x": jnp.int32(0)}) == (5, {"x": 5})


@pytest.mark.parametrize(("like", "message"), [
    ({"a": jnp.zeros(2), "b": jnp.zeros(3)}, r"leaf 'b': expected float32 \(3,\), found no such leaf"),
    ({"c": jnp.zeros(2)}, r"leaf 'a': expected no such leaf, found float32 \(2,\)"),
    ({"a": jnp.zeros(3)}, r"leaf 'a': expected float32 \(3,\), found float32 \(2,\)"),
    ({"a": jnp.zeros(2, jnp.int32)}, r"leaf 'a': expected int32 \(2,\), found float32 \(2,\)"),
])  # fmt: skip
def test_another_state_is_an_error_that_names_the_leaf(tmp_path, like, message):
    Checkpoints(tmp_path).save(1, {"a": jnp.zeros(2)})
    with pytest.raises(FileError, match=message):
        Checkpoints(tmp_path).restore_latest(like)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file"):
        Checkpoints(tmp_path / "file").save(1, {"a": jnp.zeros(2)})


def test_a_process_killed_at_any_moment_leaves_a_whole_state(tmp_path):
    program = """
        import jax.numpy as jnp
        from updcomp.training.checkpoints import Checkpoints

        for step in range(1, 10000):
            Checkpoints("states").save(step, {"a": jnp.full((300, 300), step), "b": jnp.full(5, step)})
            print(step, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.013)  # into the next save
        process.send_signal(signal.SIGKILL)
        printed = [3, *map(int, process.stdout.read().split())][-1]
    like = {"a": jnp.zeros((300, 300), int), "b": jnp.zeros(5, int)}
    step, tree = Checkpoints(tmp_path / "states").restore_latest(like)
    assert step in (printed, printed + 1)
    assert (tree["a"] == step).all()
    assert (tree["b"] == step).all()
    Checkpoints(tmp_path / "states").save(step + 1, tree)


def model():
    return {
        "params": {
            "Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3).astype(jnp.bfloat16), "bias": np.float16([1, 2, 3])},
            "head": {"scale": np.array([1, 2], ml_dtypes.float8_e4m3fn)},
        },
        "batch_stats": {"count": np.int64([2**40]), "mean": np.asarray(np.float32(0.5))},
    }


def assert_loaded(tree):
    assert_same(tree, jax.tree.map(np.asarray, model()))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(tree))


def test_a_model_comes_back_as_numpy_arrays_of_the_same_bits(tmp_path):
    save_model(tmp_path / "model", model())
    assert_loaded(load_model(tmp_path / "model"))


def test_models_of_other_programs_are_read_with_and_without_an_item(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", model())
    with ocp.CheckpointManager(tmp_path / "steps") as manager:
        manager.save(3, args=ocp.args.StandardSave(model()))
        manager.wait_until_finished()
    assert_loaded(load_model(tmp_path / "plain"))
    assert_loaded(load_model(tmp_path / "steps" / "3"))


def test_a_model_is_never_written_over_something(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match="expected a new folder, found an existing path"):
        save_model(tmp_path / "model", model())
    assert os.listdir(tmp_path / "model") == ["thesis.txt"]


def test_a_leaf_without_elements_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(FileError, match=r"leaf 'a/b': expected at least one element, found shape \(0, 2\)"):
        save_model(tmp_path / "model", {"a": {"b": np.zeros((0, 2))}})
    assert not os.listdir(tmp_path)


def test_what_is_not_an_orbax_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name, found in (("none", "found nothing"), ("file", "found a file"), ("folder", "found 0")):
        with pytest.raises(FileError, match=rf"{name}: expected an Orbax folder.*{found}"):
            load_model(tmp_path / name)


@pytest.mark.parametrize("damage", [b"", b"{"])
def test_a_damaged_folder_is_an_error(tmp_path, damage):
    save_model(tmp_path / "model", model())
    (tmp_path / "model" / "_METADATA").write_bytes(damage)
    with pytest.raises(FileError, match="expected to read or write an Orbax checkpoint"):
        load_model(tmp_path / "model")

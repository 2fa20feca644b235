"""Rounds through a real device process: what is sent, what is not, and what a device can make of the files alone."""

import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from updcomp import protocol, trees
from updcomp.edge import files, store
from updcomp.methods import METHODS
from updcomp.training import data, models
from updcomp.training.loop import Task
from updcomp.wire import container, packet

DEPLOYED = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}
NEW = {"w": jnp.ones((4, 3)) * 1.5, "b": jnp.zeros(3)}
NETWORK = models.mlp(hidden=(16,))


def apply_here(base, update, new):
    """A device in this process, for the tests that need many rounds."""
    old = files.read_model(base)
    files.write_model(new, container.apply_update(files.read_bytes(update), old.model))


def test_what_comes_back_is_what_the_device_wrote(tmp_path):
    held = protocol.save(DEPLOYED, tmp_path / "model.npz")
    done = protocol.deliver(updcomp.diff(DEPLOYED, NEW), held, tmp_path / "update", tmp_path / "new.npz")
    np.testing.assert_array_equal(done.variables["w"], NEW["w"])
    np.testing.assert_array_equal(files.read_model(tmp_path / "new.npz").model["w"], NEW["w"])
    assert done.update_bytes == (tmp_path / "update").stat().st_size
    assert done.apply_seconds > 0


def test_a_device_that_holds_another_model_refuses(tmp_path):
    other = protocol.save({**DEPLOYED, "b": jnp.full(3, 1e-3)}, tmp_path / "model.safetensors")
    believed = protocol.Copy(DEPLOYED, other.file)
    with pytest.raises(updcomp.Error, match=r"device: updcomp: error: .*base"):
        protocol.deliver(updcomp.diff(DEPLOYED, NEW), believed, tmp_path / "update", tmp_path / "new.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "update"]


def test_any_device_can_take_the_place_of_the_process(tmp_path):
    """A device is a function of three files, so one over a network fits as well."""
    held = protocol.save(DEPLOYED, tmp_path / "model.npz")
    seen = []

    def device(base, update, new):
        seen.append((base.name, update.name))
        files.write_model(new, files.read_model(base).model)

    update = updcomp.diff(DEPLOYED, NEW)
    done = protocol.deliver(update, held, tmp_path / "update", tmp_path / "new.npz", device=device)
    assert seen == [("model.npz", "update")]
    np.testing.assert_array_equal(done.variables["w"], DEPLOYED["w"])


def task_on_digits(**options):
    train, validation = data.split(data.load("digits").train, (400, 200), seed=0)
    settings = {"optimizer": optax.adam, "learning_rate": 1e-2, "epochs": 2, "batch_size": 50, **options}
    return Task(NETWORK.apply, jax.device_put(train), jax.device_put(validation), **settings)


def first_model():
    return NETWORK.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def run_all(folder, method, task, stages, **options):
    folder.mkdir(exist_ok=True)
    first = protocol.save(first_model(), folder / "first.safetensors")
    rounds = protocol.run_rounds(
        jax.random.key(1), method, first, task, stages, folder=folder / "updates", device=apply_here, **options
    )
    return list(rounds)


def same(one, other):
    return all(
        jax.tree.leaves(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), one, other))
    )


STAGES = protocol.growing(np.arange(400), initial=50, step=50, rounds=7, restart="doubled")


@pytest.fixture(scope="module")
def partial_rounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    return folder, run_all(folder, METHODS["partial"](ratio=0.05), task_on_digits(), STAGES)


def test_rounds_are_one_update_file_each_and_learn(partial_rounds):
    _, rounds = partial_rounds
    task = task_on_digits()
    assert [result.update.name for result in rounds] == [f"round-{number:03}.upd" for number in range(7)]
    assert all(result.update_bytes == result.update.stat().st_size for result in rounds)
    assert protocol.beats(rounds[-1].variables, rounds[0].variables, task)
    for before, after in itertools.pairwise(rounds):
        assert after.sent == protocol.beats(after.trained, before.variables, task)
        assert same(after.variables, after.trained if after.sent else before.variables)


def test_updates_after_a_restart_start_from_the_first_model(partial_rounds):
    _, rounds = partial_rounds
    first = updcomp.inspect(updcomp.encode(packet.Packet({}), first_model()))["base"]
    for stage, result in zip(STAGES, rounds, strict=True):
        starts_from = updcomp.inspect(result.update.read_bytes())["base"]
        if result.sent and result is not rounds[0]:
            assert (starts_from == first) == stage.restart
    assert any(stage.restart and result.sent for stage, result in zip(STAGES[1:], rounds[1:], strict=True))


def test_the_files_alone_reproduce_every_round(partial_rounds, tmp_path):
    folder, rounds = partial_rounds
    device = store.Store(tmp_path / "versions")
    device.initialise(folder / "first.safetensors")
    updates = [path.read_bytes() for path in sorted((folder / "updates").iterdir())]
    replayed = container.replay(updates, trees.to_model(first_model()))
    for update, result, model in zip(updates, rounds, replayed, strict=True):
        device.install(update)
        assert same(device.current(), trees.to_model(result.variables))
        assert same(model, trees.to_model(result.variables))


@pytest.mark.parametrize("done", [1, 4, 7])
def test_rounds_continue_after_those_whose_files_are_there(partial_rounds, tmp_path, done):
    folder, rounds = partial_rounds
    shutil.copytree(folder, tmp_path / "again")
    again = run_all(tmp_path / "again", METHODS["partial"](ratio=0.05), task_on_digits(), STAGES, done=done)
    assert len(again) == 7 - done
    for found, expected in zip(again, rounds[done:], strict=True):
        assert found.update.read_bytes() == expected.update.read_bytes()
        assert same(found.variables, expected.variables)


def test_files_that_are_no_chain_are_refused(partial_rounds, tmp_path):
    folder, rounds = partial_rounds
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "updates" / "round-001.upd").write_bytes(rounds[3].update.read_bytes())
    with pytest.raises(updcomp.Error, match="base model"):
        run_all(tmp_path / "broken", METHODS["partial"](ratio=0.05), task_on_digits(), STAGES, done=3)


def test_nothing_is_sent_where_nothing_helps(tmp_path):
    """A learning rate of zero finds nothing better than what the device holds; 64 bytes say so."""
    task = task_on_digits(learning_rate=0.0)
    for result in run_all(tmp_path, METHODS["partial"](ratio=0.1), task, STAGES[:2]):
        assert not result.sent
        assert result.plain_bytes == 0
        assert result.update_bytes <= 64
        assert same(result.variables, first_model())


def test_training_that_makes_it_worse_is_not_sent_after_a_restart(tmp_path):
    """The new model beats the first one, which it starts from, but not what the device holds by then."""
    good = METHODS["full"](bits=8)
    bad = METHODS["random_mask"](ratio=0.01, aux=None)
    made = iter([good, bad])
    task = task_on_digits(epochs=8)
    stages = [protocol.Stage(np.arange(400), True), protocol.Stage(np.arange(400), True)]
    rounds = run_all(tmp_path, lambda key, deployed, task: next(made)(key, deployed, task), task, stages)
    assert [result.sent for result in rounds] == [True, False]
    assert protocol.beats(rounds[1].trained, first_model(), task)
    assert same(rounds[1].variables, rounds[0].variables)


def test_growing_sets_are_cumulative_and_restart_when_they_have_more_than_doubled():
    order = np.random.default_rng(0).permutation(100)
    stages = protocol.growing(order, initial=10, step=5, rounds=19, restart="doubled")
    last = 0
    for number, stage in enumerate(stages):
        np.testing.assert_array_equal(stage.samples, order[: 10 + 5 * number])
        assert stage.restart == (len(stage.samples) > 2 * last)
        last = len(stage.samples) if stage.restart else last
    for restart, expected in (("never", False), ("always", True)):
        assert all(
            stage.restart is expected for stage in protocol.growing(order, initial=1, step=1, rounds=3, restart=restart)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 10, "step": 10, "rounds": 11}, r"rounds: expected at most 10: .* found 11, which need 110"),
        ({"initial": 101, "step": 10, "rounds": 1}, "rounds: expected at most 0"),
        ({"initial": 0, "step": 10, "rounds": 1}, "expected at least 1, found 0, 10 and 1"),
        ({"initial": 10, "step": 10, "rounds": 1, "restart": "often"}, "restart: expected never"),
    ],
)
def test_impossible_rounds_are_refused(options, message):
    with pytest.raises(updcomp.Error, match=message):
        protocol.growing(np.arange(100), **options)

"""Rounds through a real device process: what is sent, what is not, and what a device can make of the files alone."""

import itertools
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from tests.methods.worlds import KEY, regression
from updcomp import protocol, trees
from updcomp.edge import files, store
from updcomp.methods import METHODS
from updcomp.training import Epoch, Objective, Task, classification, data, models
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
    return Task(classification(NETWORK.apply), jax.device_put(train), jax.device_put(validation), **settings)


def first_model():
    return NETWORK.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def accuracy(variables):
    """On the validation images, in NumPy."""
    validation = task_on_digits().validation
    first, last = (jax.tree.map(np.asarray, variables["params"][f"Dense_{i}"]) for i in range(2))
    images = np.asarray(validation.images).reshape(200, 64) / np.float32(255)
    logits = np.maximum(images @ first["kernel"] + first["bias"], 0) @ last["kernel"] + last["bias"]
    return np.mean(logits.argmax(1) == np.asarray(validation.labels))


def run_all(folder, method, task, stages, **options):
    folder.mkdir(exist_ok=True)
    first = protocol.save(first_model(), folder / "first.safetensors")
    rounds = protocol.run_rounds(
        jax.random.key(1), method, first, task, stages, folder=folder / "updates", device=apply_here, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", protocol.NothingSentWarning)
        return list(rounds)


def same(one, other):
    return all(
        jax.tree.leaves(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), one, other))
    )


STAGES = [protocol.Stage(np.arange(50 + 50 * number), number in (0, 2, 6)) for number in range(7)]
METHOD = METHODS["partial"](ratio=0.05)


@pytest.fixture(scope="module")
def partial_rounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    return folder, run_all(folder, METHOD, task_on_digits(), STAGES)


def test_rounds_are_one_update_file_each_and_learn(partial_rounds):
    _, rounds = partial_rounds
    assert [result.update.name for result in rounds] == [f"round-{number:03}.upd" for number in range(7)]
    assert all(result.update_bytes == result.update.stat().st_size for result in rounds)
    assert accuracy(rounds[-1].variables) > accuracy(rounds[0].variables) > accuracy(first_model())


def test_a_device_holds_what_it_was_sent_and_never_gets_worse(partial_rounds):
    _, rounds = partial_rounds
    models_held = [first_model(), *(result.variables for result in rounds)]
    for result, (before, after) in zip(rounds, itertools.pairwise(models_held), strict=True):
        assert result.score == pytest.approx(accuracy(result.trained), abs=1e-6)
        assert result.held_score == pytest.approx(accuracy(before), abs=1e-6)
        if result.sent:
            assert accuracy(after) > accuracy(before)
            assert same(after, result.trained)
        else:
            assert accuracy(result.trained) <= accuracy(before)
            assert same(after, before)


def test_compilation_is_told_apart_from_training(partial_rounds):
    """Later rounds have other samples and start from other weights, and compile nothing."""
    _, rounds = partial_rounds
    assert rounds[0].compile_seconds > 0.1
    assert all(result.compile_seconds == 0 for result in rounds[3:])
    assert all(result.train_seconds > 0 for result in rounds)


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
    replayed = protocol.replay(updates, first_model())
    for update, result, model in zip(updates, rounds, replayed, strict=True):
        device.install(update)
        assert same(device.current(), trees.to_model(result.variables))
        assert same(trees.to_model(model), trees.to_model(result.variables))


@pytest.mark.parametrize("done", [4, 7])
def test_rounds_continue_after_those_whose_files_are_there(partial_rounds, tmp_path, done):
    folder, rounds = partial_rounds
    shutil.copytree(folder, tmp_path / "again")
    again = run_all(tmp_path / "again", METHOD, task_on_digits(), STAGES, done=done)
    assert len(again) == 7 - done
    for found, expected in zip(again, rounds[done:], strict=True):
        assert found.update.read_bytes() == expected.update.read_bytes()
        assert same(found.variables, expected.variables)


@pytest.mark.parametrize("done", [0, 3])
def test_a_plan_decides_by_what_was_sent_also_before_a_start(tmp_path, done):
    """Rounds that fail to learn send nothing, and the plan is told so, by their files where the rounds are done."""
    seen = []

    def plan(sent):
        seen.append(list(sent))
        return None if len(sent) == 5 else protocol.Stage(np.arange(50), restart=sent[-1:] == (False,))

    if done:
        run_all(tmp_path / "rounds", METHOD, task_on_digits(), STAGES[:2])
        run_all(tmp_path / "rounds", METHOD, task_on_digits(learning_rate=0.0), STAGES[:3], done=2)
    rounds = run_all(tmp_path / "rounds", METHOD, task_on_digits(), plan, done=done)
    sent = [True, True, False][:done] + [result.sent for result in rounds]
    assert len(rounds) == 5 - done
    assert seen == [sent[:number] for number in range(done, 6)]


def test_files_that_are_no_chain_are_refused(partial_rounds, tmp_path):
    folder, rounds = partial_rounds
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "updates" / "round-001.upd").write_bytes(rounds[3].update.read_bytes())
    with pytest.raises(updcomp.Error, match="base model"):
        run_all(tmp_path / "broken", METHOD, task_on_digits(), STAGES, done=3)


def test_nothing_is_sent_where_nothing_helps_and_a_warning_says_both_scores(tmp_path):
    """A learning rate of zero finds nothing better than what the device holds; 64 bytes say so."""
    held = protocol.save(first_model(), tmp_path / "model.npz")
    task = task_on_digits(learning_rate=0.0)
    found = f"{accuracy(held.variables):.6g}"
    expected = f"nothing is sent: its score on the validation data is {found}, that of the model held is {found}"
    with pytest.warns(protocol.NothingSentWarning, match=expected) as caught:
        result = protocol.run_round(
            *(jax.random.key(1), METHOD, held, task),
            update=tmp_path / "update",
            new=tmp_path / "new.npz",
            device=apply_here,
        )
    assert caught[0].filename == __file__
    assert not result.sent
    assert result.plain_bytes == 0
    assert result.update_bytes <= 64
    assert result.score == result.held_score
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
    assert accuracy(first_model()) < accuracy(rounds[1].trained) < accuracy(rounds[0].variables)
    assert same(rounds[1].variables, rounds[0].variables)


def test_what_is_sent_is_decided_by_the_task_s_own_score(tmp_path):
    """The loss falls and the accuracy rises, but this score wants small weights, so nothing better can be trained."""
    held = protocol.save(first_model(), tmp_path / "model.npz")
    objective = Objective(
        task_on_digits().objective.loss,
        score=lambda variables, batch: -jnp.mean(jnp.abs(variables["params"]["Dense_0"]["kernel"])),
    )
    epochs: list[Epoch] = []
    task = task_on_digits(callback=epochs.append)._replace(objective=objective)
    with pytest.warns(protocol.NothingSentWarning):
        result = protocol.run_round(
            *(jax.random.key(1), METHODS["full"](bits=8), held, task),
            update=tmp_path / "update",
            new=tmp_path / "new.npz",
            device=apply_here,
        )
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].score < result.held_score
    assert not result.sent


def test_a_held_model_whose_score_is_not_a_number_is_replaced(tmp_path):
    deployed, task = regression()
    broken = jax.tree.map(lambda leaf: leaf * np.nan, deployed)
    held, base = protocol.save(broken, tmp_path / "held.npz"), protocol.save(deployed, tmp_path / "base.npz")
    files_of = {"update": tmp_path / "update", "new": tmp_path / "new.npz"}
    done = protocol.run_round(KEY, METHODS["full"](), held, task, base=base, device=apply_here, **files_of)
    assert done.sent
    assert np.isnan(done.held_score)
    assert np.isfinite(done.score)

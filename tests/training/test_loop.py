"""The training loop: exactness of masks, the choice of the epoch, meshes, and continuing after a kill."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from tests.methods.worlds import MODELS, assert_same, digits, regression
from updcomp import contribution, partition, trees
from updcomp.methods import base, partial
from updcomp.partition import KERNEL
from updcomp.training import Extra, Objective, batches, checkpoints, classification, data, devices
from updcomp.training.augment import crop_and_flip
from updcomp.training.checkpoints import Checkpoints
from updcomp.training.classification import cross_entropy
from updcomp.training.compilation import measured
from updcomp.training.loop import fit
from updcomp.training.optimizers import constant, cosine, every_third, masked
from updcomp.training.plans import Frozen, as_trained
from updcomp.wire.errors import NonFiniteError

KEY = jax.random.key(0)
NESTEROV = functools.partial(optax.sgd, momentum=0.9, nesterov=True)


def decayed(learning_rate):
    return optax.chain(optax.add_decayed_weights(1e-2), NESTEROV(learning_rate))


def world():
    variables, task = digits()
    return variables, task._replace(epochs=3)


def plan_for(variables, name="dense", moved=(), **options):
    parts = partition.of(variables, moved=moved)
    return base.plan_of(name, parts, {leaf.name: as_trained for leaf in parts.of_role(KERNEL)}, **options)


def train(task, variables, *, key=KEY, plan=None, start=None, **options):
    """In full: every leaf as it is."""
    start = trees.named_leaves(variables) if start is None else start
    return fit(key, task, plan or plan_for(variables), start, Frozen(variables, {}), **options)


def assert_close(one, other, **tolerance):
    for name, leaf in one.items():
        np.testing.assert_allclose(leaf, other[name], **tolerance)


@pytest.mark.parametrize("optimizer", [optax.adam, decayed], ids=["adam", "nesterov with decay"])
def test_unsent_weights_keep_their_bits(optimizer):
    variables, task = world()
    start = trees.named_leaves(variables)
    masks = {name: jax.random.bernoulli(jax.random.key(1), 0.6, leaf.shape) for name, leaf in start.items()}
    plan = plan_for(variables, wrap=masked)
    trained = train(task._replace(optimizer=optimizer), variables, plan=plan, masks=masks).last
    for name, old in start.items():
        new, sent = np.asarray(trained[name]), np.asarray(masks[name])
        np.testing.assert_array_equal(new[~sent], np.asarray(old)[~sent])
        assert np.any(new != np.asarray(old))


def test_the_loop_takes_the_steps_of_a_plain_optax_loop():
    """One epoch, against the same steps written out with a learning rate inside the optimizer."""
    variables, task = world()
    epochs = []
    task = task._replace(epochs=1, optimizer=decayed, schedule=cosine, callback=epochs.append)
    key = jax.random.key(3)
    fitted = train(task, variables, key=key)
    optimizer = decayed(lambda step: 1e-2 * cosine(step / 4))
    params, state = variables["params"], optimizer.init(variables["params"])

    def loss(params, rows):
        layers = [params["Dense_0"], params["Dense_1"]]
        x = data.to_float(task.train.images[rows]).reshape(len(rows), -1)
        x = jax.nn.relu(x @ layers[0]["kernel"] + layers[0]["bias"][None])
        return cross_entropy(x @ layers[1]["kernel"] + layers[1]["bias"][None], task.train.labels[rows])

    step, losses = jax.jit(jax.value_and_grad(loss)), []
    for rows in batches.shuffled(key, 0, np.arange(200), 50):
        value, gradients = step(params, rows)
        losses.append(float(value))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(fitted.last, trees.named_leaves({"params": params}), rtol=1e-4, atol=1e-6)
    assert epochs[0].loss == pytest.approx(np.mean(losses), rel=1e-5)


def accuracy(trainable, task):
    first, last = (
        {part: np.asarray(trainable[f"params/Dense_{i}/{part}"]) for part in ("kernel", "bias")} for i in (0, 1)
    )
    images = np.asarray(task.validation.images).reshape(len(task.validation.labels), -1) / np.float32(255)
    logits = np.maximum(images @ first["kernel"] + first["bias"], 0) @ last["kernel"] + last["bias"]
    return np.mean(logits.argmax(1) == np.asarray(task.validation.labels))


def test_the_best_epoch_is_chosen_on_the_validation_data():
    variables, task = world()
    fitted = train(task, variables)
    assert fitted.score == pytest.approx(accuracy(fitted.trainable, task))
    assert fitted.score >= accuracy(fitted.last, task)
    assert fitted.start_score == pytest.approx(accuracy(trees.named_leaves(variables), task))
    assert fitted.start_score < fitted.score


def test_a_training_that_does_not_help_keeps_the_start():
    variables, task = world()
    fitted = train(task._replace(learning_rate=0.0), variables)
    assert fitted.score == fitted.start_score
    assert_same(fitted.trainable, trees.named_leaves(variables))


def back_in_the_end(progress):
    return jnp.where(progress < 0.6, 1.0, -0.3)


def test_the_last_epoch_is_kept_where_the_task_says_so():
    variables, task = world()
    task = task._replace(schedule=back_in_the_end)
    best, last = train(task, variables), train(task._replace(keep="last"), variables)
    assert best.score > last.score > last.start_score
    assert last.score == pytest.approx(accuracy(last.last, task))
    assert_same(last.trainable, last.last)


def test_a_last_epoch_that_is_worse_than_the_start_gives_way_to_the_best():
    variables, task = world()
    good = train(task, variables)
    ruined = train(task._replace(learning_rate=100.0, keep="last"), variables, start=good.trainable)
    assert accuracy(ruined.last, task) < ruined.start_score
    assert ruined.score == ruined.start_score
    assert_same(ruined.trainable, good.trainable)


def first_epoch_alone(progress):
    return jnp.where(progress < 0.3, 1.0, -3.0)


def test_an_epoch_that_harms_is_not_chosen():
    """The sign of every update after the first epoch is wrong, so the first epoch stays the best."""
    variables, task = world()
    harmful = task._replace(schedule=first_epoch_alone, learning_rate=3e-3)
    fitted = train(harmful, variables)
    once = train(harmful._replace(epochs=1, schedule=constant), variables)
    assert fitted.score == once.score > fitted.start_score
    assert_same(fitted.trainable, once.last)
    assert all(np.any(fitted.trainable[name] != leaf) for name, leaf in fitted.last.items())


def test_two_devices_train_to_the_same_result():
    variables, task = world()
    alone = train(task, variables)
    mesh = devices.make_mesh()
    assert mesh.size == 2
    shared = train(task._replace(mesh=mesh, train=devices.replicate(task.train, mesh)), variables)
    assert_close(shared.last, alone.last, atol=1e-4)
    assert len(jax.tree.leaves(shared.last)[0].sharding.device_set) == 2


def test_the_optimizer_continues_from_the_state_it_is_given():
    """Where gradients are zero, momentum m coasts: n steps move the weights by -rate (mu + ... + mu^n) m_0."""
    variables, task = world()
    start = trees.named_leaves(variables)
    momentum = functools.partial(optax.sgd, momentum=0.5)
    objective = Objective(lambda v, batch, key: 0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(v)))
    task = task._replace(optimizer=momentum, epochs=1, objective=objective)
    fresh = train(task, variables)
    assert_same(fresh.last, start)
    state = jax.tree.map(jnp.ones_like, fresh.optimizer)
    fitted = train(task, variables, optimizer_state=state)
    for name, old in start.items():
        np.testing.assert_allclose(
            fitted.last[name] - old, np.full(old.shape, -1e-2 * (1 - 0.5**4)), rtol=1e-4, atol=1e-7
        )
    for moved, given in zip(*map(jax.tree.leaves, (fitted.optimizer, state)), strict=True):
        assert np.all(moved == 0.5**4)
        assert np.all(given == 1)  # the caller's state is not donated


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("mesh", [None, devices.make_mesh()], ids=["one device", "mesh"])
def test_rounds_settings_and_continued_trainings_compile_once(streamed, mesh):
    variables, task = world()
    placed = jax.tree.map(np.asarray, task.train) if streamed else devices.replicate(task.train, mesh)
    task = task._replace(train=placed, mesh=mesh)
    first = train(task, variables)
    second = train(task, variables, start=first.last, optimizer_state=first.optimizer)  # copies from where these are
    changed = task._replace(samples=np.arange(60), learning_rate=1e-3, epochs=2)
    with measured() as compilation:
        train(changed, variables, key=jax.random.key(1), start=second.last, optimizer_state=second.optimizer)
    assert compilation.count == 0


def counted(variables, batch, key):
    """A regression on augmented inputs that moves a mean and counts its steps."""
    x = batch["features"]["x"] + 0.1 * jax.random.normal(key, batch["features"]["x"].shape)
    mean = 0.9 * variables["mean"] + 0.1 * x.mean(0)
    error = (x - variables["mean"][None]) @ variables["kernel"] - batch["target"]
    return jnp.mean(error**2), Extra({"mean": mean, "steps": variables["steps"] + 1}, {"draw": jax.random.uniform(key)})


class Killed(Exception):
    pass


def die_at(monkeypatch, name, step):
    """Training is killed when it has saved this step of the training of this name; only once."""
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    save = Checkpoints.save
    died = []

    def save_and_die(self, number, tree):
        save(self, number, tree)
        if number == step and self._folder.name.startswith(f"{name}-") and not died:
            died.append(number)
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)


def test_a_killed_training_continues_to_the_same_weights_and_statistics(tmp_path, monkeypatch):
    _, task = regression()
    variables = {"kernel": jnp.zeros((6, 2)), "mean": jnp.ones(6), "steps": jnp.int32(0)}
    names = ("mean", "steps")
    plan = plan_for(variables, moved=names, name="recorded", wrap=contribution.record)
    options = {
        "plan": plan,
        "start": {"kernel": variables["kernel"]},
        "moved": {name: variables[name] for name in names},
    }
    task = task._replace(objective=Objective(counted), learning_rate=3e-2)
    epochs = []
    whole = train(task._replace(callback=epochs.append), variables, **options)
    assert whole.last_moved["steps"] == 24
    die_at(monkeypatch, "recorded", 2)
    again = []
    resumable = task._replace(checkpoints=tmp_path, callback=again.append)
    with pytest.raises(Killed):
        train(resumable, variables, **options)
    continued = train(resumable, variables, **options)
    assert_same(continued, whole)
    assert [epoch.number for epoch in again] == [1, 2, 3, 4]
    assert [(epoch.loss, epoch.score, epoch.metrics) for epoch in again] == [
        (epoch.loss, epoch.score, epoch.metrics) for epoch in epochs
    ]


@pytest.mark.parametrize("name", ["partial-full", "partial-narrow", "partial-sparse"])
def test_a_method_killed_in_any_of_its_trainings_gives_the_same_update(name, tmp_path, monkeypatch):
    deployed, task = regression()
    method = partial(ratio=0.3, fixed_share=0.5, keep_moments=True)
    expected = updcomp.encode(method(KEY, deployed, task), deployed)
    die_at(monkeypatch, name, 3)
    resumable = task._replace(checkpoints=tmp_path)
    with pytest.raises(Killed):
        method(KEY, deployed, resumable)
    assert updcomp.encode(method(KEY, deployed, resumable), deployed) == expected


def test_a_training_with_augmentation_depends_on_its_key():
    variables, task = digits()
    task = task._replace(objective=classification(MODELS["mlp"].apply, augment=crop_and_flip), epochs=1)
    one, same, other = (train(task, variables, key=jax.random.key(seed)).last for seed in (0, 0, 1))
    assert_same(one, same)
    assert all(np.any(one[leaf] != other[leaf]) for leaf in one)


def late(progress):
    return jnp.where(progress < 0.7, 0.0, 10.0)


def test_weights_that_leave_the_finite_in_the_last_step_are_noticed():
    variables, task = world()
    wild = task._replace(epochs=1, learning_rate=3e38, schedule=late)
    with pytest.raises(NonFiniteError, match="dense.*step 3"):
        train(wild, variables)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(constant, [1, 1, 1, 1]), (every_third(0.1), [1, 0.1, 0.01, 0.01]), (cosine, [1, 0.75, 0.25, 0])],
)
def test_schedules(schedule, expected):
    progress = jnp.array([0.0, 1 / 3 + 1e-3, 2 / 3 + 1e-3, 1.0])
    np.testing.assert_allclose(schedule(progress), expected, atol=2e-3)

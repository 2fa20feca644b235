"""The training loop: exactness of masks, validation choice, meshes, and continuing after a kill."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from updcomp import contribution
from updcomp.methods import base
from updcomp.training import data, devices, loop, models
from updcomp.training.augment import crop_and_flip
from updcomp.training.checkpoints import Checkpoints
from updcomp.training.loop import Task, fit
from updcomp.training.optimizers import constant, cosine, every_third, masked, with_learning_rate
from updcomp.wire.errors import NonFiniteError

MODEL = models.mlp(hidden=(16,))
DENSE = base.plan("dense", base.quantised_delta(None), 16)
NESTEROV = functools.partial(optax.sgd, momentum=0.9, nesterov=True)


def decayed(learning_rate):
    return optax.chain(optax.add_decayed_weights(1e-2), NESTEROV(learning_rate))


@functools.cache
def world():
    train, validation = data.split(data.load("digits").train, (200, 100), seed=0)
    task = Task(
        MODEL.apply, jax.device_put(train), jax.device_put(validation), optax.adam, 1e-2, epochs=3, batch_size=50
    )
    return MODEL.init(jax.random.key(0), train.images), task


def start_of(variables):
    parts = base.split(variables, aux=16)
    return {"kernels": parts.kernels, "aux": parts.aux}


@pytest.mark.parametrize("optimizer", [optax.adam, decayed], ids=["adam", "nesterov with decay"])
def test_unsent_weights_keep_their_bits(optimizer):
    variables, task = world()
    start = start_of(variables)
    mask = jax.tree.map(lambda leaf: jax.random.bernoulli(jax.random.key(1), 0.6, leaf.shape), start)
    plan = base.plan("masked", base.quantised_delta(None), 16, wrap=masked)
    frozen = {"deployed": variables, "mask": mask}
    trained = fit(jax.random.key(0), task._replace(optimizer=optimizer), plan, start, frozen).last
    for new, old, sent in zip(*map(jax.tree.leaves, (trained, start, mask)), strict=True):
        np.testing.assert_array_equal(np.asarray(new)[~sent], np.asarray(old)[~sent])
    assert all(np.any(new != old) for new, old in zip(*map(jax.tree.leaves, (trained, start)), strict=True))


def test_the_loop_takes_the_steps_of_a_plain_optax_loop():
    """One epoch of full batches, against the same steps written out with a learning rate inside the optimizer."""
    variables, task = world()
    task = task._replace(epochs=1, optimizer=decayed, schedule=cosine)
    key, start = jax.random.key(3), start_of(variables)
    fitted = fit(key, task, DENSE, start, {"deployed": variables})
    optimizer = decayed(lambda step: 1e-2 * cosine(step / 4))
    params, state = variables["params"], optimizer.init(variables["params"])

    def objective(params, rows):
        logits, _ = MODEL.apply({"params": params}, data.to_float(task.train.images[rows]), train=True)
        return loop.cross_entropy(logits, task.train.labels[rows])

    for rows in loop._shuffled(key, 0, np.arange(200), 50):
        updates, state = optimizer.update(jax.grad(objective)(params, rows), state, params)
        params = optax.apply_updates(params, updates)
    expected = start_of({"params": params})
    for new, wanted in zip(*map(jax.tree.leaves, (fitted.last, expected)), strict=True):
        np.testing.assert_allclose(new, wanted, rtol=1e-4, atol=1e-6)


def test_an_epoch_visits_every_sample():
    order = loop._shuffled(jax.random.key(0), 0, np.arange(7, 130), 50)
    assert order.shape == (3, 50)
    assert set(order.ravel()) == set(range(7, 130))
    assert np.any(order != loop._shuffled(jax.random.key(0), 1, np.arange(7, 130), 50))


def test_the_best_epoch_is_chosen_on_the_validation_set():
    variables, task = world()
    fitted = fit(jax.random.key(0), task, DENSE, start_of(variables), {"deployed": variables})

    def correct(trainable):
        logits, _ = MODEL.apply(
            DENSE.assemble(trainable, {"deployed": variables}), data.to_float(task.validation.images), train=False
        )
        return int((logits.argmax(-1) == task.validation.labels).sum())

    assert correct(fitted.trainable) == fitted.correct >= correct(fitted.last)
    assert correct(start_of(variables)) == fitted.start_correct < fitted.correct


def test_a_training_that_does_not_help_keeps_the_start():
    variables, task = world()
    start = start_of(variables)
    fitted = fit(jax.random.key(0), task._replace(learning_rate=0.0), DENSE, start, {"deployed": variables})
    assert fitted.correct == fitted.start_correct
    for new, old in zip(*map(jax.tree.leaves, (fitted.trainable, start)), strict=True):
        np.testing.assert_array_equal(new, old)


def test_two_devices_train_to_the_same_result():
    variables, task = world()
    alone = fit(jax.random.key(0), task, DENSE, start_of(variables), {"deployed": variables})
    mesh = devices.data_mesh()
    assert mesh.size == 2
    placed = task._replace(
        mesh=mesh, train=devices.replicate(task.train, mesh), validation=devices.replicate(task.validation, mesh)
    )
    shared = fit(jax.random.key(0), placed, DENSE, start_of(variables), {"deployed": variables})
    for one, two in zip(*map(jax.tree.leaves, (alone.last, shared.last)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
    assert len(jax.tree.leaves(shared.last)[0].sharding.device_set) == 2


def test_the_optimizer_continues_from_the_state_it_is_given():
    """Where gradients are zero, momentum m coasts: n steps move the weights by -rate (mu + ... + mu^n) m_0."""
    variables, task = world()
    start = start_of(variables)
    momentum = functools.partial(optax.sgd, momentum=0.5)
    flat = task._replace(optimizer=momentum, epochs=1, loss=lambda logits, labels: 0 * logits.sum())
    fresh = momentum(1.0).init(start)
    state = jax.tree.map(jnp.ones_like, fresh)
    fitted = fit(jax.random.key(0), flat, DENSE, start, {"deployed": variables}, optimizer_state=state)
    for new, old in zip(*map(jax.tree.leaves, (fitted.last, start)), strict=True):
        np.testing.assert_allclose(new - old, np.full(old.shape, -1e-2 * (1 - 0.5**4)), rtol=1e-4, atol=1e-7)
    for moved, given in zip(*map(jax.tree.leaves, (fitted.optimizer, state)), strict=True):
        assert np.all(moved == 0.5**4)
        assert np.all(given == 1)  # the caller's state is not donated
    again = fit(jax.random.key(0), flat, DENSE, start, {"deployed": variables})
    for new, old in zip(*map(jax.tree.leaves, (again.last, start)), strict=True):
        np.testing.assert_array_equal(new, old)


def on_the_host(dataset, folder):
    """The same samples with their images in a file."""
    np.save(folder / "images.npy", dataset.images)
    return data.Dataset(np.load(folder / "images.npy", mmap_mode="r"), np.asarray(dataset.labels))


@pytest.mark.parametrize("mesh", [None, devices.data_mesh()], ids=["one device", "mesh"])
@pytest.mark.parametrize("batches", [1, 3, 100])
def test_images_on_the_host_train_to_the_same_weights_bit_for_bit(batches, mesh, tmp_path, monkeypatch):
    """Four batches an epoch, in chunks of one, of three (the last one is not full) and of all."""
    variables, task = world()
    task = task._replace(samples=np.arange(10, 190), augment=crop_and_flip, mesh=mesh)
    monkeypatch.setattr(loop, "CHUNK_BYTES", batches * 50 * 64 + 63)
    chunks = []
    gather = loop._gather
    monkeypatch.setattr(loop, "_gather", lambda *args: chunks.append(gather(*args)) or chunks[-1])
    results = []
    for train in (devices.replicate(task.train, mesh), on_the_host(task.train, tmp_path)):
        assert not chunks
        placed = task._replace(train=train, validation=jax.tree.map(np.asarray, task.validation))
        results.append(fit(jax.random.key(0), placed, DENSE, start_of(variables), {"deployed": variables}))
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(one, two)
    images = [chunk for chunk in chunks if chunk.ndim == 4]
    assert {len(chunk) for chunk in images} == {50 * min(batches, 4)}
    assert len(images) == task.epochs * -(-4 // batches)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("mesh", [None, devices.data_mesh()], ids=["one device", "mesh"])
def test_rounds_settings_and_continued_trainings_compile_once(streamed, mesh):
    variables, task = world()
    train = jax.tree.map(np.asarray, task.train) if streamed else devices.replicate(task.train, mesh)
    task = task._replace(train=train, mesh=mesh)
    plan = base.plan("counted", base.quantised_delta(None), 16)
    first = fit(jax.random.key(0), task, plan, start_of(variables), {"deployed": variables})
    changed = task._replace(samples=np.arange(60), learning_rate=1e-3, epochs=2)
    state = first.optimizer
    fit(jax.random.key(1), changed, plan, first.last, {"deployed": variables}, optimizer_state=state)
    options = (task.optimizer, task.loss, task.schedule, task.augment, task.mesh)
    for compiled in (loop._compiled_steps(plan, MODEL.apply, *options), loop._compiled_validation(plan, MODEL.apply)):
        assert compiled._cache_size() == 1


class Killed(Exception):
    pass


def test_a_killed_training_continues_to_the_same_weights(tmp_path, monkeypatch):
    variables, task = world()
    plan = base.plan("recorded", base.quantised_delta(None), 16, wrap=contribution.record)
    task = task._replace(augment=crop_and_flip, epochs=4)
    whole = fit(jax.random.key(0), task, plan, start_of(variables), {"deployed": variables})
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    resumable = task._replace(checkpoints=tmp_path)
    save = Checkpoints.save

    def save_and_die(self, step, tree):
        save(self, step, tree)
        if step == 2:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(Killed):
        fit(jax.random.key(0), resumable, plan, start_of(variables), {"deployed": variables})
    continued = fit(jax.random.key(0), resumable, plan, start_of(variables), {"deployed": variables})
    assert continued.correct == whole.correct
    for one, two in zip(*map(jax.tree.leaves, (continued, whole)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_epoch_that_harms_is_not_chosen():
    """The sign of every update after the first epoch is wrong, so the first epoch stays the best."""
    variables, task = world()
    harmful = task._replace(schedule=lambda progress: jnp.where(progress < 0.3, 1.0, -3.0), learning_rate=3e-3)
    fitted = fit(jax.random.key(0), harmful, DENSE, start_of(variables), {"deployed": variables})
    once = fit(
        jax.random.key(0),
        harmful._replace(epochs=1, schedule=lambda progress: jnp.ones_like(progress)),
        DENSE,
        start_of(variables),
        {"deployed": variables},
    )
    assert fitted.correct == once.correct > fitted.start_correct
    for best, last, first in zip(*map(jax.tree.leaves, (fitted.trainable, fitted.last, once.last)), strict=True):
        np.testing.assert_array_equal(best, first)
        assert np.any(best != last)


def test_weights_that_leave_the_finite_in_the_last_step_are_noticed():
    variables, task = world()
    wild = task._replace(epochs=1, learning_rate=3e38, schedule=lambda progress: jnp.where(progress < 0.7, 0.0, 10.0))
    with pytest.raises(NonFiniteError, match="dense.*step 3"):
        fit(jax.random.key(0), wild, DENSE, start_of(variables), {"deployed": variables})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(constant, [1, 1, 1, 1]), (every_third(0.1), [1, 0.1, 0.01, 0.01]), (cosine, [1, 0.75, 0.25, 0])],
)
def test_schedules(schedule, expected):
    progress = jnp.array([0.0, 1 / 3 + 1e-3, 2 / 3 + 1e-3, 1.0])
    np.testing.assert_allclose(schedule(progress), expected, atol=2e-3)


def test_a_dynamic_learning_rate_is_the_optimizers_own():
    gradients = jnp.array([0.5, -2.0])
    for factory in (optax.adam, NESTEROV):
        own, ours = factory(0.3), with_learning_rate(factory)
        own_state, our_state = own.init(gradients), ours.init(gradients)
        for _ in range(3):
            with jax.numpy_dtype_promotion("standard"):
                expected, own_state = own.update(gradients, own_state)
            found, our_state = ours.update(gradients, our_state, learning_rate=0.3)
            np.testing.assert_allclose(found, expected, rtol=1e-6)

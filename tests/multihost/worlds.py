"""What one process and several do alike: trainings with every method, selections and updates of given weights."""

import hashlib

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import updcomp
from tests.methods.worlds import KEY, regression
from updcomp import arrays, delta, factorize, methods, selection, subspace, trees
from updcomp.training import Stream, devices
from updcomp.training.tasks import Task

METHODS = {
    "full": methods.full(bits=8),
    "partial": methods.partial(ratio=0.3),
    "low_rank": methods.low_rank(rank=2),
    "subspace": methods.subspace(rank=3),
    "random_mask": methods.random_mask(ratio=0.3),
    "magnitude_mask": methods.magnitude_mask(ratio=0.3),
    "neurons": methods.neurons(selection="velocity", weights=0.5),
}
assert set(METHODS) < set(methods.METHODS)  # one for each way of training

# The first kernel is split over all devices, of all processes; a bias over some of them.
SPLIT = {
    "first/kernel": PartitionSpec("data", "model"),
    "first/bias": PartitionSpec("data"),
    "second/kernel": PartitionSpec("model", None),
}


def split(tree, mesh):
    """The model on a mesh, as `SPLIT` says."""
    leaves = trees.named_leaves(tree)
    placed = {name: arrays.to_devices(leaf, NamedSharding(mesh, SPLIT[name])) for name, leaf in leaves.items()}
    return trees.replace(tree, placed)


def task_on_host() -> Task:
    """The regression, its training data on the host, so that a process reads the rows of its own devices."""
    _, task = regression()
    return task._replace(train=jax.tree.map(np.asarray, task.train), epochs=3)


def stream_of_parts(sharding, steps=6):
    """The training data in order as batches of 20 rows, of which a process gives its own parts."""
    train, (own, count) = task_on_host().train, devices.parts_of(sharding)

    def batches():
        for step in range(steps):
            parts = np.split(np.arange(20 * step, 20 * step + 20), count)
            rows = np.concatenate([parts[number] for number in own])
            yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], train)

    class Again:
        def __iter__(self):
            return batches()

    return Stream(Again(), steps=steps)


def updates(deployed, task) -> dict[str, np.ndarray]:
    """The model that every method's update makes, by method and leaf."""
    found = {}
    for name, method in METHODS.items():
        update = updcomp.encode(method(KEY, deployed, task), deployed)
        new = updcomp.apply(update, deployed)
        for leaf, value in trees.named_leaves(new).items():
            assert value.sharding == trees.named_leaves(deployed)[leaf].sharding
        found |= {f"{name}: {leaf}": value for leaf, value in trees.to_model(new).items()}
    return found


def of_given_weights(old, new) -> dict[str, str]:
    """Digests of what is selected and encoded of given weights: the same bits on any devices."""
    before, after = trees.named_leaves(old), trees.named_leaves(new)
    kernels = [name for name, leaf in before.items() if leaf.ndim > 1]
    change = {name: abs(after[name] - before[name]) for name in before}
    masks = jax.jit(lambda change: selection.top_ratio(change, 0.25))(change)
    blocks = {
        "masks": {name: delta.to_block(before[name], after[name], 4, mask=masks[name]) for name in before},
        "dense": {name: delta.to_block(before[name], after[name], 4) for name in before},
        "factors": {name: factorize.to_block(factorize.init(KEY, before[name].shape, 2), bits=6) for name in kernels},
        "coefficients": {
            name: subspace.to_block(
                subspace.project(after[name] - before[name], subspace.basis_of(before[name], 2, index=index)), bits=8
            )
            for index, name in enumerate(before)
            if name in kernels
        },
    }
    packets = {
        what: updcomp.pack(trees.replace(old, {**dict.fromkeys(before), **own}), old) for what, own in blocks.items()
    }
    packets |= {"exact": updcomp.diff(old, new), "lossy": updcomp.diff(old, new, step=0.01)}
    encoded = {what: updcomp.encode(packet, old) for what, packet in packets.items()}
    chosen = b"".join(arrays.to_host(masks[name]).tobytes() for name in sorted(masks))
    return {what: hashlib.sha256(data).hexdigest() for what, data in {**encoded, "masks themselves": chosen}.items()}


def given():
    """Two models of the same shapes, by NumPy alone."""
    generator = np.random.default_rng(5)
    shapes = {name: leaf.shape for name, leaf in trees.named_leaves(regression()[0]).items()}
    old, new = (
        {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(2)
    )
    nested = regression()[0]
    return trees.replace(nested, old), trees.replace(nested, new)


class Stopped(Exception):
    """A training that ended in the middle."""


def training(folder, deployed, task, *, after=None):
    """The epochs that a training does which goes on from its checkpoints, and its update; it may end after an epoch."""
    epochs = []

    def callback(epoch):
        epochs.append(epoch.number)
        if len(epochs) == after:
            raise Stopped

    packet = methods.full(bits=8)(KEY, deployed, task._replace(epochs=4, checkpoints=folder, callback=callback))
    return epochs, trees.to_model(updcomp.apply(updcomp.encode(packet, deployed), deployed))

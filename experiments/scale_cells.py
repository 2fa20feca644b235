"""What `bench_scale` measures of one model on one mesh, in a process of its own: selecting, training and encoding."""

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import collectives, resident
from experiments.scale_models import SIZES, WAYS, Scene, Way, hashed, scene_of, task_of, uniform
from updcomp import api, arrays, quantize, selection, trees
from updcomp.methods import base, choosing, rounding
from updcomp.methods.rounding import Rounding
from updcomp.training import Task, batches, loop, steps
from updcomp.training.compilation import measured
from updcomp.training.loop import Training
from updcomp.training.optimizers import masked
from updcomp.training.plans import Frozen, Named
from updcomp.trees import PyTree
from updcomp.wire.kinds.sparse import Sparse
from updcomp.wire.packet import LazyBlocks, Packet

RATIO = 0.01
_BITS = 8
_CHANGE = 2.0**-8  # of the weights that are sent, at most


def measure(size: str, mesh: str) -> dict[str, Any]:
    """Everything of one model on one mesh.

    Args:
      size: a key of `SIZES`.
      mesh: a number of devices that the model is split over; or "data" and a number of devices that the leaves, the
        optimizer's state and the batches are split over.

    Returns:
      Figure -> value.
    """
    scene = scene_of(SIZES[size], mesh)
    leaves = trees.named_leaves(scene.deployed)
    figures: dict[str, Any] = {
        "weights": sum(leaf.size for leaf in leaves.values()),
        "leaves": len(leaves),
        "kernels": sum(leaf.size for leaf in scene.kernels.values()),
        "kernel_leaves": len(scene.names),
        "largest_leaf": scene.largest,
        "devices": scene.mesh.size,
    }
    mask, figures["select"] = _select(scene)
    figures["train"] = {name: _train(scene, mask, way) for name, way in WAYS.items()}
    figures["encode"] = _encode(scene, mask)
    figures["process_bytes"] = resident.most()
    return figures


def _select(scene: Scene) -> tuple[Named, dict[str, Any]]:
    """The mask of the largest of scores like the kernels, and what finding it takes."""
    kernels = scene.kernels
    placing = {name: leaf.sharding for name, leaf in kernels.items()}
    shapes = {name: leaf.shape for name, leaf in kernels.items()}

    scores = jax.block_until_ready(jax.jit(functools.partial(scores_of, shapes), out_shardings=placing)())
    compiled = jax.jit(choose).lower(scores).compile()
    with resident.watched() as rise:
        mask, took = _timed(compiled, scores)
    # Leaf by leaf, so that no more is held than selecting takes; programs of virtual devices must not overlap.
    found = [jax.device_get(checked(scores[name], mask[name], np.uint32(n))) for n, name in enumerate(scores)]
    counts, least, most, sums = (np.array(part) for part in zip(*found, strict=True))
    size = sum(leaf.size for leaf in kernels.values())
    assert counts.sum() == selection.budget(RATIO, size), "as many as the ratio says"
    assert least.min() >= most.max(), "no score that is left out is above one that is chosen"
    figures = {
        **took,
        "checksum": int(sums.sum(dtype=np.uint32)),
        "rise_bytes": rise.peak,
        "split": _split_of(mask),
        **_of_program(compiled),
    }
    return mask, figures


def scores_of(shapes: Mapping[str, tuple[int, ...]]) -> Named:
    """Scores of these shapes, float32; compiled, each device makes its own."""
    return {name: uniform(shape, np.uint32(number)) for number, (name, shape) in enumerate(shapes.items())}


def choose(scores: Named) -> Named:
    """The mask of the largest ones."""
    return selection.top_ratio(scores, RATIO)


@jax.jit
def checked(scores: jax.Array, mask: jax.Array, seed: Any) -> tuple[jax.Array, ...]:
    """Of a leaf: how many are chosen, the least of them, the largest of the others, and a sum that says which."""
    chosen = jnp.where(mask, hashed(mask.shape, seed), np.uint32(0))
    return (
        jnp.sum(mask, dtype=jnp.uint32),
        jnp.min(scores, where=mask, initial=np.inf),
        jnp.max(scores, where=~mask, initial=-np.inf),
        jnp.sum(chosen, dtype=jnp.uint32),
    )


def _train(scene: Scene, mask: Named, way: Way) -> dict[str, Any] | None:
    """What one step takes; None where the machine has too little memory for it."""
    if way.takes(sum(leaf.size for leaf in jax.tree.leaves(scene.deployed))) > 0.9 * resident.available():
        return None
    task = task_of(scene.network, 2, way.optimizer)
    training = _begun(scene, mask, way, task)
    run: Any = steps.compiled_steps(*loop.program_of(training))
    compiled = run.lower(training.state, portion=_portion(training), **loop.arguments_of(training)).compile()
    training = loop.run_epoch(training)  # compiles what is around the steps
    with resident.watched() as rise:
        training = loop.run_epoch(training)
    trained = training.state.trainable
    largest = max(leaf.size for leaf in jax.tree.leaves(scene.deployed))
    figures = {
        "seconds": training.step_seconds,
        "trained": sum(leaf.size for leaf in trained.values()),
        "loss": float(training.state.sums[0]),
        "rise_bytes": rise.peak,
        "split": _split_of((training.state.trainable, training.state.best, training.state.optimizer)),
        **_of_program(compiled),
    }
    return {**figures, "gathered_leaves": figures["gathered"] / largest}


def _begun(scene: Scene, mask: Named, way: Way, task: Task) -> Training:
    """The last training of `methods.partial`: masked, rounded straight-through."""
    model = choosing.model_of(scene.deployed, task)
    depth = len(scene.deployed["blocks"])
    first = depth - max(1, int(way.share * depth))
    chosen = [
        name
        for name in scene.names
        if way.share == 1 or (name.startswith("blocks") and int(name.split("/")[1]) >= first)
    ]
    parts = model.partition._replace(chosen=frozenset(chosen))
    plan = base.plan_of("partial-sparse", parts, dict.fromkeys(chosen, rounding.rounded), wrap=masked)
    fixed = {name: Rounding(quantize.grid(_BITS), mask[name]) for name in chosen}
    return loop.begin(
        jax.random.key(0),
        task,
        plan,
        {name: model.leaves[name].astype(jnp.float32) for name in chosen},
        Frozen(model.variables, fixed),
        masks={name: mask[name] for name in chosen},
    )


def _portion(training: Training) -> Any:
    task = training.task
    portions = batches.epoch(
        task.train, task.samples, task.batch_size, key=training.key, number=0, sharding=training.sharding
    )
    return next(portions)


def _encode(scene: Scene, mask: Named) -> dict[str, Any]:
    """What encoding and applying a sparse update takes, of which each block is made when it is asked for."""
    leaves = scene.kernels

    def block(name: str, number: int) -> Sparse:
        old, new = _changed(leaves[name], np.uint32(number))
        rounded = rounding.integers(old, new, Rounding(quantize.grid(_BITS), mask[name]))
        return Sparse(np.flatnonzero(arrays.to_host(mask[name])), *rounded)

    def maker(name: str, number: int) -> Callable[[], Sparse]:
        return lambda: block(name, number)

    packet = Packet(LazyBlocks({name: maker(name, number) for number, name in enumerate(leaves)}))
    for name in {(leaf.shape, leaf.sharding): name for name, leaf in leaves.items()}.values():
        packet.blocks[name]  # compiles what is the same for all leaves of this shape
    with resident.watched() as made:
        update, encoding = _timed(api.encode, packet, scene.deployed)
    with resident.watched() as taken:
        new, applying = _timed(api.apply, update, scene.deployed)  # checks both fingerprints
    old = trees.named_leaves(scene.deployed)
    assert all(leaf.sharding == old[name].sharding for name, leaf in trees.named_leaves(new).items())
    return {
        **encoding,
        **{f"apply_{name}": seconds for name, seconds in applying.items()},
        "bytes": len(update),
        "sent": sum(block["size"] for block in api.inspect(update)["blocks"]),
        "rise_bytes": made.peak,
        "kept_bytes": made.after,
        "apply_rise_bytes": taken.peak,
        "apply_kept_bytes": taken.after,
    }


@jax.jit
def _changed(leaf: jax.Array, seed: Any) -> tuple[jax.Array, jax.Array]:
    """A kernel as float32, and what training could have made of it."""
    old = leaf.astype(jnp.float32)
    return old, old + 2 * _CHANGE * (uniform(leaf.shape, seed) - 0.5)


def _timed(function: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, float]]:
    """What a function gives; its seconds without those of compilation, and those of all cores in this process."""
    with measured() as compilation:
        start, busy = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(function(*args))
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return found, {"seconds": seconds - compilation.seconds, "core_seconds": busy}


def _of_program(compiled: Any) -> dict[str, Any]:
    """What the compiler says of one device: what it receives, and the most that it holds."""
    memory, exchange = compiled.memory_analysis(), collectives.exchanged(compiled.as_text())
    return {
        "exchanged": exchange.bytes,
        "gathered": exchange.gathered,
        "unknown_loops": exchange.unknown_loops,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def _split_of(tree: PyTree) -> float:
    """Bytes that the device with most of them holds, as a multiple of an even share."""
    held: dict[Any, int] = {}
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values()) * len(held) / sum(leaf.nbytes for leaf in leaves) if held else 1.0


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))

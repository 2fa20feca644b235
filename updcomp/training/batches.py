"""Where training batches come from: arrays on the devices, arrays or memory maps on the host, or an iterable."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from updcomp import trees
from updcomp.training import devices
from updcomp.trees import PyTree
from updcomp.wire.errors import Error

CHUNK_BYTES = 2**28  # of rows that come to the devices at once, where the host holds them


class Portion(NamedTuple):
    """A part of an epoch, as arguments of the compiled steps: its shapes are the same in every epoch and round."""

    data: (
        PyTree  # on the devices: arrays with a common leading axis, or with two, (steps, batch_size), without an order
    )
    order: np.ndarray | None  # int32 (steps, batch_size): the rows of each batch; None: the data are batches
    steps: np.int32  # how many of these are taken

    def batch(self, i: jax.Array) -> PyTree:
        """The batch of a step."""
        return jax.tree.map(lambda leaf: leaf[i if self.order is None else self.order[i]], self.data)


class Stream:
    """Training data that come as batches, from grain, TFDS or a generator of one's own.

    A training that continues from a checkpoint takes the batches that the iterable gives then. Of several processes,
    each gives its parts of every batch: those of `devices.parts_of(devices.batch_sharding(mesh))`.

    >>> stream = Stream(({"x": np.full(2, i)} for i in range(4)), steps=2)
    >>> [batch["x"].tolist() for batch in stream.take(2)], [batch["x"].tolist() for batch in stream.take(1)]
    ([[0, 0], [1, 1]], [[2, 2]])
    """

    def __init__(self, batches: Iterable[PyTree], steps: int) -> None:
        """Names the source; nothing is read yet.

        Args:
          batches: pytrees of arrays, all of the same shapes and dtypes. Where it can be iterated over again it starts
            anew at its end; an iterator has to last for all epochs of all trainings of the method.
          steps: how many batches make an epoch.

        Raises:
          Error: `steps` is below 1.
        """
        if steps < 1:
            raise Error(f"steps: expected at least 1 batch per epoch, found {steps}")
        self.steps = steps
        self._source = batches
        self._iterator = iter(batches)
        self._next: list[PyTree] = []
        self._shapes: tuple[Any, dict[str, str]] | None = None  # of the first batch

    @property
    def example(self) -> PyTree:
        """The next batch, which `take` will give again."""
        if not self._next:
            self._next = [self._pull()]
        return self._next[0]

    def take(self, count: int) -> list[PyTree]:
        """The next batches.

        Args:
          count: how many.

        Returns:
          Pytrees of NumPy arrays.

        Raises:
          Error: the iterable ends, or a batch has other shapes than the first.
        """
        return [self._next.pop() if self._next else self._pull() for _ in range(count)]

    def _checked(self, batch: PyTree) -> PyTree:
        found = jax.tree.structure(batch), _shapes(batch)
        if self._shapes is None:
            if not rows(batch):
                raise Error("train: expected batches of at least one row, found none in the first")
            self._shapes = found
        if found != self._shapes:
            advice = "drop the last, smaller one"
            raise Error(f"train: expected batches like the first, {self._shapes[1]}, found {found[1]}; {advice}")
        return batch

    def _pull(self) -> PyTree:
        for _ in range(2):
            for batch in self._iterator:
                return self._checked(jax.tree.map(np.array, batch))  # a copy, as iterables may use a buffer again
            self._iterator = iter(self._source)
        advice = "give an iterable that can be iterated over again, or fewer epochs"
        raise Error(f"train: expected {self.steps} more batches for an epoch, but the iterable has ended; {advice}")


def rows(data: PyTree) -> int:
    """The number of rows of data: the leading axis that all leaves share.

    Args:
      data: pytree of arrays.

    Returns:
      The length of that axis.

    Raises:
      Error: there is no leaf, or a leaf has no axis or another length; names it.

    >>> rows({"x": np.zeros((5, 2)), "y": np.zeros(5)})
    5
    """
    leaves = trees.named_leaves(data)
    if not leaves:
        found = f"found none in {type(data).__name__}"
        advice = "wrap an iterable of batches as training.Stream(iterable, steps=...)"
        raise Error(f"data: expected arrays with a common leading axis, {found}; {advice}")
    first, *_ = leaves
    for name, leaf in leaves.items():
        if leaf.ndim == 0 or leaf.shape[0] != leaves[first].shape[0]:
            expected = f"expected a leading axis as long as that of {first!r}, {leaves[first].shape[:1]}"
            raise Error(f"data leaf {name!r}: {expected}; found shape {leaf.shape}")
    return int(leaves[first].shape[0])


def example(train: PyTree | Stream, batch_size: int) -> PyTree:
    """The shapes and dtypes of a batch.

    Args:
      train: arrays or a `Stream`.
      batch_size: rows of a batch of arrays; a stream's batches have their own.

    Returns:
      A pytree of `jax.ShapeDtypeStruct`.
    """
    if isinstance(train, Stream):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, _dtype(leaf)), train.example)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), _dtype(leaf)), train)


def rows_per_step(train: PyTree | Stream, batch_size: int, sharding: NamedSharding | None) -> int:
    """The rows of a whole batch; of a stream's, each process gives its own parts.

    Args:
      train: arrays or a `Stream`.
      batch_size: rows of a batch of arrays.
      sharding: of each batch.

    Returns:
      Those of all processes together.
    """
    if not isinstance(train, Stream):
        return batch_size
    here, parts = devices.parts_of(sharding)
    return rows(train.example) * parts // len(here)


def place(train: PyTree | Stream, mesh: jax.sharding.Mesh | None) -> PyTree | Stream:
    """Training data that are on devices, on those of the mesh; what the host holds, and a stream, as they are."""
    if isinstance(train, Stream) or any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(train)):
        return train
    return devices.place(train, mesh)


def steps_per_epoch(train: PyTree | Stream, samples: np.ndarray | None, batch_size: int) -> int:
    """How many steps an epoch has.

    Args:
      train: arrays or a `Stream`.
      samples: the rows in use; None = all.
      batch_size: rows per step.

    Returns:
      ceil(rows / batch_size), or the stream's own number.

    Raises:
      Error: there are fewer rows than a batch, or `samples` of a stream.
    """
    if isinstance(train, Stream):
        if samples is not None:
            raise Error("samples: expected None where training data are a Stream; let the iterable choose its rows")
        return train.steps
    count = rows(train) if samples is None else len(samples)
    if count < batch_size:
        expected = f"expected at most the number of training samples, {count}"
        raise Error(f"batch_size: {expected}, found {batch_size}; use a smaller batch or more samples")
    return -(-count // batch_size)


def epoch(
    train: PyTree | Stream,
    samples: np.ndarray | None,
    batch_size: int,
    *,
    key: jax.Array,
    number: int,
    sharding: NamedSharding | None,
) -> Iterator[Portion]:
    """One epoch of training data.

    One portion where the arrays are on devices. Rows on the host come chunk by chunk in the epoch's order, each
    gathered while the devices still compute on the one before; a process gathers the rows of its own devices alone.

    Args:
      train: arrays or a `Stream`.
      samples: the rows in use; None = all.
      batch_size: rows per step.
      key: decides the order.
      number: of the epoch, which has an order of its own.
      sharding: of each batch, from `devices.batch_sharding`.

    Yields:
      `Portion`s.
    """
    if isinstance(train, Stream):
        yield from _streamed(train, sharding)
        return
    chosen = np.arange(rows(train)) if samples is None else np.asarray(samples)
    order = shuffled(key, number, chosen, batch_size)
    size = -(-max(rows(train), len(chosen)) // batch_size)
    if not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(train)):
        all_rows = np.zeros((size, batch_size), np.int32)
        all_rows[: len(order)] = order
        yield Portion(train, all_rows, np.int32(len(order)))
        return
    host = jax.tree.map(np.asarray, train)
    size = min(size, _steps_per_chunk(batch_size * sum(leaf[:1].nbytes for leaf in jax.tree.leaves(host))))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        chunk = jax.tree.map(lambda leaf, part=part: _chunk(leaf, part, size, sharding), host)
        yield Portion(chunk, None, np.int32(len(part)))


def shuffled(key: jax.Array, number: int, samples: np.ndarray, batch_size: int) -> np.ndarray:
    """The samples in a new order as whole batches; the last is filled up from the start of that order."""
    generator = np.random.default_rng([*jax.random.key_data(key).tolist(), number])
    return np.resize(generator.permutation(samples), (-(-len(samples) // batch_size), batch_size))


def _streamed(stream: Stream, sharding: NamedSharding | None) -> Iterator[Portion]:
    size = min(stream.steps, _steps_per_chunk(sum(leaf.nbytes for leaf in jax.tree.leaves(stream.example))))
    for start in range(0, stream.steps, size):
        taken = stream.take(min(size, stream.steps - start))
        filled = [*taken, *[taken[-1]] * (size - len(taken))]  # never looked at, but shapes stay the same
        chunk = jax.tree.map(lambda *leaves: _placed(np.stack(leaves), sharding), *filled)
        yield Portion(chunk, None, np.int32(len(taken)))


def _placed(chunk: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """This process's parts of a chunk's batches, (steps, rows, ...), as an array on the devices."""
    if sharding is None:
        placed: jax.Array = devices.replicate(chunk, None)
        return placed
    chunk = chunk.astype(_dtype(chunk), copy=False)
    return jax.make_array_from_process_local_data(_of_chunks(sharding), chunk)


def _of_chunks(sharding: NamedSharding) -> NamedSharding:
    """The sharding of arrays (steps, batch_size, ...)."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def _steps_per_chunk(batch_bytes: int) -> int:
    return max(1, CHUNK_BYTES // max(1, batch_bytes))


def _chunk(array: np.ndarray, order: np.ndarray, size: int, sharding: NamedSharding | None) -> jax.Array:
    """The rows of some batches, then zeros up to `size` batches, of which a process gathers its own devices' parts."""

    def gathered(columns: slice) -> np.ndarray:
        chosen = order[:, columns]
        out = np.zeros((size, *chosen.shape[1:], *array.shape[1:]), array.dtype)
        np.take(array, chosen, axis=0, out=out[: len(chosen)], mode="clip")  # the default mode copies once more
        return out.astype(_dtype(array), copy=False)

    if sharding is None:
        placed: jax.Array = devices.replicate(gathered(slice(None)), None)
        return placed
    once = functools.cache(lambda start, stop: gathered(slice(start, stop)))  # devices may hold the same part

    def part(place: tuple[slice, ...] | None) -> np.ndarray:
        assert place is not None
        return once(place[1].start, place[1].stop)

    shape = (size, order.shape[1], *array.shape[1:])
    return jax.make_array_from_callback(shape, _of_chunks(sharding), part)


def _dtype(leaf: Any) -> Any:
    """The dtype that the leaf has on devices, where 64 bits become 32 unless JAX is told otherwise."""
    return jax.dtypes.canonicalize_dtype(leaf.dtype)


def _shapes(batch: PyTree) -> dict[str, str]:
    return {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in trees.named_leaves(batch).items()}

"""Old model + packet -> new model, to the same bits on every machine."""

from collections.abc import Collection, Iterator

from updcomp.wire import dtypes, errors, packet, structure, versions
from updcomp.wire.kind import Block


def apply(sent: packet.Packet, model: dtypes.Model) -> dict[str, dtypes.Array]:
    """The new model.

    Args:
      sent: blocks by leaf name.
      model: the deployed one, leaf name -> array; it is not changed.

    Returns:
      A new dict; leaves without a block are the same array objects.

    Raises:
      LeafError: a block's leaf is missing, or its arrays do not fit the leaf.
      DtypeError: a lossy block for a leaf that is not float16, bfloat16, float32 or float64.

    >>> import numpy as np
    >>> from updcomp.wire.kinds.dense import Dense
    >>> model = {"w": np.float32([1, 2])}
    >>> apply(packet.Packet({"w": Dense(np.int32([0, -1]), step=0.5)}), model)["w"].tolist()
    [1.0, 1.5]
    """
    return {**structure.start(model, sent.structure), **dict(changed_leaves(sent, model))}


def changed_leaves(sent: packet.Packet, model: dtypes.Model) -> Iterator[tuple[str, dtypes.Array]]:
    """The leaves that have a block, one at a time: of a lazy model no two are read at once.

    Args:
      sent: as in `apply`.
      model: as in `apply`.

    Yields:
      (name, new leaf), in sorted name order.

    Raises:
      LeafError, DtypeError: as `apply`.
    """
    start = structure.start(model, sent.structure)
    check_names(sent, start)
    for index, name in enumerate(sorted(start)):
        if name in sent.blocks:
            old = dtypes.hold(start[name])
            with errors.of_leaf(name):
                block = sent.blocks[name]
                new = apply_block(versions.kind_of(block).hold(block), old, seed=sent.seed, index=index)
            yield name, new


def check_names(sent: packet.Packet, names: Collection[str]) -> None:
    """Checks that every block has a leaf.

    Raises:
      LeafError: it has none.
    """
    for name in sent.blocks:
        if name not in names:
            raise errors.LeafError(f"leaf {name!r}: expected one of {sorted(names)}, found no such leaf in the model")


def apply_block(block: Block, old: dtypes.Array, *, seed: int, index: int) -> dtypes.Array:
    """The new leaf.

    Args:
      block: for this leaf, as `packet.held` returns it.
      old: as `dtypes.hold` returns it.
      seed: the packet's.
      index: of the leaf in sorted name order.

    Returns:
      A new array of the same shape and dtype.

    Raises:
      LeafError: a shape, dtype, count, position or step that the leaf or the format does not take.
      DtypeError: a lossy block for a leaf without floats.
    """
    kind = versions.kind_of(block)
    kind.check(block, old)
    return kind.apply(block, old, seed, index)

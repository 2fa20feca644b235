"""Kinds whose positions both sides derive, so that only the integers travel."""

from collections.abc import Callable
from typing import Any

from updcomp.wire import costs, dtypes, errors, increments, streams
from updcomp.wire import kind as kind_
from updcomp.wire.coder import Coder


def kind_of(
    block: Any,
    *,
    number: int,
    name: str,
    places: Callable[[dtypes.Array, int, int, int], dtypes.Array],
    cost: Callable[[dtypes.Spec, int], costs.Cost],
    coder: Coder,
) -> kind_.Kind:
    """A kind of blocks of k integers at k positions that cost no bytes.

    Args:
      block: the NamedTuple (values: int32 (k,), step: float) that holds one.
      number: as in `Kind`.
      name: as in `Kind`.
      places: (old leaf, k, seed, leaf's index) -> int64 (k,), strictly ascending.
      cost: of `places`, from the leaf's spec and k.
      coder: of the integers.

    Returns:
      The kind.
    """

    def hold(held: Any) -> Any:
        return block(kind_.integers("values", held.values), float(held.step))

    def check(held: Any, old: dtypes.Array) -> None:
        dtypes.compute_dtype(old)
        increments.check_step(held.step)
        if held.values.ndim != 1 or len(held.values) > old.size:
            shape = held.values.shape
            raise errors.LeafError(f"values: expected at most {old.size} in one axis, found shape {shape}")

    def of_block(head: kind_.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
        count = kind_.bounded(head.size, spec.size)
        return costs.total(
            coder.values_cost(count, lanes),
            cost(spec, count),
            operations=increments.at_operations(spec, count),
            working_bytes=12 * count,
        )

    def head(held: Any, _: dtypes.Array) -> kind_.Head:
        return kind_.Head(found, 0, held.step, len(held.values))

    def write(held: Any, _: dtypes.Array, writer: streams.Writer) -> bool:
        coder.write_values(writer, held.values)
        return True

    def read(head: kind_.Head, old: dtypes.Array, reader: streams.Reader) -> Any:
        dtypes.compute_dtype(old)
        count = kind_.bounded(head.size, old.size)
        return block(coder.read_values(reader, count), head.step)

    def apply(held: Any, old: dtypes.Array, seed: int, index: int) -> dtypes.Array:
        return increments.at(old, places(old, len(held.values), seed, index), held.values, held.step)

    found = kind_.Kind(
        number=number,
        name=name,
        block=block,
        stepped=True,
        sized=True,
        viewed=False,
        hold=hold,
        check=check,
        cost=of_block,
        head=head,
        write=write,
        read=read,
        apply=apply,
    )
    return found

"""Exact: the leaf's new bits, lossless for every dtype, a move for every weight; or as `changes` where few move."""

from updcomp.wire import costs, dtypes, kind, streams, whole
from updcomp.wire.exact import Exact, hold
from updcomp.wire.kinds import changes, raw

__all__ = ["KIND", "Exact"]


_SMALL = 1 << 11  # weights of a leaf that is coded both ways


def _head(block: Exact, old: dtypes.Array) -> kind.Head:
    """Of the kind that fits how many weights change."""
    few = changes.changed(block.new, old)
    if few is None or (few and len(dtypes.flat_bits(old)) <= _SMALL and not _is_smaller(block, old)):
        return kind.Head(KIND, 0)
    return kind.Head(changes.KIND, 0, size=few)


def _is_smaller(block: Exact, old: dtypes.Array) -> bool:
    """Whether a small leaf is smaller as changes, the size in the header counted."""
    bits = []
    for found in (changes.KIND, KIND):
        writer = streams.Writer()
        was_written = found.write(block, old, writer)
        bits.append(writer.cost if was_written else 8.0 * old.nbytes)
    return bits[0] + 8 < bits[1]


def _cost(_: kind.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
    return whole.cost(spec, lanes)


def _write(block: Exact, old: dtypes.Array, writer: streams.Writer) -> bool | kind.Later:
    return whole.write(writer, block.new, old)


def _read(_: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Exact | kind.Later:
    new = whole.read(reader, old)
    return new._replace(finish=lambda: Exact(new.finish())) if isinstance(new, kind.Later) else Exact(new)


KIND = kind.Kind(
    number=1,
    name="exact",
    block=Exact,
    stepped=False,
    sized=False,
    viewed=False,
    hold=hold,
    check=raw.check,
    cost=_cost,
    head=_head,
    write=_write,
    read=_read,
    apply=raw.apply,
)

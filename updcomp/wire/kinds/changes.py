"""Changes: the leaf's new bits where few weights change, lossless for every dtype: work and bytes grow with these."""

import numpy as np

from updcomp.wire import changes, costs, dtypes, errors, kind, pieces, streams, workers
from updcomp.wire.exact import Exact, hold
from updcomp.wire.kinds import raw

_DENSE = 8  # of each piece at most one weight in so many changes; else the leaf is coded whole
_PIECE = 1 << 22  # weights of a piece


def changed(new: dtypes.Array, old: dtypes.Array) -> int | None:
    """How many patterns of a held leaf change; None where they are too many for this kind."""
    bits, before, found = dtypes.flat_bits(new), dtypes.flat_bits(old), 0
    for part in _parts(len(before)):
        here = int(np.count_nonzero(bits[part] != before[part]))
        found += here
        if here > _most(part):
            return None
    return found


def _head(block: Exact, old: dtypes.Array) -> kind.Head:
    return kind.Head(KIND, 0, size=changed(block.new, old))


def _cost(head: kind.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
    size = dtypes.elements(spec)
    count = kind.bounded(head.size, size // _DENSE)
    in_pieces = 2 * count >= pieces.LEAST
    many = len(_parts(size)) if in_pieces else 1
    return changes.cost(spec, count, many, pieces.lanes_of(2 * count // many) if in_pieces else lanes)


def _write(block: Exact, old: dtypes.Array, writer: streams.Writer) -> bool | kind.Later:
    count = changed(block.new, old)
    assert count is not None, "else it would be coded whole"
    layout = dtypes.layout(old)
    new, before = dtypes.flat_bits(block.new), dtypes.flat_bits(old)
    if 2 * count < pieces.LEAST:
        candidate = streams.Writer()
        changes.write(candidate, new, before, layout)
        smaller = candidate.cost < 8 * old.nbytes
        if smaller:
            writer.extend(candidate)
        return smaller
    parts = _parts(len(before))
    lanes = pieces.lanes_of(2 * count // len(parts))

    def piece(part: slice) -> bytes:
        own = pieces.Writer()
        if len(parts) > 1:
            own.number(int(np.count_nonzero(new[part] != before[part])))
        changes.write(own, new[part], before[part], layout)
        return own.pack(lanes)

    made = workers.each(piece, parts, pieces.at_once(old.nbytes))
    return kind.Later(lambda: pieces.together(made, old.nbytes))


def _read(head: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Exact | kind.Later:
    before, layout = dtypes.flat_bits(old), dtypes.layout(old)
    count = kind.bounded(head.size, len(before) // _DENSE)
    if 2 * count < pieces.LEAST:
        return Exact(dtypes.from_bits(changes.read(reader, before, count, layout), old))
    parts = _parts(len(before))
    own = pieces.readers(reader, len(parts), pieces.lanes_of(2 * count // len(parts)))
    counts = [one.number() for one in own] if len(parts) > 1 else [count]
    if max(counts) > count or sum(counts) != count:
        raise errors.CorruptUpdateError(f"count: expected {count} in all, found {sum(counts)}")
    new = np.empty_like(before)

    def piece(given: tuple[slice, int, pieces.Reader]) -> None:
        part, count, source = given
        if count > _most(part):
            raise errors.CorruptUpdateError(f"count: expected at most {_most(part)} in a piece, found {count}")
        changes.read(source, before[part], count, layout, out=new[part])
        source.finish()

    def finish() -> Exact:
        for _ in workers.each(piece, list(zip(parts, counts, own, strict=True)), pieces.at_once(old.nbytes)):
            pass
        return Exact(dtypes.from_bits(new, old))

    return kind.Later(finish)


def _most(part: slice) -> int:
    """Of a piece's weights those that may change."""
    return min((part.stop - part.start) // _DENSE, changes.MOST)


def _parts(size: int) -> list[slice]:
    return [slice(start, min(start + _PIECE, size)) for start in range(0, size, _PIECE)]


KIND = kind.Kind(
    number=10,
    name="changes",
    block=Exact,
    stepped=False,
    sized=True,
    viewed=False,
    hold=hold,
    check=raw.check,
    cost=_cost,
    head=_head,
    write=_write,
    read=_read,
    apply=raw.apply,
)

"""Differences: how versions 1 and 2 code an exact block, every weight as the difference of bit patterns."""

from updcomp.wire import contexts, costs, dtypes, kind, streams
from updcomp.wire.exact import Exact, hold
from updcomp.wire.kinds import raw


def _cost(_: kind.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
    count = dtypes.elements(spec)
    return costs.total(costs.tokens(count, lanes), operations=spec.nbytes, working_bytes=spec.nbytes)


def _head(_: Exact, __: dtypes.Array) -> kind.Head:
    return kind.Head(KIND, 0)


def _write(block: Exact, old: dtypes.Array, writer: streams.Writer) -> bool:
    return contexts.write_differences(writer, block.new, old)


def _read(_: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Exact:
    return Exact(contexts.read_differences(reader, old))


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

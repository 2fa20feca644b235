"""The blocks of an update, checked, applied and coded one after another."""

from collections.abc import Mapping

import numpy as np

from updcomp.wire import (
    costs,
    decoding,
    dtypes,
    errors,
    fingerprint,
    header,
    metadata,
    packet,
    rans,
    streams,
    versions,
    workers,
)
from updcomp.wire.kind import Block, Head, Later
from updcomp.wire.kinds import raw

_FINER = 0.7  # of the budget: what finer ways of coding may take


class Blocks:
    """The blocks of an update in the making; leaves are taken one after another, so that no two are needed at once."""

    def __init__(
        self,
        sent: packet.Packet,
        specs: Mapping[str, dtypes.Spec],
        budget: float,
        *,
        ahead: bool = True,
        finer: bool = True,
    ) -> None:
        """Without leaves.

        Args:
          sent: the packet.
          specs: of the model's leaves, in sorted name order.
          budget: factor of `costs.allowed`.
          ahead: whether leaves may be taken while those before are worked on; else a leaf is done when it is taken.
          finer: whether ways of coding may be used that take more than the headers say.
        """
        self._is_ahead = ahead
        self._sent, self._specs, self._budget = sent, specs, budget
        self._indices = {name: index for index, name in enumerate(specs)}
        self._charged = costs.Account(specs, 0, budget)
        # In proportion to the leaves that were taken, so that the first ones leave some to the last.
        allowed = costs.allowed(specs, budget)
        self._finer = finer * _FINER * allowed.operations / max(sum(map(_bytes, specs.values())), 1)
        self._before, self._after = fingerprint.Digests(), fingerprint.Digests()
        self._writer, self._heads = streams.Writer(0.0, _FINER * allowed.working_bytes), list[Head]()
        self._ahead = workers.Ahead[None]()

    def take(self, name: str, old: dtypes.Array) -> None:
        """The next held leaf of the base, and what the packet makes of it."""
        self._before.add(name, old)
        self._writer.allowed += self._finer * _bytes(self._specs[name])
        if name in self._sent.blocks:
            self._write(name, old)
        if not self._is_ahead:
            self._wait()
            self._before.wait()
            self._after.wait()

    def _write(self, name: str, old: dtypes.Array) -> None:
        block, head = self._block(name, old)
        with errors.of_leaf(name):
            cost = head.kind.cost(head, self._specs[name], rans.MAX_LANES)
        try:
            # Decoding is cheapest with the most lanes: a block that is beyond the budget even then is refused now.
            self._charged.charge(cost)
        except errors.CostError:
            self._refuse()
        with errors.of_leaf(name):
            new = head.kind.apply(block, old, self._sent.seed, head.leaf)
        if dtypes.same_bits(new, old):
            return
        self._after.add(name, new)
        written = head.kind.write(block, old, self._writer)
        if isinstance(written, Later):
            self._later(name, head, block, written)
            return
        if not written:
            raw.KIND.write(raw.Raw(*block), old, self._writer)
            head = _as_raw(head)
        self._heads.append(head)

    def _later(self, name: str, head: Head, block: Block, written: Later) -> None:
        """Keeps a place for what is written in threads."""
        place, index = self._writer.reserve(), len(self._heads)
        self._heads.append(head)

        def work() -> None:
            data = written.finish()
            if data is None:
                self._heads[index] = _as_raw(head)
            self._writer.fill(place, dtypes.hold(block[0]).tobytes() if data is None else data)

        size = 2 * self._specs[name].nbytes
        for _ in self._ahead.done(size):
            pass
        self._ahead.add(size, work)

    def close(self) -> None:
        """Ends the threads."""
        self._ahead.close()

    def parts(self, change: metadata.Change | None, *, compact: bool, base_print: bytes | None = None) -> header.Parts:
        """The update's parts, once all leaves are taken; with the fingerprint of the base where that has others."""
        self._wait()
        before = self._before.finish()
        size = fingerprint.SHORT_SIZE if compact else fingerprint.SIZE
        base = base_print or fingerprint.of_digests(before)
        result = fingerprint.of_digests(before | self._after.finish())
        sections = self._writer.finish()
        parts = header.Parts(
            versions.NEWEST,
            base[:size],
            result[:size],
            self._sent.seed,
            _without_default_views(self._heads, self._specs),
            *sections,
            change,
            self._sent.structure,
        )
        account = decoding.account(parts, 0, self._specs, self._budget)
        account.charge(self._writer.taken)
        return parts

    def _wait(self) -> None:
        for _ in self._ahead.done(None):
            pass

    def _block(self, name: str, old: dtypes.Array) -> tuple[Block, Head]:
        """A leaf's block, which fits it, and the header of that."""
        with errors.of_leaf(name):
            block = self._sent.blocks[name]
            kind = versions.kind_of(block)
            held = kind.hold(block)
            kind.check(held, old)
            return held, kind.head(held, old)._replace(leaf=self._indices[name])

    def _refuse(self) -> None:
        """Raises an error that says the cost of all blocks."""
        sent = ((name, spec) for name, spec in self._specs.items() if name in self._sent.blocks)
        heads = [self._block(name, np.empty(spec.shape, spec.dtype))[1] for name, spec in sent]
        parts = header.Parts(versions.NEWEST, b"", b"", self._sent.seed, heads, b"", b"", rans.MAX_LANES, b"")
        decoding.account(parts, 0, self._specs, self._budget)


def _bytes(spec: dtypes.Spec) -> int:
    """Of a leaf, and 1, so that an empty one counts."""
    return spec.nbytes + 1


def _as_raw(head: Head) -> Head:
    return Head(raw.KIND, head.leaf)


def _without_default_views(heads: list[Head], specs: Mapping[str, dtypes.Spec]) -> list[Head]:
    """The headers, without views where all of them are the default one."""
    if decoding.have_default_views(heads, specs):
        return [head._replace(view=None) for head in heads]
    return heads

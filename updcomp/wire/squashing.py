"""Several updates in a row as one, with the same result bit for bit."""

import functools
from collections.abc import Iterator, Mapping, Sequence

from updcomp.wire import apply as apply_
from updcomp.wire import container, decoding, dtypes, errors, fingerprint, header, recent
from updcomp.wire.kind import Block
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.raw import Raw
from updcomp.wire.packet import Packet


class _Row(Mapping[str, Block]):
    """The blocks of updates in a row as blocks of the first one's base; decoded when asked for, in sorted order.

    A leaf that one update touches keeps that update's block, if it says the same from the base with the one seed that
    an update has; what several touch becomes exact.
    """

    def __init__(self, updates: Sequence[bytes], base: dtypes.Model, seed: int, budget: float, *, exact: bool) -> None:
        self._updates, self._base, self._budget = updates, base, budget
        self._seed, self._exact = seed, exact
        self._specs = dtypes.specs(base)
        self._indices = {name: index for index, name in enumerate(self._specs)}
        self._parts = [header.parse(update, base) for update in updates]
        self._begin()
        self._names = sorted({name for blocks in self._blocks for name in blocks.names})
        self._places = {name: place for place, name in enumerate(self._names)}
        self.keeps = False  # whether a block is not exact

    def _begin(self) -> None:
        self._blocks = [
            decoding.Blocks(parts, len(update), self._specs, self._budget)
            for parts, update in zip(self._parts, self._updates, strict=True)
        ]
        self._next = 0

    def __getitem__(self, name: str) -> Block:
        if self._places[name] < self._next:
            self._begin()  # what is coded one after another is read so
        while True:
            reached = self._names[self._next]
            self._next += 1
            block = self._block(reached)
            if reached == name:
                return block

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:  # a Mapping's own would get the value
        return name in self._places

    def __len__(self) -> int:
        return len(self._names)

    def finish(self) -> None:
        """Checks that every update has been read to its end."""
        for blocks in self._blocks:
            blocks.finish()

    def _block(self, name: str) -> Block:
        """The one block of a leaf."""
        old = dtypes.hold(self._base[name])
        leaf, index, touched = old, self._indices[name], list[Block]()
        for parts, blocks in zip(self._parts, self._blocks, strict=True):
            if name in blocks.names:
                touched.append(blocks.read(name, leaf))
                with errors.of_leaf(name):
                    leaf = apply_.apply_block(touched[-1], leaf, seed=parts.seed, index=index)
        if len(touched) == 1 and not self._exact and self._says(touched[0], old, leaf, index):
            self.keeps |= not isinstance(touched[0], Exact)
            return touched[0]
        return Exact(leaf)

    def _says(self, block: Block, old: dtypes.Array, new: dtypes.Array, index: int) -> bool:
        """Whether a block gives the leaf with the seed of the new update as well."""
        if all(parts.seed == self._seed for parts in self._parts):
            return True
        again = apply_.apply_block(block, old, seed=self._seed, index=index)
        return dtypes.same_bits(again, new)


def squash(
    updates: Sequence[bytes],
    base: dtypes.Model,
    *,
    metadata: container.Texts | None = None,
    budget: float = 1.0,
    compact: bool = False,
) -> bytes:
    """One update with the effect of several in a row; it is made of each leaf's blocks, or exact, whichever is smaller.

    Args:
      updates: the first starts from the base, each other one from what the one before it makes.
      base: leaf name -> array; of a lazy model no more than a few leaves are held at a time.
      metadata: of the base's file, where an update covers them.
      budget: how much applying each of them may take, and the new one, as in `container.encode`.
      compact: as in `container.encode`.

    Returns:
      The update's bytes; its result has the fingerprint that the last one promises.

    Raises:
      WrongBaseError: an update does not start from what is before it.
      CorruptUpdateError: one is damaged, or the result is not what the last one promises.
      CostError: it takes more than the budget.
      Error: there is no update, or one covers metadata and none are given.

    >>> import numpy as np
    >>> from updcomp.wire.kinds.raw import Raw
    >>> models = [{"w": np.float32([number])} for number in range(3)]
    >>> pairs = zip(models, models[1:])
    >>> updates = [container.encode(Packet({"w": Raw(new["w"])}), old) for old, new in pairs]
    >>> container.apply_update(squash(updates, models[0]), models[0])["w"].tolist()
    [2.0]
    """
    base = recent.Recent(base)
    result = _check_row(updates, base)
    texts = _texts(updates, metadata)
    seed = _seed(updates)
    encoded = functools.partial(_encoded, updates, base, texts, budget, compact=compact)
    best, keeps = encoded(seed, exact=False)
    if keeps or seed:  # all blocks are exact already otherwise
        best = min(best, encoded(0, exact=True)[0], key=len)
    if not fingerprint.agree(found := header.fingerprints(best)[1], result):
        raise errors.CorruptUpdateError(f"result: expected the model {result.hex()}, found {found.hex()}")
    return best


def _check_row(updates: Sequence[bytes], base: dtypes.Model) -> bytes:
    """Checks that each update starts where the one before ends; returns the fingerprint of the last one's result."""
    if not updates:
        raise errors.Error("updates: expected at least one, found none")
    for number, update in enumerate(updates, 1):
        if container.structure_of(update) is not None:
            raise errors.Error(
                f"update {number} of {len(updates)}: expected one of the base's own leaves, found one that adds or "
                "removes some; apply it by itself, or make one update between the first model and the last"
            )
    container.check_base(updates[0], [fingerprint.of(base)])
    _, made = header.fingerprints(updates[0])
    for number, update in enumerate(updates[1:], 2):
        start, result = header.fingerprints(update)
        if not fingerprint.agree(start, made):
            raise errors.WrongBaseError(
                f"update {number} of {len(updates)}: expected one from the model {made.hex()} that the one before it "
                f"makes, found one from {start.hex()}; give them in the order in which they are applied"
            )
        made = result
    return made


def _texts(
    updates: Sequence[bytes], metadata: container.Texts | None
) -> tuple[container.Texts, container.Texts] | None:
    """The metadata before and after all updates; None if none covers them."""
    if all(header.parse(update).change is None for update in updates):
        return None
    if metadata is None:
        raise errors.Error("metadata: expected those of the base's file, since an update covers them, found none")
    new = dict(metadata)
    for update in updates:
        new = container.new_metadata(update, new)
    return metadata, new


def _encoded(
    updates: Sequence[bytes],
    base: dtypes.Model,
    texts: tuple[container.Texts, container.Texts] | None,
    budget: float,
    seed: int,
    *,
    exact: bool,
    compact: bool,
) -> tuple[bytes, bool]:
    """(the one update, whether a block of it is not exact)."""
    row = _Row(updates, base, seed, budget, exact=exact)
    update = container.encode(Packet(row, seed), base, metadata=texts, budget=budget, compact=compact)
    row.finish()
    return update, row.keeps


def _seed(updates: Sequence[bytes]) -> int:
    """The seed of the most blocks that may depend on it; 0 if there are none."""
    counts = {0: 0}
    for update in updates:
        parts = header.parse(update)
        found = sum(head.kind.block not in (Exact, Raw) for head in parts.heads)
        counts[parts.seed] = counts.get(parts.seed, 0) + found
    return max(counts, key=lambda seed: counts[seed])

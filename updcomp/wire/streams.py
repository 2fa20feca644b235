"""The three sections of an update's payload: raw bytes, plain extra bits, and coded segments of integers."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from updcomp.wire import bits, costs, dtypes, errors, models, rans, tokens

_ALPHABET_BITS = 8

Contexts: TypeAlias = Callable[[slice], dtypes.Array]
"""The contexts of a part of a segment, integers: worked out a chunk at a time, so that they take no memory."""


class Segment(NamedTuple):
    """A segment of integers as tokens and low bits."""

    symbols: dtypes.Array  # uint8 (n,)
    low: dtypes.Array  # uint64
    signed: bool

    @classmethod
    def of(cls, values: dtypes.Array, *, signed: bool) -> "Segment":
        """Tokens of int64 (n,) values; >= 0 unless signed."""
        return cls(*tokens.split(tokens.fold(values) if signed else values.astype(np.uint64)), signed)

    @property
    def alphabet(self) -> int:
        """One more than the largest token."""
        return int(self.symbols.max(initial=0)) + 1

    def best_scale(self) -> int:
        """The prior's scale that fits all of them best."""
        return models.best_scale(np.bincount(self.symbols, minlength=1), signed=self.signed)


class Writer:
    """Takes an update's payload, one segment after another."""

    vector: dtypes.Array | None = None  # of the last mapped block, which the next may share

    def __init__(self, allowed: float = math.inf, memory: float = math.inf) -> None:
        """An empty payload.

        Args:
          allowed: operations that finer ways of coding may take, beyond what headers say.
          memory: working bytes that each of them may.
        """
        self._memory = memory
        self.allowed = allowed
        self.taken = costs.Cost(0, 0)  # of these, and the most working bytes
        self._raw: list[bytes] = []
        self._coded = rans.Encoder()
        self._extra = bits.Writer()

    def may_take(self, cost: costs.Cost) -> bool:
        """Whether a finer way of coding is allowed."""
        return cost.operations <= self.allowed and cost.working_bytes <= self._memory

    def take(self, cost: costs.Cost) -> None:
        """Allows for a finer way of coding."""
        self.allowed -= cost.operations
        most = max(self.taken.working_bytes, cost.working_bytes)
        self.taken = costs.Cost(self.taken.operations + cost.operations, most)

    def raw(self, leaf: dtypes.Array) -> None:
        """The bytes of a held array."""
        self._raw.append(leaf.tobytes())

    def reserve(self) -> int:
        """A place in the raw section for bytes that `fill` says later."""
        self._raw.append(b"")
        return len(self._raw) - 1

    def fill(self, place: int, data: bytes) -> None:
        """The bytes at a place that `reserve` returned."""
        self._raw[place] = data

    def symbol(self, value: int, width: int) -> None:
        """One of 2^width equal symbols."""
        size = rans.TOTAL >> width
        self._coded.push(np.array([value * size]), np.array([size]))

    def number(self, value: int) -> None:
        """A count or rank: its bit length as one of 64 equal symbols, then the bits below the top one, plain.

        Args:
          value: from 0 to 2^63 - 1.
        """
        length = value.bit_length()
        self.symbol(length, 6)
        if length > 1:
            low = value - (1 << (length - 1))
            self._extra.push(np.array([low], np.uint64), np.array([length - 1], np.uint8))

    def integers(self, values: dtypes.Array, *, signed: bool) -> None:
        """A segment in one context: its prior's scale and its tokens; nothing if it is empty.

        Args:
          values: integers (n,); >= 0 unless signed.
          signed: whether they can be negative.
        """
        if len(values):
            segment = Segment.of(values.astype(np.int64), signed=signed)
            scale = segment.best_scale()
            self.symbol(scale, models.SCALE_BITS)
            self.tokens(segment, np.array([scale]))

    def tokens(self, segment: Segment, scales: dtypes.Array, contexts: Contexts | None = None) -> None:
        """The size of a segment's alphabet and its tokens, and then their low bits.

        Args:
          segment: of n integers.
          scales: integers (contexts,), the scales of the priors.
          contexts: of the n integers, or None for one context.
        """
        self.symbols(segment, scales, contexts, models.chunks(len(segment.symbols)))
        self._extra.push(segment.low, tokens.widths(segment.symbols))

    def symbols(
        self,
        segment: Segment,
        scales: dtypes.Array,
        contexts: Contexts | None,
        chunks: Iterable[slice],
        *,
        count_weight: int = models.COUNT_WEIGHT,
    ) -> None:
        """As `tokens`, in other chunks, and without the low bits."""
        self.alphabet(segment.alphabet)
        adaptive = models.Adaptive(scales, segment.alphabet, signed=segment.signed, count_weight=count_weight)
        for part in chunks:
            self.chunk(adaptive, segment.symbols[part], None if contexts is None else contexts(part))

    def alphabet(self, size: int) -> None:
        """The size of an alphabet, 1 to `tokens.COUNT`."""
        self.symbol(size, _ALPHABET_BITS)

    def chunk(self, adaptive: models.Adaptive, symbols: dtypes.Array, context: dtypes.Array | None) -> None:
        """Tokens whose contexts are known, uint8 (n,); they are counted once they are coded."""
        present, places = _present(context)
        self._coded.code(symbols, adaptive.frequencies(present), places)
        adaptive.update(symbols, context)

    def choices(self, starts: dtypes.Array, sizes: dtypes.Array) -> None:
        """Choices by their intervals, each coded by itself: what it is can depend on the one before."""
        self._coded.push(starts, sizes, alone=True)

    def late(self, values: dtypes.Array, widths: dtypes.Array) -> None:
        """Plain bits that are read only when every token has been."""
        self._extra.push(values, widths)

    def places(self, places: dtypes.Array, size: int) -> None:
        """Which of so many things are meant, where both sides know how many are: at most about a bit for each thing.

        Args:
          places: integers (k,), strictly ascending, from 0 to size - 1.
          size: number of things.
        """
        if 0 < len(places) < size:
            frequencies = _two_symbols(len(places), size)
            starts, flags = rans.starts_of(frequencies), np.zeros(size, np.uint8)
            flags[places] = 1
            for part in models.chunks(size):
                self._coded.push(starts[0, flags[part]], frequencies[0, flags[part]])

    @property
    def cost(self) -> float:
        """Bits written so far, without the lanes."""
        return 8 * sum(map(len, self._raw)) + self._coded.cost + self._extra.cost

    def extend(self, other: "Writer") -> None:
        """Everything that was written to another writer."""
        self._raw += other._raw
        self._coded.extend(other._coded)
        self._extra.extend(other._extra)

    def finish(self, lanes: int | None = None, *, short: bool = True) -> tuple[bytes, bytes, int, bytes]:
        """(raw section, extra bits, lanes, coded section); lanes and short as in `rans.Encoder.finish`."""
        lanes, coded = self._coded.finish(lanes, short=short)
        return b"".join(self._raw), self._extra.finish(), lanes, coded


class Reader:
    """Reads what `Writer` wrote, in the same order; raises CorruptUpdateError where that ends too early."""

    vector: dtypes.Array | None = None  # as in `Writer`

    def __init__(
        self,
        raw: bytes | memoryview,
        extra: bytes | memoryview,
        lanes: int,
        coded: bytes | memoryview,
        *,
        short: bool = True,
        charge: Callable[[costs.Cost], None] = lambda _: None,
    ) -> None:
        """At the start of the sections.

        Args:
          raw: section.
          extra: section.
          lanes: of the coded section.
          coded: section.
          short: as in `rans.Decoder`.
          charge: takes what is found to cost more than headers say, before it is paid; CostError.
        """
        self.charge = charge
        self._raw = raw
        self._coded = rans.Decoder(coded, lanes, short=short)
        self._extra = bits.Reader(extra)

    def raw(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dtypes.Array:
        """An array of this shape and dtype; a copy."""
        size = math.prod(shape) * dtype.itemsize
        if size > len(self._raw):
            raise errors.CorruptUpdateError(f"raw section: expected {size} more bytes, found {len(self._raw)}")
        data, self._raw = self._raw[:size], self._raw[size:]
        return np.frombuffer(data, np.uint8).copy().view(dtype).reshape(shape)

    def choose(self, size: int) -> int:
        """0 or 1, of `Writer.choices`; 0 has so many of 2^14 slots."""
        return self._coded.choose(size)

    def choose_among(self, bounds: dtypes.Array) -> int:
        """Which interval, of `Writer.choices`; int64 (n + 1,), where each begins and the last one ends, at 2^14."""
        return self._coded.choose_among(bounds)

    def symbol(self, width: int) -> int:
        """One of 2^width equal symbols."""
        return self._coded.equal(width)

    def number(self) -> int:
        """A count or rank."""
        length = self.symbol(6)
        if length <= 1:
            return length
        low = self._extra.pull(np.array([length - 1], np.uint8))
        return (1 << (length - 1)) + int(low[0])

    def integers(self, count: int, *, signed: bool, dtype: type[np.signedinteger[Any]] = np.int64) -> dtypes.Array:
        """A segment in one context.

        Args:
          count: number of integers.
          signed: as in `Writer.integers`.
          dtype: of the result.

        Returns:
          integers (count,).
        """
        values = np.empty(count, dtype)
        if count:
            scale = self.symbol(models.SCALE_BITS)
            self.tokens(values, np.array([scale]), signed=signed)
        return values

    def tokens(
        self, values: dtypes.Array, scales: dtypes.Array, contexts: Contexts | None = None, *, signed: bool = True
    ) -> None:
        """The inverse of `Writer.tokens`.

        Args:
          values: integers (n,), filled.
          scales: integers (contexts,), the scales of the priors.
          contexts: of the n integers, or None for one context.
          signed: as in `Writer.integers`.
        """
        for part, symbols in self._chunks(scales, contexts, models.chunks(len(values)), signed=signed):
            folded = tokens.join(symbols, self._extra.pull(tokens.widths(symbols)))
            wide = tokens.unfold(folded) if signed else folded.view(np.int64)
            values[part] = wide
            if values.dtype != np.int64 and (values[part] != wide).any():
                raise errors.CorruptUpdateError(f"values: expected {values.dtype}, found larger integers")

    def symbols(
        self,
        count: int,
        scales: dtypes.Array,
        contexts: Contexts | None,
        chunks: Iterable[slice],
        *,
        signed: bool = True,
        count_weight: int = models.COUNT_WEIGHT,
    ) -> dtypes.Array:
        """The inverse of `Writer.symbols`: uint8 (count,), the tokens."""
        found = np.empty(count, np.uint8)
        for part, symbols in self._chunks(scales, contexts, chunks, signed=signed, count_weight=count_weight):
            found[part] = symbols
        return found

    def late(self, widths: dtypes.Array) -> dtypes.Array:
        """The inverse of `Writer.late`: uint64 (n,)."""
        return self._extra.pull(widths)

    def piece(self) -> memoryview:
        """The rest of the raw section, of which `skip` says how much is used."""
        return memoryview(self._raw)

    def skip(self, size: int) -> None:
        """Leaves so many bytes of the raw section behind."""
        self._raw = self._raw[size:]

    def _chunks(
        self,
        scales: dtypes.Array,
        contexts: Contexts | None,
        chunks: Iterable[slice],
        *,
        signed: bool,
        count_weight: int = models.COUNT_WEIGHT,
    ) -> Iterator[tuple[slice, dtypes.Array]]:
        """The tokens of a segment, chunk by chunk."""
        alphabet = self.alphabet()
        adaptive = models.Adaptive(scales, alphabet, signed=signed, count_weight=count_weight)
        largest = -1
        for part in chunks:
            symbols = self.chunk(adaptive, part.stop - part.start, None if contexts is None else contexts(part))
            largest = max(largest, int(symbols.max(initial=0)))
            yield part, symbols
        if largest >= 0:
            expect_largest(largest, alphabet)

    def alphabet(self) -> int:
        """The inverse of `Writer.alphabet`."""
        size = self.symbol(_ALPHABET_BITS)
        if not 0 < size <= tokens.COUNT:
            raise errors.CorruptUpdateError(f"segment: expected 1 to {tokens.COUNT} tokens, found {size}")
        return size

    def chunk(self, adaptive: models.Adaptive, count: int, context: dtypes.Array | None) -> dtypes.Array:
        """The inverse of `Writer.chunk`: uint8 (count,)."""
        present, index = _present(context)
        symbols = self._coded.pull(count, self._coded.table(adaptive.frequencies(present), count), index)
        adaptive.update(symbols, context)
        return symbols

    def places(self, count: int, size: int) -> dtypes.Array:
        """The inverse of `Writer.places`: int64 (count,), of count <= size."""
        if count in (0, size):
            return np.arange(count)
        frequencies, found, left = _two_symbols(count, size), list[dtypes.Array](), count
        for part in models.chunks(size):
            length = part.stop - part.start
            flags = self._coded.pull(length, self._coded.table(frequencies, length))
            found.append(np.flatnonzero(flags) + part.start)
            left -= len(found[-1])
            if left < 0:
                break
        if left:
            raise errors.CorruptUpdateError(
                f"places: expected {count} of {size}, found {'more' if left < 0 else 'fewer'}"
            )
        return np.concatenate(found)

    def finish(self, *, idle_lanes: bool = False) -> None:
        """Checks that all sections end here; idle lanes as in `rans.Decoder.finish`."""
        if len(self._raw):
            raise errors.CorruptUpdateError(f"raw section: expected no more bytes, found {len(self._raw)}")
        self._coded.finish(idle_lanes=idle_lanes)
        self._extra.finish()


def _present(context: dtypes.Array | None) -> tuple[dtypes.Array | slice, dtypes.Array | None]:
    """The contexts that occur, ascending, and the place of each one among them; None where there is but one."""
    if context is None:
        return slice(None), None
    occurs = np.bincount(context) > 0
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[context]


def expect_largest(largest: int, alphabet: int) -> None:
    """Checks that the largest token of an alphabet is in use.

    Raises:
      CorruptUpdateError: it is not.
    """
    if largest != alphabet - 1:
        raise errors.CorruptUpdateError(f"segment: expected {alphabet} tokens in use, found {largest + 1}")


def _two_symbols(count: int, size: int) -> dtypes.Array:
    """int64 (1, 2): the frequencies of 0 and 1 where `count` of `size` symbols are 1."""
    ones = min(max((rans.TOTAL * count + size // 2) // size, 1), rans.TOTAL - 1)
    return np.array([[rans.TOTAL - ones, ones]])

"""Interleaved range asymmetric numeral systems (rANS) in NumPy: one stream of bytes for many segments of symbols.

A lane is one 32-bit state x. A symbol whose interval of the 2^14 slots is [start, start + size) maps
x -> (x // size) 2^14 + x % size + start; before that, a lane with x >= size 2^18 emits its low 16 bits. The decoder
does the inverse in the opposite order: slot = x % 2^14, x -> size (x // 2^14) + slot - start, and a lane that fell
below 2^16 takes the next word. Symbol i of a segment belongs to lane i % lanes, so that one step is a few NumPy
operations over all lanes, and the lanes' states are paid once for all segments.

Duda (2013), arXiv:1311.2540; interleaving: Giesen (2014), arXiv:1402.3392.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from updcomp.wire import dtypes, errors

PRECISION = 14
TOTAL = 1 << PRECISION
MAX_LANES = 1 << 12
LOWEST = 1 << 16
_BYTES_PER_LANE = 1536  # 4 bytes of state for so many of payload: .26 %
_FEW_LANES = 256
_FEW_WORDS = 1 << 17
_SLOTS_PER_SYMBOL = 32  # of a table that are laid out in the time of one bisection
_SLOTS_PER_STEP = 1024  # and in the time that a step's bisection takes beside
_STEPS_BITS = 16  # a writer's stream takes at most about 2^16 steps, so that few bytes never take long to decode


def choose_lanes(payload_bytes: float, symbols: int, longest: int) -> int:
    """The number of lanes, a power of two: 4 bytes each for at most .26 % of the payload, or as many as speed needs.

    Args:
      payload_bytes: of all segments.
      symbols: of all segments.
      longest: symbols of the longest segment, which uses every lane.

    Returns:
      From 1 to `MAX_LANES`.

    >>> choose_lanes(100, 500, 500), choose_lanes(1e6, 5_000_000, 1 << 20), choose_lanes(1e3, 5_000_000, 1 << 20)
    (1, 512, 128)
    """
    affordable = 1 << max((int(payload_bytes) // _BYTES_PER_LANE).bit_length() - 1, 0)
    needed = 1 << ((symbols - 1) >> _STEPS_BITS).bit_length()
    return min(MAX_LANES, max(affordable, needed), 1 << longest.bit_length() >> 1)


class Table(NamedTuple):
    """All slots of a few contexts: entry context << 14 | slot of each array."""

    sizes: dtypes.Array  # size of the interval that holds the slot
    offsets: dtypes.Array  # slot minus the start of that interval
    symbols: dtypes.Array  # uint8: its symbol

    @classmethod
    def of(cls, frequencies: dtypes.Array, lanes: int = 1) -> "Table":
        """Lays out the slots.

        Args:
          frequencies: int64 (contexts, symbols <= 256), each at least 1, each row's sum `TOTAL`.
          lanes: of the decoder: narrow tables are laid out and read faster, wide ones save few lanes a conversion.

        Returns:
          A table of int64 for few lanes, else of uint16.
        """
        dtype = np.dtype(np.int64 if lanes <= _FEW_LANES else np.uint16)
        contexts, symbols = frequencies.shape
        counts = frequencies.reshape(-1)
        offsets = np.tile(np.arange(TOTAL, dtype=dtype), contexts)
        offsets -= np.repeat(starts_of(frequencies).reshape(-1).astype(dtype), counts)
        names = np.tile(np.arange(symbols, dtype=np.uint8), contexts)
        return cls(np.repeat(counts.astype(dtype), counts), offsets, np.repeat(names, counts))

    def symbols_at(self, slots: dtypes.Array) -> dtypes.Array:
        """uint8: the symbols of these slots."""
        return self.symbols.take(slots, mode="clip")


class Intervals(NamedTuple):
    """As `Table`, for fewer symbols than it takes to lay one out: the intervals alone, found by bisection."""

    sizes: dtypes.Array  # int64 (intervals,)
    starts: dtypes.Array  # int64 (intervals,), ascending: those of context c begin at c << 14
    symbols: dtypes.Array  # uint8 (intervals,)

    @classmethod
    def of(cls, frequencies: dtypes.Array) -> "Intervals":
        """Of frequencies as `Table.of` takes them."""
        contexts, symbols = frequencies.shape
        sizes = frequencies.reshape(-1)
        return cls(sizes, np.cumsum(sizes) - sizes, np.tile(np.arange(symbols, dtype=np.uint8), contexts))

    def look_up(self, slots: dtypes.Array, sizes: dtypes.Array, offsets: dtypes.Array) -> None:
        """Fills in the sizes and offsets of these slots."""
        found = self._find(slots)
        self.sizes.take(found, out=sizes)
        np.subtract(slots, self.starts[found], out=offsets)

    def symbols_at(self, slots: dtypes.Array) -> dtypes.Array:
        """uint8: the symbols of these slots."""
        return self.symbols[self._find(slots)]

    def _find(self, slots: dtypes.Array) -> dtypes.Array:
        return np.searchsorted(self.starts, slots, side="right") - 1


def starts_of(frequencies: dtypes.Array) -> dtypes.Array:
    """The first slot of every symbol: the sum of the frequencies before it in its row."""
    return np.cumsum(frequencies, axis=1) - frequencies


class Encoder:
    """Collects intervals, segment by segment, and makes the stream in the end, for it is made backwards."""

    def __init__(self) -> None:
        """An empty stream."""
        self._segments: list[tuple[dtypes.Array, dtypes.Array]] = []
        self._longest: list[int] = []  # symbols of each segment that are coded at once

    def push(self, starts: dtypes.Array, sizes: dtypes.Array, *, alone: bool = False) -> None:
        """Adds a segment.

        Args:
          starts: integers (n,), first slots of the symbols' intervals.
          sizes: integers (n,), sizes of the intervals, from 1 to 2^14.
          alone: whether each symbol is a segment of its own.
        """
        if len(starts):
            self._segments.append((starts.astype(np.uint16), sizes.astype(np.uint16)))
            self._longest.append(1 if alone else len(starts))

    @property
    def cost(self) -> float:
        """The ideal length of everything pushed, in bits."""
        return sum(information(sizes) for _, sizes in self._segments)

    def extend(self, other: "Encoder") -> None:
        """Adds the segments of another encoder."""
        self._segments += other._segments
        self._longest += other._longest

    def finish(
        self, lanes: int | None = None, first: dtypes.Array | int = LOWEST, *, short: bool = False
    ) -> tuple[int, bytes]:
        """Encodes everything pushed.

        Args:
          lanes: a power of two; chosen from the size of the payload if not given.
          first: the state, or integers (lanes,), that the encoder begins with and the decoder ends with.
          short: whether one lane alone begins with 0, which saves two bytes, or more where few symbols are coded.

        Returns:
          (lanes, the stream): the decoder's initial states, 4 bytes each, then the words in the order of reading; or
          (0, b"") where nothing was pushed.
        """
        if not self._segments:
            return 0, b""
        count = sum(len(sizes) for _, sizes in self._segments)
        lanes = lanes or choose_lanes(self.cost / 8, count, max(self._longest))
        states = np.zeros(lanes, np.int64) + (0 if short and lanes == 1 else first)
        words: list[dtypes.Array] = []
        for starts, sizes in self._steps(lanes):
            state = states[: len(sizes)]
            emitting = np.flatnonzero((state >> 18) >= sizes)
            if len(emitting):
                emitted = state[emitting]
                words.append(emitted.astype("<u2"))
                state[emitting] = emitted >> 16
            # Exact: no quotient is nearer than 2^-14 below an integer, and a state has 32 bits.
            quotient = (state / sizes).astype(np.int64)
            # quotient 2^14 + remainder + start, with the remainder state - quotient size.
            state += quotient * (TOTAL - sizes) + starts
        words.reverse()
        if short and lanes == 1 and not words:
            return lanes, states.astype("<u4").tobytes().rstrip(b"\0")
        return lanes, b"".join([states.astype("<u4").tobytes(), *(word.tobytes() for word in words)])

    def _steps(self, lanes: int) -> Iterator[tuple[dtypes.Array, dtypes.Array]]:
        """The intervals of every step from the last to the first."""
        for (starts, sizes), longest in zip(reversed(self._segments), reversed(self._longest), strict=True):
            width = min(lanes, longest)
            for start in range((len(sizes) - 1) // width * width, -1, -width):
                step = slice(start, start + width)
                yield starts[step].astype(np.int64), sizes[step].astype(np.int64)


def information(sizes: dtypes.Array) -> float:
    """The ideal length of symbols with these interval sizes: sum of log2(2^14 / size), in bits.

    >>> information(np.array([1 << 13, 1 << 14]))
    1.0
    """
    if len(sizes) < TOTAL:
        return float(PRECISION * len(sizes) - np.log2(sizes.astype(np.float64)).sum())
    histogram = np.bincount(sizes, minlength=TOTAL + 1)
    present = np.flatnonzero(histogram)
    return float(histogram[present] @ (PRECISION - np.log2(present)))


class Decoder:
    """Reads a stream segment by segment."""

    def __init__(self, data: bytes | memoryview, lanes: int, *, short: bool = False) -> None:
        """Reads the states.

        Args:
          data: as `Encoder.finish` made it.
          lanes: as it returned them.
          short: as it took it.

        Raises:
          CorruptUpdateError: the stream is too short for its lanes, or of odd length.
        """
        self._is_short = short and lanes == 1
        if self._is_short and len(data) < 4:
            if len(data) and not data[-1]:
                raise errors.CorruptUpdateError("coded section: expected no zeros at the end of its only state")
            data = bytes(data).ljust(4, b"\0")
        if lanes < 0 or lanes > MAX_LANES or len(data) < 4 * lanes or len(data) % 2:
            raise errors.CorruptUpdateError(
                f"coded section: expected the states of {lanes} lanes and 16-bit words, found {len(data)} bytes"
            )
        self._states = np.frombuffer(data, "<u4", lanes).astype(np.int64)
        if (self._states < LOWEST).any() and not self._is_short:
            raise errors.CorruptUpdateError(f"coded section: expected states of at least {LOWEST}, found smaller ones")
        words = np.frombuffer(data, "<u2", offset=4 * lanes)
        # Few words are converted at once, which saves a conversion in every step; many stay as they are.
        self._words = words.astype(np.int64) if len(words) <= _FEW_WORDS else words
        self._next = 0
        self._symbols = 0
        self._longest = 0

    def table(self, frequencies: dtypes.Array, count: int) -> Table | Intervals:
        """What is fastest for so many symbols; frequencies as `Table.of` takes them."""
        steps = -(-count // max(len(self._states), 1))
        worth = _SLOTS_PER_SYMBOL * count + _SLOTS_PER_STEP * steps
        if len(frequencies) << PRECISION > worth:
            return Intervals.of(frequencies)
        return Table.of(frequencies, len(self._states))

    def pull(self, count: int, table: Table | Intervals, contexts: dtypes.Array | None = None) -> dtypes.Array:
        """Decodes a segment.

        Args:
          count: number of symbols.
          table: of all contexts.
          contexts: integers (count,), which context each symbol was coded in; all 0 if not given.

        Returns:
          uint8 (count,).

        Raises:
          CorruptUpdateError: the stream ends before the segment does, or has too few lanes.
        """
        lanes = len(self._states)
        self._count(count)
        slots = np.zeros(count, np.int64) if contexts is None else contexts.astype(np.int64) << PRECISION
        size: dtypes.Array = np.empty(lanes, table.sizes.dtype)
        offset: dtypes.Array = np.empty(lanes, table.sizes.dtype)
        below = np.empty(lanes, bool)
        low = np.empty(lanes, np.int64)
        for start in range(0, count, lanes or 1):
            slot = slots[start : start + lanes]
            n = len(slot)
            if n < lanes:
                size, offset, below, low = size[:n], offset[:n], below[:n], low[:n]
            state = self._states[:n]
            np.bitwise_and(state, TOTAL - 1, out=low)
            slot |= low
            if isinstance(table, Table):
                # The indices are in range by construction; "clip" avoids the copy that checking them would make.
                table.sizes.take(slot, out=size, mode="clip")
                table.offsets.take(slot, out=offset, mode="clip")
            else:
                table.look_up(slot, size, offset)
            state >>= PRECISION
            state *= size
            state += offset
            np.less(state, LOWEST, out=below)
            hungry = below.nonzero()[0]
            if len(hungry):
                self._feed(state, hungry)
        return table.symbols_at(slots)

    def choose(self, size: int) -> int:
        """Decodes a segment of one symbol, 0 or 1.

        Args:
          size: of the interval of 0, from 1 to 2^14 - 1.

        Returns:
          The symbol.

        Raises:
          CorruptUpdateError: as `pull`.
        """
        slot = self._slot()
        if slot < size:
            self._advance(slot, 0, size)
            return 0
        self._advance(slot, size, TOTAL - size)
        return 1

    def choose_among(self, bounds: dtypes.Array) -> int:
        """Decodes a segment of one symbol.

        Args:
          bounds: int64 (n + 1,), strictly ascending from 0 to 2^14.

        Returns:
          The symbol, below n.

        Raises:
          CorruptUpdateError: as `pull`.
        """
        slot = self._slot()
        found = int(np.searchsorted(bounds, slot, side="right")) - 1
        start = int(bounds[found])
        self._advance(slot, start, int(bounds[found + 1]) - start)
        return found

    def _slot(self) -> int:
        """Of the next symbol, where it is a segment of its own."""
        self._count(1)
        return int(self._states[0]) & (TOTAL - 1)

    def _advance(self, slot: int, start: int, size: int) -> None:
        """Leaves a symbol behind."""
        state = size * (int(self._states[0]) >> PRECISION) + slot - start
        self._states[0] = state
        if state < LOWEST:
            self._feed(self._states[:1], np.zeros(1, np.int64))

    def _count(self, count: int) -> None:
        """Counts the symbols of a segment."""
        lanes = len(self._states)
        self._symbols += count
        self._longest = max(self._longest, count)
        if self._symbols > lanes << (_STEPS_BITS + 1) and lanes < MAX_LANES:
            raise errors.CorruptUpdateError(f"coded section: {lanes} lanes are too few for {self._symbols} symbols")

    def _feed(self, state: dtypes.Array, hungry: dtypes.Array) -> None:
        """Gives the next words to the lanes that need one."""
        words = self._words[self._next : self._next + len(hungry)]
        if len(words) < len(hungry):
            if self._is_short:
                return
            raise errors.CorruptUpdateError("coded section: it ends before its symbols do")
        self._next += len(hungry)
        state[hungry] = state[hungry] << 16 | words

    def finish(self, *, idle_lanes: bool = False) -> None:
        """Checks that all words were read and every lane is back where the encoder began.

        Args:
          idle_lanes: whether there may be more lanes than any segment had symbols.

        Raises:
          CorruptUpdateError: they were not, so some byte is not as it was written.
        """
        if not idle_lanes and len(self._states) > self._longest:
            raise errors.CorruptUpdateError(
                f"coded section: expected at most {self._longest} lanes, found {len(self._states)}"
            )
        if (self.last() != (0 if self._is_short else LOWEST)).any():
            raise errors.CorruptUpdateError("coded section: it does not end where its symbols do")

    def last(self) -> dtypes.Array:
        """The states once all symbols are read: int64 (lanes,), those that the encoder began with.

        Raises:
          CorruptUpdateError: words are left.
        """
        if self._next != len(self._words):
            raise errors.CorruptUpdateError("coded section: it does not end where its symbols do")
        return self._states

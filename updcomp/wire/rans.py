"""Interleaved range asymmetric numeral systems (rANS) in NumPy: one stream of bytes for many segments of symbols.

A lane is one 32-bit state x. A symbol whose interval of the 2^14 slots is [start, start + size) maps
x -> (x // size) 2^14 + x % size + start; before that, a lane with x >= size 2^18 emits its low 16 bits. The decoder
does the inverse in the opposite order: slot = x % 2^14, x -> size (x // 2^14) + slot - start, and a lane that fell
below 2^16 takes the next word. Symbol i of a segment belongs to lane i % lanes, so that one step is a few NumPy
operations over all lanes, and the lanes' states are paid once for all segments.

Duda (2013), arXiv:1311.2540; interleaving: Giesen (2014), arXiv:1402.3392.
"""

import functools

import numpy as np

from updcomp.wire import dtypes, errors, singly, tables

PRECISION, TOTAL = tables.PRECISION, tables.TOTAL
MAX_LANES = 1 << 12
LOWEST = singly.LOWEST
_BYTES_PER_LANE = 1536  # 4 bytes of state for so many of payload: .26 %
_FEW_WORDS = 1 << 17
_SLOTS_PER_SYMBOL = 64  # of a table that are laid out in the time of one bisection
_SLOTS_PER_STEP = 8192  # and in the time that a step's bisection takes beside
_BLOCK = 1 << 14  # symbols at a time, a multiple of all lanes: what is made of them stays in the cache
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
            self._segments.append((starts.astype(np.uint16, copy=False), sizes.astype(np.uint16, copy=False)))
            self._longest.append(1 if alone else len(starts))

    def code(self, symbols: dtypes.Array, frequencies: dtypes.Array, contexts: dtypes.Array | None = None) -> None:
        """Adds a segment.

        Args:
          symbols: integers (n,).
          frequencies: as `tables.Table.of` takes them.
          contexts: integers (n,), which context each symbol has; all 0 if not given.
        """
        index = symbols.astype(np.intp)
        if contexts is not None:
            index += np.multiply(contexts, frequencies.shape[1], dtype=np.intp)
        self.push(*(part.astype(np.uint16).take(index) for part in (starts_of(frequencies), frequencies)))

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
        states = np.zeros(lanes) + (0 if short and lanes == 1 else first)
        words: list[dtypes.Array] = []
        for (starts, sizes), longest in zip(reversed(self._segments), reversed(self._longest), strict=True):
            if (width := min(longest, lanes)) <= singly.MOST:
                few = states[:width].astype(np.int64).tolist()
                words.append(np.array(singly.encode(few, starts.tolist(), sizes.tolist()), "<u2"))
                states[:width] = few
            else:
                _encode(states, starts, sizes, words)
        words.reverse()
        if short and lanes == 1 and not any(map(len, words)):
            return lanes, states.astype("<u4").tobytes().rstrip(b"\0")
        return lanes, b"".join([states.astype("<u4").tobytes(), *(word.tobytes() for word in words)])


def _encode(states: dtypes.Array, starts: dtypes.Array, sizes: dtypes.Array, words: list[dtypes.Array]) -> None:
    """Encodes a segment from its last step to its first, in float64, which is exact: states have 32 bits.

    Args:
      states: float64 (lanes,); they are changed.
      starts: uint16 (n,), as `Encoder.push` takes them.
      sizes: uint16 (n,).
      words: of all segments, step by step; those of this one are added.
    """
    lanes = len(states)
    for first in range((len(sizes) - 1) // _BLOCK * _BLOCK, -1, -_BLOCK):
        size, start = (part[first : first + _BLOCK].astype(np.float64) for part in (sizes, starts))
        limit, rest = size * (1 << 18), TOTAL - size
        for at in range((len(size) - 1) // lanes * lanes, -1, -lanes):
            step = slice(at, at + lanes)
            state = states[: len(size) - at]
            emitting = (state >= limit[step]).nonzero()[0]
            if emitting.size:
                emitted = state[emitting].astype(np.uint32)
                words.append(emitted.astype("<u2"))
                state[emitting] = emitted >> np.uint32(16)
            # No quotient is nearer than 2^-14 below an integer. The new state is quotient 2^14 + remainder + start,
            # with the remainder state - quotient size.
            quotient = np.floor(state / size[step])
            quotient *= rest[step]
            state += quotient
            state += start[step]


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

    def table(self, frequencies: dtypes.Array, count: int) -> tables.Slots:
        """What is fastest for so many symbols; frequencies as `tables.Table.of` takes them."""
        if min(len(self._states), count) <= singly.MOST:
            return tables.Lists.of(frequencies)
        steps = -(-count // max(len(self._states), 1))
        worth = _SLOTS_PER_SYMBOL * count + _SLOTS_PER_STEP * steps
        if len(frequencies) << PRECISION > worth:
            return tables.Intervals.of(frequencies)
        return tables.Table.of(frequencies)

    def equal(self, width: int) -> int:
        """One of 2^width equal symbols."""
        return int(self.pull(1, _equal_symbols(width))[0])

    def pull(self, count: int, table: tables.Slots, contexts: dtypes.Array | None = None) -> dtypes.Array:
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
        self._count(count)
        found = np.empty(count, np.uint8)
        for start in range(0, count, _BLOCK):
            part = slice(start, min(start + _BLOCK, count))
            bases: dtypes.Array = np.zeros(part.stop - start, np.int64)
            if contexts is not None:
                np.copyto(bases, contexts[part])
                bases <<= PRECISION
            if isinstance(table, tables.Lists):
                found[part] = self._singly(bases, table)
            else:
                found[part] = self._in_steps(bases, table)
        return found

    def _in_steps(self, slots: dtypes.Array, table: tables.Table | tables.Intervals) -> dtypes.Array:
        """Some symbols, uint8; `slots` are their contexts, each times 2^14, and become their slots."""
        lanes = len(self._states)
        size: dtypes.Array = np.empty(lanes, table.sizes.dtype)
        offset: dtypes.Array = np.empty(lanes, table.sizes.dtype)
        below = np.empty(lanes, bool)
        low = np.empty(lanes, np.int64)
        for start in range(0, len(slots), lanes):
            slot = slots[start : start + lanes]
            n = len(slot)
            if n < lanes:
                size, offset, below, low = size[:n], offset[:n], below[:n], low[:n]
            state = self._states[:n]
            np.bitwise_and(state, TOTAL - 1, out=low)
            slot |= low
            if isinstance(table, tables.Table):
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

    def _singly(self, bases: dtypes.Array, table: tables.Lists) -> dtypes.Array:
        """The same, symbol by symbol."""
        states = self._states[: len(bases)].tolist()
        words = self._words[self._next : self._next + len(bases)].tolist()
        intervals, taken = singly.decode(states, words, table, bases.tolist())
        if taken > len(words) and not self._is_short:
            raise _end_error()
        self._next += min(taken, len(words))
        self._states[: len(bases)] = states
        return np.array(intervals) % table.symbols

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
            raise _end_error()
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


def _end_error() -> errors.CorruptUpdateError:
    return errors.CorruptUpdateError("coded section: it ends before its symbols do")


@functools.cache
def _equal_symbols(width: int) -> tables.Lists:
    return tables.Lists.of(np.full((1, 1 << width), TOTAL >> width))

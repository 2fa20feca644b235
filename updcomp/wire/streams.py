"""The three sections of an update's payload: raw bytes, plain extra bits, and coded segments of integers."""

import math
from typing import Any, NamedTuple

import numpy as np

from updcomp.wire import bits, dtypes, errors, models, rans, tokens


class _Plan(NamedTuple):
    """A segment, ready to be pushed."""

    starts: dtypes.Array  # int64 (n,)
    sizes: dtypes.Array  # int64 (n,)
    low: dtypes.Array  # uint64, the tokens' low bits
    widths: dtypes.Array  # uint8, their widths

    @property
    def cost(self) -> float:
        """Bits."""
        return rans.information(self.sizes) + int(self.widths.sum(dtype=np.int64))


class Writer:
    """Codes segments one after another."""

    def __init__(self) -> None:
        """An empty update."""
        self._raw: list[bytes] = []
        self._coded = rans.Encoder()
        self._extra = bits.Writer()

    def raw(self, leaf: dtypes.Array) -> None:
        """The bytes of a held array."""
        self._raw.append(leaf.tobytes())

    def number(self, value: int) -> None:
        """A count or rank: its bit length as one of 64 equal symbols, then the bits below the top one, plain.

        Args:
          value: from 0 to 2^62.
        """
        length = value.bit_length()
        self.symbol(length, 6)
        if length > 1:
            low = value - (1 << (length - 1))
            self._extra.push(np.array([low], np.uint64), np.array([length - 1], np.uint8))

    def symbol(self, value: int, width: int) -> None:
        """One of 2^width equal symbols."""
        size = rans.TOTAL >> width
        self._coded.push(np.array([value * size]), np.array([size]))

    def integers(self, values: dtypes.Array, *, signed: bool) -> None:
        """A segment in one context.

        Args:
          values: int64 (n,); >= 0 unless signed.
          signed: whether they can be negative.
        """
        if not len(values):
            return
        folded = tokens.fold(values) if signed else values.view(np.uint64)
        symbols, low = tokens.split(folded)
        alphabet = int(symbols.max()) + 1
        scale = _best_scale(np.bincount(symbols), signed)
        self.symbol(alphabet, 8)
        self.symbol(scale, 7)
        plan = _plan(symbols, low, np.array([models.prior(scale, alphabet, signed)]))
        self._push(plan)

    def matrix(self, values: dtypes.Array, shape: tuple[int, int]) -> None:
        """A matrix of integers.

        Args:
          values: int32, of any shape with as many elements.
          shape: (rows, columns).
        """
        self.integers(values.reshape(-1).astype(np.int64), signed=True)

    def differences(self, new: dtypes.Array, old: dtypes.Array) -> bool:
        """The bits of a leaf as differences from the old ones, if that is smaller than the bits themselves.

        Args:
          new: held leaf.
          old: held leaf of the same shape and dtype.

        Returns:
          Whether anything was written.
        """
        bits_new, bits_old = dtypes.flat_bits(new), dtypes.flat_bits(old)
        difference = (bits_new - bits_old).view(f"<i{bits_new.itemsize}").astype(np.int64)
        self.integers(difference, signed=True)
        return True

    def _push(self, plan: _Plan) -> None:
        """Adds a planned segment."""
        for part in models.chunks(len(plan.starts)):
            self._coded.push(plan.starts[part], plan.sizes[part])
        self._extra.push(plan.low, plan.widths)

    def finish(self) -> tuple[bytes, bytes, int, bytes]:
        """(raw section, extra bits, lanes, coded section)."""
        lanes, coded = self._coded.finish()
        return b"".join(self._raw), self._extra.finish(), lanes, coded


class Reader:
    """Reads what `Writer` wrote, in the same order."""

    def __init__(self, raw: memoryview, extra: memoryview, lanes: int, coded: memoryview) -> None:
        """At the start of the update's sections."""
        self._raw = raw
        self._coded = rans.Decoder(coded, lanes)
        self._extra = bits.Reader(extra)

    def raw(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dtypes.Array:
        """An array of this shape and dtype; a copy."""
        size = math.prod(shape) * dtype.itemsize
        if size > len(self._raw):
            raise errors.CorruptUpdateError(f"raw section: expected {size} more bytes, found {len(self._raw)}")
        data, self._raw = self._raw[:size], self._raw[size:]
        return np.frombuffer(data, np.uint8).copy().view(dtype).reshape(shape)

    def number(self) -> int:
        """A count or rank."""
        length = self.symbol(6)
        if length <= 1:
            return length
        low = self._extra.pull(np.array([length - 1], np.uint8))
        return (1 << (length - 1)) + int(low[0])

    def symbol(self, width: int) -> int:
        """One of 2^width equal symbols."""
        table = rans.make_table(np.full((1, 1 << width), rans.TOTAL >> width))
        return int(self._coded.pull(1, table)[0])

    def integers(self, count: int, *, signed: bool) -> dtypes.Array:
        """A segment in one context.

        Args:
          count: number of integers.
          signed: as in `Writer.integers`.

        Returns:
          int64 (count,).
        """
        if not count:
            return np.empty(0, np.int64)
        alphabet, scale = self.symbol(8), self.symbol(7)
        if not 0 < alphabet <= tokens.COUNT:
            raise errors.CorruptUpdateError(f"segment: expected 1 to {tokens.COUNT} tokens, found {alphabet}")
        folded = self._tokens(count, np.array([models.prior(scale, alphabet, signed)]))
        return tokens.unfold(folded) if signed else folded.view(np.int64)

    def values(self, count: int) -> dtypes.Array:
        """A signed segment as int32 (count,)."""
        return _to_int32(self.integers(count, signed=True))

    def matrix(self, shape: tuple[int, int]) -> dtypes.Array:
        """A matrix of integers; int32 of this shape."""
        return self.values(shape[0] * shape[1]).reshape(shape)

    def differences(self, old: dtypes.Array) -> dtypes.Array:
        """The new leaf, like the old one."""
        bits_old = dtypes.flat_bits(old)
        difference = self.integers(len(bits_old), signed=True)
        return dtypes.from_bits(bits_old + difference.astype(bits_old.dtype), old)

    def _tokens(self, count: int, priors: dtypes.Array, contexts: dtypes.Array | None = None) -> dtypes.Array:
        """The folded integers of a segment; uint64 (count,)."""
        adaptive = models.Adaptive(priors)
        symbols = np.empty(count, np.uint8)
        for part in models.chunks(count):
            context = None if contexts is None else contexts[part]
            table = rans.make_table(adaptive.frequencies())
            symbols[part] = self._coded.pull(part.stop - part.start, table, context)
            adaptive.update(symbols[part], context)
        return tokens.join(symbols, self._extra.pull(tokens.widths(symbols)))

    def finish(self) -> None:
        """Checks that all sections end here."""
        if len(self._raw):
            raise errors.CorruptUpdateError(f"raw section: expected no more bytes, found {len(self._raw)}")
        self._coded.finish()
        self._extra.finish()


def _to_int32(values: dtypes.Array) -> dtypes.Array:
    narrow = values.astype(np.int32)
    if (narrow != values).any():
        raise errors.CorruptUpdateError("values: expected 32-bit integers, found larger ones")
    return narrow


def _best_scale(histogram: dtypes.Array, signed: bool) -> int:
    """The scale of the prior under which the tokens are most likely."""
    alphabet = len(histogram)
    priors = np.array([models.prior(scale, alphabet, signed) for scale in range(models.SCALES)])
    return int(np.argmin(-np.log2(models.normalise(priors)) @ histogram))


def _plan(symbols: dtypes.Array, low: dtypes.Array, priors: dtypes.Array, contexts: dtypes.Array | None = None) -> _Plan:
    """The intervals of a segment's tokens."""
    adaptive = models.Adaptive(priors)
    starts, sizes = np.empty(len(symbols), np.uint16), np.empty(len(symbols), np.uint16)
    for part in models.chunks(len(symbols)):
        frequencies = adaptive.frequencies()
        context = None if contexts is None else contexts[part]
        index = (0 if context is None else context, symbols[part])
        starts[part] = rans.starts_of(frequencies)[index]
        sizes[part] = frequencies[index]
        adaptive.update(symbols[part], context)
    return _Plan(starts, sizes, low, tokens.widths(symbols))

"""An update read with some of its integers replaced, while what was read is written down as a writer codes it.

No change of the coded section's bytes is ever accepted, since all lanes must end where a writer began. This one is:
it reaches everything behind the coder. Where the sections end before the reader does, integers are drawn.
"""

import contextlib
import math
import random
from typing import Any
from unittest import mock

import numpy as np

from updcomp.wire import bits, container, errors, header, rans, streams


def recoded(parts: header.Update, base: dict[str, np.ndarray], rng: random.Random) -> header.Update:
    """The same update, some of its integers replaced.

    Args:
      parts: of any update, as `header.parse` returns it.
      base: the model to which it is applied.
      rng: where chance comes from.

    Returns:
      The parts; sections hold what was read before the reader refused the rest.
    """
    update, reader = header.pack(parts), _Reader(parts, rng)
    with mock.patch.object(streams, "Reader", return_value=reader), contextlib.suppress(errors.Error):
        container.apply_update(update, base, budget=math.inf)
    return parts._replace(**reader.sections())


class _Reader(streams.Reader):
    """Reads the sections, replaces, and writes down."""

    def __init__(self, parts: header.Update, rng: random.Random) -> None:
        # By the sections' own readers: the class itself is replaced while this one is made.
        self._left, self._written, self._rng = bytes(parts.raw), b"", rng
        rate = rng.choice((0.0, 0.01, 0.1, 1.0))
        self._coded = _Coded(parts, rng, rate)
        self._extra = _Extra(parts, rng, rate)
        self._raw = b""

    def raw(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        part = (self._left + self._rng.randbytes(max(0, size - len(self._left))))[:size]
        self._left = self._left[size:]
        self._written += part
        return np.frombuffer(part, np.uint8).copy().view(dtype).reshape(shape)

    def sections(self) -> dict[str, Any]:
        """The fields of `header.Update` that say what was read."""
        lanes, coded = self._coded.encoder.finish(self._coded.lanes)
        return {"raw": self._written, "extra": self._extra.writer.finish(), "lanes": lanes, "coded": coded}


class _Coded:
    """In place of `rans.Decoder`."""

    def __init__(self, parts: header.Update, rng: random.Random, rate: float) -> None:
        self._rng, self._rate = np.random.default_rng(rng.getrandbits(32)), rate
        self.encoder = rans.Encoder()
        self.lanes = rng.choice((None, None, None, 1, 2, 8, 64))
        try:
            self._real: rans.Decoder | None = rans.Decoder(parts.coded, parts.lanes)
        except errors.Error:
            self._real = None

    def pull(self, count: int, table: rans.Table, contexts: np.ndarray | None = None) -> np.ndarray:
        places = np.zeros(count, np.int64) if contexts is None else contexts.astype(np.int64)
        symbols = self._read(count, table, contexts)
        alphabet = int(np.searchsorted(table.starts, rans.TOTAL))
        drawn = table.symbols[table.find(places << rans.PRECISION | self._rng.integers(0, rans.TOTAL, count))]
        evenly = self._rng.integers(0, alphabet, count).astype(np.uint8)
        largest = np.full(count, alphabet - 1, np.uint8)
        others = (drawn, evenly, largest)[self._rng.integers(3)]
        symbols = np.where(self._rng.random(count) < self._rate, others, drawn if symbols is None else symbols)
        intervals = places * alphabet + symbols
        self.encoder.push(table.starts[intervals] - (places << rans.PRECISION), table.sizes[intervals])
        return symbols

    def _read(self, count: int, table: rans.Table, contexts: np.ndarray | None) -> np.ndarray | None:
        try:
            return self._real.pull(count, table, contexts) if self._real else None
        except errors.Error:
            self._real = None
            return None

    def finish(self, **_: object) -> None:
        """Whatever was read is all there is."""


class _Extra:
    """In place of `bits.Reader`."""

    def __init__(self, parts: header.Update, rng: random.Random, rate: float) -> None:
        self._rng, self._rate = np.random.default_rng(rng.getrandbits(32)), rate
        self._real: bits.Reader | None = bits.Reader(parts.extra)
        self.writer = bits.Writer()

    def pull(self, widths: np.ndarray) -> np.ndarray:
        masks = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
        drawn = self._rng.integers(0, 1 << 64, len(widths), np.uint64) & masks
        try:
            values = self._real.pull(widths) if self._real else drawn
        except errors.Error:
            self._real, values = None, drawn
        others = (drawn, masks, masks & np.uint64(1))[self._rng.integers(3)]
        values = np.where(self._rng.random(len(widths)) < self._rate, others, values)
        self.writer.push(values, widths)
        return values

    def finish(self) -> None:
        """Whatever was read is all there is."""

"""An update as it is read, with some of its integers replaced, while what was read is written down as a writer does.

No change of the coded section's bytes is ever accepted, since all lanes must end where a writer began. This one is:
it reaches everything behind the coder. Where the sections end before the reader does, integers are drawn.
"""

import contextlib
import copy
import math
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

from updcomp.wire import container, errors, header, models, pieces, rans, streams, tokens, workers

_READER, _PIECES = streams.Reader, pieces.readers


def recoded(parts: header.Parts, base: dict[str, np.ndarray], rng: random.Random) -> header.Parts:
    """The same update, some of its integers replaced.

    Args:
      parts: of any update, as `header.parse` returns it.
      base: the model to which it is applied.
      rng: where chance comes from.

    Returns:
      The parts; sections hold what was read before the reader refused the rest.
    """
    update, reader = header.pack(parts), _Changer(parts, rng)
    with recording(reader), contextlib.suppress(errors.Error):
        container.apply_update(update, base, budget=math.inf)
    return parts._replace(**reader.sections(rng.choice((None, None, None, 1, 2, 8, 64))))


@contextlib.contextmanager
def recording(reader: "Recorder") -> Iterator[None]:
    """Within, whatever reads an update reads what this reader says, one piece after another."""
    with (
        mock.patch.object(streams, "Reader", return_value=reader),
        mock.patch.object(pieces, "readers", lambda parent, count, lanes: [parent.open(lanes) for _ in range(count)]),
        mock.patch.object(workers, "cores", return_value=1),
    ):
        yield


class Recorder(_READER):
    """Reads what it makes up, and writes it down."""

    def __init__(self) -> None:
        self._writer, self._loose = streams.Writer(), False
        self._opened: list[tuple[int, Recorder, int]] = []

    def open(self, lanes: int) -> "Recorder":
        """The next piece."""
        piece = self.child(lanes)
        piece._writer, piece._opened = pieces.Writer(), []
        self._opened.append((self._writer.reserve(), piece, lanes))
        return piece

    def child(self, lanes: int) -> "Recorder":
        """What reads a piece."""
        return copy.copy(self)

    def sections(self, lanes: int | None) -> dict[str, Any]:
        """The fields of `header.Update` that say what was read, in so many lanes or as many as a writer takes."""
        for at, piece, own in self._opened:
            self._writer.fill(at, piece._writer.pack(own))
        raw, extra, chosen, coded = self._writer.finish()
        if lanes and chosen:
            raw, extra, chosen, coded = self._writer.finish(lanes)
        return {"raw": raw, "extra": extra, "lanes": chosen, "coded": coded}

    def say_raw(self, size: int) -> bytes:
        """The next bytes."""
        raise NotImplementedError

    def say_symbol(self, width: int) -> int:
        """The next symbol, below 2^width."""
        raise NotImplementedError

    def say_integers(self, count: int, scales: np.ndarray, contexts: Any, dtype: np.dtype[Any]) -> np.ndarray:
        """The next int64 (count,), which need not fit the dtype; unsigned if that is."""
        raise NotImplementedError

    def say_places(self, count: int, size: int) -> np.ndarray:
        """The next int64 (count,), strictly ascending, below the size."""
        raise NotImplementedError

    def say_symbols(self, count: int, *arguments: Any, **options: Any) -> np.ndarray:
        """The next tokens, uint8 (count,); arguments as those of `streams.Reader.symbols`."""
        raise NotImplementedError

    def say_chunk(self, adaptive: models.Adaptive, count: int, context: Any) -> np.ndarray:
        """The next tokens of the alphabet, uint8 (count,); the arguments stay as they are."""
        raise NotImplementedError

    def say_choice(self, bounds: np.ndarray) -> int:
        """Which interval is next, of those between the bounds."""
        raise NotImplementedError

    def say_late(self, widths: np.ndarray) -> np.ndarray:
        """The next late bits, uint64, each of its width."""
        raise NotImplementedError

    def raw(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        part = np.frombuffer(self.say_raw(math.prod(shape) * dtype.itemsize), np.uint8)
        self._writer.raw(part)
        return part.copy().view(dtype).reshape(shape)

    def symbol(self, width: int) -> int:
        value = self.say_symbol(width)
        self._writer.symbol(value, width)
        return value

    def number(self) -> int:
        value = self.say_symbol(6)
        self._writer.number(value)
        return value

    def tokens(self, values: np.ndarray, scales: np.ndarray, contexts: Any = None, *, signed: bool = True) -> None:
        dtype = values.dtype if signed else np.dtype(np.uint64)
        said = self.say_integers(len(values), scales, contexts, dtype)
        segment = streams.Segment.of(said, signed=signed)
        self._writer.tokens(_Loose(*segment) if self._loose else segment, scales, contexts)
        values[:] = said.astype(values.dtype)
        if (values != said).any():
            raise errors.CorruptUpdateError("values: larger integers")

    def symbols(self, count: int, scales: np.ndarray, contexts: Any, chunks: Any, **options: Any) -> np.ndarray:
        chunks, signed = list(chunks), options.pop("signed", True)
        said = self.say_symbols(count, scales, contexts, chunks, signed=signed, **options)
        if not count:
            raise errors.CorruptUpdateError("a segment of no tokens says no alphabet")
        self._writer.symbols(streams.Segment(said, said, signed), scales, contexts, chunks, **options)
        return said

    def charge(self, _: object) -> None:
        """Everything may be read."""

    def alphabet(self) -> int:
        size = self.say_symbol(8)
        if not 0 < size <= tokens.COUNT:
            raise errors.CorruptUpdateError("an alphabet of another size")
        self._writer.alphabet(size)
        return size

    def chunk(self, adaptive: models.Adaptive, count: int, context: Any) -> np.ndarray:
        said = self.say_chunk(adaptive, count, context)
        self._writer.chunk(adaptive, said, context)
        return said

    def choose(self, size: int) -> int:
        return self.choose_among(np.array([0, size, rans.TOTAL]))

    def choose_among(self, bounds: np.ndarray) -> int:
        said = self.say_choice(bounds)
        self._writer.choices(bounds[said : said + 1], np.diff(bounds)[said : said + 1])
        return said

    def late(self, widths: np.ndarray) -> np.ndarray:
        said = self.say_late(widths)
        self._writer.late(said, widths)
        return said

    def places(self, count: int, size: int) -> np.ndarray:
        said = self.say_places(count, size)
        self._writer.places(said, size)
        return said

    def finish(self, **_: object) -> None:
        """Whatever was read is all there is."""


class _Loose(streams.Segment):
    """A segment that says more tokens than it uses."""

    @property
    def alphabet(self) -> int:
        return min(super().alphabet + 1, tokens.COUNT)


class _Changer(Recorder):
    """Reads an update, and replaces."""

    def __init__(self, parts: header.Parts, rng: random.Random) -> None:
        super().__init__()
        self._rng, self._arrays = rng, np.random.default_rng(rng.getrandbits(32))
        self._rate = rng.choice((0.0, 0.01, 0.1, 1.0))
        self._loose = rng.randrange(16) == 0
        self._left = bytes(parts.raw)
        self._real: streams.Reader | None = None
        with contextlib.suppress(errors.Error):
            # Made before the class is replaced by this reader.
            self._real = _READER(b"", parts.extra, parts.lanes, parts.coded, short=parts.version.is_short)

    def say_raw(self, size: int) -> bytes:
        part = bytearray((self._left + self._rng.randbytes(max(0, size - len(self._left))))[:size])
        self._left = self._left[size:]
        if part and self._rng.random() < self._rate:
            part[self._rng.randrange(size)] = self._rng.randrange(256)
        return bytes(part)

    def say_symbol(self, width: int) -> int:
        value = None
        with contextlib.suppress(errors.Error, AttributeError):
            value = self._real.symbol(width)
        if value is None or self._rng.random() < self._rate:
            self._real = self._real if value is not None else None
            value = self._rng.randrange(1 << width)
        return value

    def say_integers(self, count: int, scales: np.ndarray, contexts: Any, dtype: np.dtype[Any]) -> np.ndarray:
        signed = dtype.kind == "i"
        said = self._drawn(count, signed)
        try:
            if self._real:
                held = np.empty(count, np.int64)
                self._real.tokens(held, scales, contexts, signed=signed)
                said = held
        except errors.Error:
            self._real = None
        others = self._drawn(count, signed)
        if self._rng.randrange(4) == 0:
            top = 1 << self._rng.choice((7, 15, 23, 31, 31, 32, 53, 62))
            others = np.full(count, top - self._rng.randrange(2))
            others = others * self._arrays.choice([-1, 1], count) if signed else others
        return np.where(self._arrays.random(count) < self._rate, others, said)

    def say_symbols(self, count: int, *arguments: Any, **options: Any) -> np.ndarray:
        said = self._arrays.integers(0, 40, count).astype(np.uint8)
        others = np.minimum(self._arrays.geometric(0.2, count) - 1, tokens.COUNT - 1).astype(np.uint8)
        try:
            if self._real:
                said = self._real.symbols(count, *arguments, **options)
        except errors.Error:
            self._real = None
        return np.where(self._arrays.random(count) < self._rate, others, said)

    def say_chunk(self, adaptive: models.Adaptive, count: int, context: Any) -> np.ndarray:
        alphabet = adaptive.frequencies(slice(1)).shape[1]
        said, others = self._arrays.integers(0, alphabet, (2, count)).astype(np.uint8)
        try:
            if self._real:
                said = self._real.chunk(copy.deepcopy(adaptive), count, context)
        except errors.Error:
            self._real = None
        return np.where(self._arrays.random(count) < self._rate, others, said)

    def say_choice(self, bounds: np.ndarray) -> int:
        said = None
        with contextlib.suppress(errors.Error, AttributeError):
            said = self._real.choose_among(bounds)
        if said is None or self._rng.random() < self._rate:
            self._real = self._real if said is not None else None
            said = self._rng.randrange(len(bounds) - 1)
        return said

    def say_late(self, widths: np.ndarray) -> np.ndarray:
        masks = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
        others = self._arrays.integers(0, 1 << 63, len(widths)).astype(np.uint64) & masks
        try:
            if self._real:
                return np.where(self._arrays.random(len(widths)) < self._rate, others, self._real.late(widths))
        except errors.Error:
            self._real = None
        return others

    def child(self, lanes: int) -> Recorder:
        """Reads the piece that is there."""
        piece, piece_reader = copy.copy(self), None
        with contextlib.suppress(errors.Error):
            rest = _READER(self._left, b"", 0, b"")
            (piece_reader,) = _PIECES(rest, 1, lanes)
            self._left = bytes(rest.piece())
        piece._real = piece_reader
        return piece

    def say_places(self, count: int, size: int) -> np.ndarray:
        try:
            if self._real:
                said = self._real.places(count, size)
                if self._rng.random() >= self._rate:
                    return said
        except errors.Error:
            self._real = None
        return np.sort(self._arrays.choice(size, count, replace=False))

    def _drawn(self, count: int, signed: bool) -> np.ndarray:
        sizes = self._arrays.geometric(self._rng.choice((0.9, 0.5, 0.1)), count) - 1
        return sizes * self._arrays.choice([-1, 1], count) if signed else sizes

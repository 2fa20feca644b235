"""Updates as an attacker makes them: any header, and sections of chosen integers that are coded as they must be."""

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from tests.fuzz import recoding
from updcomp.wire import (
    container,
    costs,
    dtypes,
    errors,
    fingerprint,
    header,
    metadata,
    models,
    streams,
    tokens,
    versions,
)
from updcomp.wire.increments import round_step
from updcomp.wire.kind import Head, Kind

_STEP = round_step(2.0**-12)


class Attack(NamedTuple):
    """A family of updates that take as much as the default budget allows."""

    kind: str
    filler: str  # of `FILLERS`: the integers
    share: float = 1.0  # of the budget that a block may take
    lanes: int | None = None  # None: as a writer chooses them
    view: int | None = None  # number of the view of every leaf that can have it
    last: bool = False  # whether the last leaves come first

    def __str__(self) -> str:
        said = [f"{self.filler} integers", f"{self.lanes or 'chosen'} lanes", f"{self.share:g} of the budget a block"]
        if self.view is not None:
            said.append(f"view {self.view}")
        return ", ".join(said + ["last leaves"] * self.last)


def heads(attack: Attack, specs: dict[str, dtypes.Spec]) -> list[Head]:
    """Blocks for as many leaves, and as large, as the default budget accepts.

    Args:
      attack: what to make.
      specs: of the model's leaves.

    Returns:
      The headers; none where the budget refuses even the smallest.
    """
    kind = next(kind for kind in versions.NEWEST.kinds.values() if kind.name == attack.kind)
    allowed, found, spent = costs.allowed(specs, 1.0), [], 0
    # A little is left for what is held of the update itself.
    working = allowed.working_bytes * 15 // 16
    order = list(enumerate(specs.values()))
    for index, spec in reversed(order) if attack.last else order:
        room = costs.Cost(min(int(allowed.operations * attack.share), allowed.operations - spent), working)
        head = _largest(kind, attack, index, spec, room)
        if head is not None:
            found.append(head)
            spent += kind.cost(head, spec, attack.lanes or _lanes(head.size or dtypes.elements(spec))).operations
    return sorted(found, key=lambda head: head.leaf)


def _lanes(count: int) -> int:
    """About as many as a writer would choose."""
    return min(4096, max(1, 1 << (max(count, 1) >> 10).bit_length() >> 1))


def _largest(kind: Kind, attack: Attack, index: int, spec: dtypes.Spec, room: costs.Cost) -> Head | None:
    """The block of this leaf of the largest size that there is room for."""
    if kind.number > 1 and (spec.dtype.kind in "biuc" or (spec.dtype.names and spec.dtype.names != ("bfloat16",))):
        return None
    ndim = len(spec.shape)
    view = attack.view if kind.viewed and attack.view is not None and min(ndim, 1) <= attack.view < 3**ndim else None

    def head(size: int) -> Head:
        return Head(kind, index, _STEP if kind.stepped else 0.0, size if kind.sized else None, view)

    def fits(size: int) -> bool:
        try:
            cost = kind.cost(head(size), spec, attack.lanes or _lanes(size if kind.sized else dtypes.elements(spec)))
        except errors.Error:
            return False
        return cost.operations <= room.operations and cost.working_bytes <= room.working_bytes

    if not spec.size or not fits(1):
        return None
    low, high = 1, spec.size + 1
    while kind.sized and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return head(low)


def update(attack: Attack, base: dict[str, np.ndarray], said: list[Head]) -> bytes:
    """The update with these blocks, all right but for the fingerprint of the result.

    Args:
      attack: whose integers to take.
      base: the model.
      said: as `heads` returns them, or fewer.

    Returns:
      The file's bytes.

    Raises:
      Error: the blocks are refused.
    """
    if any(head.view is not None for head in said):
        said = [
            head._replace(view=_default(len(np.shape(leaf)))) if head.kind.viewed and head.view is None else head
            for head, leaf in ((head, list(base.values())[head.leaf]) for head in said)
        ]
    parts = header.Parts(
        versions.NEWEST, fingerprint.of(base), b"\0" * 16, 7, said, b"", b"", attack.lanes or 1, b"\0" * 4, None
    )
    reader = _Maker(_Watched(base), attack.filler)
    with (
        recoding.recording(reader),
        mock.patch.object(container, "apply_", mock.Mock(apply_block=lambda block, old, **_: old)),
    ):
        try:
            container.apply_update(header.pack(parts), reader.base, budget=math.inf)
        except errors.CorruptUpdateError as error:
            if not str(error).startswith("result"):
                raise
    return header.pack(parts._replace(**reader.sections(attack.lanes)))


def _default(ndim: int) -> int:
    return sum((2 if axis == ndim - 1 else 1) * 3**axis for axis in range(ndim))


class _Watched(dict[str, np.ndarray]):
    """A model that knows which leaf was read last."""

    last = np.zeros(1)

    def __getitem__(self, name: str) -> np.ndarray:
        self.last = super().__getitem__(name)
        return self.last


class _Maker(recoding.Recorder):
    """Says what an attack says."""

    def __init__(self, base: _Watched, filler: str) -> None:
        super().__init__()
        self.base, self._fill = base, FILLERS[filler]
        self._arrays, self._segments, self._are_classes = np.random.default_rng(0), 0, False
        self._was_mode = False

    def say_raw(self, size: int) -> bytes:
        return b"\1" * size

    def say_symbol(self, width: int) -> int:
        # Three bits are the mode of a matrix, 0 all at once; the one that follows says whether it has classes, another
        # one whether positions are row by row. Seven are a scale, of which 20 is that of a mean magnitude of 1.
        was_mode, self._was_mode = self._was_mode, width == 3
        if width == 1:
            return int(was_mode and self._fill in (_wide, _alphabets))
        return 0 if width == 3 else 20

    def say_symbols(self, count: int, *_: Any, signed: bool = True, **__: Any) -> np.ndarray:
        dtype = np.dtype(np.int64 if signed else np.uint64)
        said = self.say_integers(count, np.zeros(0), None, dtype)
        return streams.Segment.of(said, signed=signed).symbols

    def say_chunk(self, adaptive: models.Adaptive, count: int, _: Any) -> np.ndarray:
        return np.full(count, adaptive.frequencies(slice(1)).shape[1] - 1, np.uint8)

    def say_choice(self, bounds: np.ndarray) -> int:
        return int(len(bounds) == 3)  # yes, or the next column

    def say_late(self, widths: np.ndarray) -> np.ndarray:
        return np.zeros(len(widths), np.uint64)

    def say_places(self, count: int, size: int) -> np.ndarray:
        return np.arange(count) * size // max(count, 1)  # spread over the leaf

    def integers(self, count: int, *, signed: bool, dtype: Any = np.int64) -> np.ndarray:
        self._are_classes = signed and dtype is np.int64
        said = super().integers(count, signed=signed, dtype=dtype)
        self._are_classes = False
        return said

    def say_integers(self, count: int, scales: np.ndarray, contexts: Any, dtype: np.dtype[Any]) -> np.ndarray:
        if self._are_classes:  # of rows or columns: all of them
            return self._arrays.integers(-10, 22, count)
        if dtype.kind == "u":  # gaps: spread over the leaf
            return self._arrays.integers(0, max(1, self.base.last.size // max(count, 1)), count)
        self._segments += 1
        return self._fill(count, self._segments, min(8 * dtype.itemsize, 32), self._arrays)


def _few(count: int, _segment: int, _width: int, _rng: np.random.Generator) -> np.ndarray:
    """Ones: next to no bytes."""
    return np.ones(count, np.int64)


def _honest(count: int, _segment: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """As training makes them: two-sided, none of them 0."""
    largest = min(1 << 20, (1 << width - 1) - 1)
    return np.minimum(rng.geometric(0.3, count), largest) * rng.choice([-1, 1], count)


def _wide(count: int, _segment: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Many bits beside the coder's."""
    top = 1 << min(width, 16) - 1
    return rng.integers(1, top, count)


def _alphabets(count: int, segment: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Small ones, and one of another alphabet in each segment."""
    values = rng.integers(1, 3, count)
    token = np.array([3 + segment % (tokens.DIRECT + 2 * (width - 6))], np.uint8)
    low = np.zeros(len(tokens.widths(token)), np.uint64)
    values[0] = int(tokens.unfold(tokens.join(token, low))[0])
    return values


FILLERS: dict[str, Callable[[int, int, int, np.random.Generator], np.ndarray]] = {
    "few": _few,
    "honest": _honest,
    "wide": _wide,
    "alphabets": _alphabets,
}


def metadata_bomb(base: dict[str, np.ndarray]) -> bytes:
    """An update of metadata alone: as much JSON as they may have, none of it a text."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    text = b"[" + b"[]," * 349_500 + b"[]]"
    change = metadata.Change(bytes(metadata.DIGEST_SIZE), compressor.compress(text) + compressor.flush())
    print_ = fingerprint.of(base)
    return header.pack(header.Parts(versions.NEWEST, print_, print_, 0, [], b"", b"", 0, b"", change))

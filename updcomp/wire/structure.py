"""Leaves that an update adds, removes or gives another shape or dtype.

Such an update starts from the base as if it had the new model's leaves already, the added ones all zeros: blocks of
any kind then make of them what they are.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from updcomp.wire import dtypes, errors

_LONGEST = 1 << 20  # bytes of the text, before compression
_RAW_DEFLATE = -15
_MOST_AXES = 64
_SHARE = 1 << 26  # bytes that may be added to the smallest model


class Structure(NamedTuple):
    """How the new model's leaves differ from the base's."""

    added: Mapping[str, dtypes.Spec]  # also in place of a leaf of the base, whose shape or dtype is another then
    removed: tuple[str, ...]  # names of leaves of the base that the new model lacks, sorted

    @property
    def nbytes(self) -> int:
        """Bytes of the added leaves."""
        return sum(spec.nbytes for spec in self.added.values())


class Start(Mapping[str, dtypes.Array]):
    """The base with the new model's leaves: those that are added are zeros, made when they are asked for."""

    def __init__(self, base: dtypes.Model, structure: Structure) -> None:
        """Reads nothing.

        Args:
          base: leaf name -> array.
          structure: says what becomes of its leaves.

        Raises:
          CorruptUpdateError: a leaf that is to go is not there, or one that is to come is there as it is to be.
        """
        kept = dtypes.specs(base)
        for name in structure.removed:
            if name not in kept or name in structure.added:
                raise errors.CorruptUpdateError(f"leaf {name!r}: expected one of the base, to be removed, found none")
        for name, spec in structure.added.items():
            if kept.get(name) == spec:
                raise errors.CorruptUpdateError(f"leaf {name!r}: expected one to be added, found it in the base")
        left = {name: spec for name, spec in kept.items() if name not in structure.removed}
        self.specs = dict(sorted((left | dict(structure.added)).items()))
        self._base, self._added = base, structure.added

    def __getitem__(self, name: str) -> dtypes.Array:
        if name in self._added:
            return np.zeros(*self._added[name])
        if name not in self.specs:
            raise KeyError(name)
        return self._base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __contains__(self, name: object) -> bool:  # a Mapping's own would get the value
        return name in self.specs

    def __len__(self) -> int:
        return len(self.specs)


def between(before: Mapping[str, dtypes.Spec], after: Mapping[str, dtypes.Spec]) -> Structure | None:
    """What makes the leaves of one model those of another; None where they are the same.

    >>> before, after = ({name: dtypes.spec_of(np.zeros(2)) for name in names} for names in ("ab", "bc"))
    >>> between(before, after).removed
    ('a',)
    """
    added = {name: spec for name, spec in sorted(after.items()) if before.get(name) != spec}
    removed = tuple(sorted(name for name in before if name not in after))
    return Structure(added, removed) if added or removed else None


def start(base: dtypes.Model, structure: Structure | None) -> dtypes.Model:
    """What blocks are relative to: the base itself, or its `Start`; raises as that."""
    return base if structure is None else Start(base, structure)


def check_cost(structure: Structure | None, base: Mapping[str, dtypes.Spec], budget: float) -> None:
    """Checks that no more is added than the base and 2^26 bytes, times the budget, before memory is taken for it.

    Raises:
      CostError: there is.
    """
    most = budget * (sum(spec.nbytes for spec in base.values()) + _SHARE)
    if structure is not None and structure.nbytes > most:
        raise errors.CostError(
            f"leaves: expected at most {most:,.0f} bytes of added ones, found {structure.nbytes:,}; allow a budget of "
            f"at least {math.ceil(10 * budget * structure.nbytes / most) / 10:g} on both sides (budget=, --budget=)"
        )


def pack(structure: Structure) -> bytes:
    """The structure as compressed JSON: an array of the added leaves by name, and one of the removed.

    Raises:
      Error: the text is longer than 1 MiB.
    """
    text = _json(structure)
    if len(text) > _LONGEST:
        raise errors.Error(
            f"leaves: expected names, shapes and dtypes of added and removed ones in {_LONGEST} bytes, "
            f"found {len(text)}; add fewer leaves at once"
        )
    compressor = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE)
    return compressor.compress(text) + compressor.flush()


def unpack(data: bytes) -> Structure:
    """The inverse of `pack`.

    Raises:
      CorruptUpdateError: the bytes are damaged.
    """
    decompressor = zlib.decompressobj(_RAW_DEFLATE)
    try:
        text = decompressor.decompress(data, _LONGEST + 1)
        added, removed = json.loads(text)
        found = Structure({name: _spec(*said) for name, said in added.items()}, tuple(removed))
        is_canonical = (found.added or found.removed) and _json(found) == text
    except (ValueError, TypeError, AttributeError, RecursionError, zlib.error, errors.DtypeError) as error:
        raise errors.CorruptUpdateError(f"leaves: expected compressed JSON of leaves, found {error}") from None
    if not is_canonical or not decompressor.eof or decompressor.unused_data or len(text) > _LONGEST:
        raise errors.CorruptUpdateError("leaves: expected added and removed ones in their shortest form")
    return found


def _json(structure: Structure) -> bytes:
    added = {
        name: [dtypes.name(spec.dtype), spec.dtype.itemsize, *spec.shape] for name, spec in structure.added.items()
    }
    told = [added, sorted(set(structure.removed))]
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def _spec(dtype: Any, width: Any, *shape: Any) -> dtypes.Spec:
    numbers = [width, *shape]
    if not isinstance(dtype, str) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"a leaf of dtype {dtype!r}, width and axes {numbers}")
    if len(shape) > _MOST_AXES or math.prod(shape) >= 1 << 62:
        raise ValueError(f"a leaf of {len(shape)} axes and {math.prod(shape)} weights")
    return dtypes.Spec(shape, dtypes.named(dtype, width))

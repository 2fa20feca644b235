"""Leaves that an update adds, removes or gives another shape or dtype.

Such an update starts from the base as if it had the new model's leaves already, the added ones all zeros: blocks of
any kind then make of them what they are.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from updcomp.wire import canonical, dtypes, errors

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
    """The structure as compressed JSON: an object of the added leaves by name, and an array of the removed.

    Raises:
      Error: the text is longer than 1 MiB.
    """
    return canonical.pack(_told(structure), "leaves: names, shapes and dtypes of added and removed ones")


def unpack(data: bytes) -> Structure:
    """The inverse of `pack`.

    Raises:
      CorruptUpdateError: the bytes are damaged.
    """
    try:
        (added, removed), text = canonical.unpack(data)
        found = Structure({name: _spec(*said) for name, said in added.items()}, tuple(removed))
        is_canonical = (found.added or found.removed) and canonical.text_of(_told(found)) == text
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise errors.CorruptUpdateError(f"leaves: expected compressed JSON of leaves, found {error}") from None
    if not is_canonical:
        raise errors.CorruptUpdateError("leaves: expected added and removed ones in their shortest form")
    return found


def _told(structure: Structure) -> list[Any]:
    added = {
        name: [dtypes.name(spec.dtype), spec.dtype.itemsize, *spec.shape] for name, spec in structure.added.items()
    }
    return [added, sorted(set(structure.removed))]


def _spec(dtype: Any, width: Any, *shape: Any) -> dtypes.Spec:
    numbers = [width, *shape]
    if not isinstance(dtype, str) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"a leaf of dtype {dtype!r}, width and axes {numbers}")
    size = math.prod(axis or 1 for axis in shape) * width  # arrays without elements have such a limit as well
    if len(shape) > _MOST_AXES or size >= 1 << 63:
        raise ValueError(f"a leaf of {len(shape)} axes and {size} bytes")
    return dtypes.Spec(shape, dtypes.named(dtype, width))

"""How the world changes after deployment: `--shift=NAME`, or `--shift=NAME:OPTION=NUMBER` for other than usual numbers.

A new shift is a function in `updcomp.training.shifts` and one line in `SHIFTS`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from experiments import specs
from updcomp.training.data import Dataset, Source, of_classes
from updcomp.training.shifts import contrast_noise, inversion, random_rotation, shift_dataset
from updcomp.wire.errors import Error

EXAMPLE = "--shift=rotation:low=30:high=45"


class Shift(NamedTuple):
    """A change of the world; the options are keyword arguments of its function."""

    options: Mapping[str, float]  # name -> usual value
    images: Callable[..., jax.Array] | None = None  # (key, images, **options) -> images, as all are from then on
    before: Callable[..., Dataset] | None = None  # (samples, source, **options) -> those before; default: all
    after: Callable[..., Dataset] | None = None  # (samples, source, **options) -> those from then on; default: all


def first_classes(samples: Dataset, source: Source, *, share: float) -> Dataset:
    """The samples of the first classes, before all classes appear.

    Args:
      samples: of any class.
      source: the dataset that they are from.
      share: of its classes, above 0 and at most 1.

    Returns:
      Those of them with the first classes.

    Raises:
      Error: the share is out of range.
    """
    if not 0 < share <= 1:
        raise Error(f"--shift: classes: share: expected above 0 and at most 1, found {share}")
    return of_classes(samples, range(round(share * source.num_classes)))


def known_classes(samples: Dataset, source: Source, *, share: float) -> Dataset:
    """The samples of the first classes, before the other classes take their place.

    Args:
      samples: of any class.
      source: the dataset that they are from.
      share: of its classes, above 0 and below 1; at least one class is on each side.

    Returns:
      Those of them with the first classes.

    Raises:
      Error: the share leaves no class on a side, or there is no sample of these classes.
    """
    return _some_of_classes(samples, range(_boundary(source, share)))


def unknown_classes(samples: Dataset, source: Source, *, share: float) -> Dataset:
    """The samples of the classes that are not among the first; see `known_classes`."""
    return _some_of_classes(samples, range(_boundary(source, share), source.num_classes))


def _boundary(source: Source, share: float) -> int:
    """The first of the classes that are there after, and not before."""
    first = round(share * source.num_classes) if 0 < share < 1 else 0
    if not 0 < first < source.num_classes:
        expected = f"expected a share of the {source.num_classes} classes that leaves some before and some after"
        raise Error(f"--shift: other_classes: share: {expected}, found {share:g}")
    return first


def _some_of_classes(samples: Dataset, classes: range) -> Dataset:
    chosen = of_classes(samples, classes)
    if not len(chosen.labels):
        found = f"found none among {len(samples.labels)} samples"
        raise Error(f"--shift: other_classes: expected samples of the classes {classes[0]} to {classes[-1]}, {found}")
    return chosen


SHIFTS = {
    "rotation": Shift({"low": 30.0, "high": 45.0}, images=random_rotation),  # degrees; low=90:high=90 is one angle
    "contrast_noise": Shift({"contrast": 0.4, "noise": 0.1}, images=contrast_noise),
    "classes": Shift({"share": 0.6}, before=first_classes),
    "inversion": Shift({}, images=inversion),
    "other_classes": Shift({"share": 0.5}, before=known_classes, after=unknown_classes),
}


class Chosen(NamedTuple):
    """A shift with its numbers."""

    shift: Shift
    options: dict[str, float]

    def after(self, samples: Dataset, source: Source, key: jax.Array) -> Dataset:
        """Those of the samples that the changed world has, as it shows them."""
        there = samples if self.shift.after is None else self.shift.after(samples, source, **self.options)
        change = self.shift.images
        return there if change is None else shift_dataset(there, change, key, **self.options)

    def before(self, samples: Dataset, source: Source) -> Dataset:
        """Those of the samples that were there before."""
        return samples if self.shift.before is None else self.shift.before(samples, source, **self.options)


def choose(text: str) -> Chosen:
    """The shift that a flag names.

    Args:
      text: NAME or NAME:OPTION=NUMBER:OPTION=NUMBER.

    Returns:
      It with its numbers.

    Raises:
      Error: there is no such shift or option, or a value is no number.

    >>> choose("rotation:high=60").options
    {'low': 30.0, 'high': 60.0}
    """
    name, given = specs.parse(text, flag="--shift", example=EXAMPLE)
    if name not in SHIFTS:
        raise Error(f"--shift: expected one of {', '.join(SHIFTS)}, found {name!r}; write it as in {EXAMPLE}")
    usual = SHIFTS[name].options
    for option, values in given.items():
        if option not in usual:
            expected = (
                f"{name} takes {', '.join(f'{known}={value:g}' for known, value in usual.items()) or 'no options'}"
            )
            raise Error(f"--shift: {expected}; found {option!r}; write it as in {EXAMPLE}")
        if len(values) > 1 or type(values[0]) not in (int, float):
            found = ",".join(map(str, values))
            raise Error(f"--shift: {name}: {option}: expected one number, found {found}; write it as in {EXAMPLE}")
    numbers = {option: float(values[0] or 0) for option, values in given.items()}
    return Chosen(SHIFTS[name], {**usual, **numbers})


def usual(name: str) -> str:
    """A shift with its usual numbers, as the flag has them.

    >>> usual("classes")
    'classes:share=0.6'
    """
    return specs.text_of(name, [{option: f"{value:g}" for option, value in SHIFTS[name].options.items()}])

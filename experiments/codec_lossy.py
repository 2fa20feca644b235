"""Lossy updates at equal accuracy, at equal maximum error and, of a merged adapter, at equal relative error: bytes.

A way takes a step and gives a size and a model. Steps fall by quarter octaves to the largest with which the model
is good enough: right on validation samples within a tenth of a point of the new model, or close enough to its weights.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments import codec_images
from experiments.codec_peers import planes
from updcomp import api
from updcomp.wire import container, dtypes

Weights = dict[str, np.ndarray]
Figures = dict[str, float]

_WITHIN = 0.001  # of the new model's accuracy
_OCTAVES = 16  # below the largest difference, at most
_QUARTER = 2**0.25
_ERRORS = (0.5, 0.2, 0.1)  # relative ones
_LEAST_BITS, _MOST_BITS = 2, 12


class Made(NamedTuple):
    """A lossy update, applied."""

    size: int  # bytes
    model: Weights


Way = Callable[[Weights, Weights, float], Made]
"""(old, new, step) -> what is made of them; smaller steps make it larger and nearer to the new model."""


def ours(old: Weights, new: Weights, step: float) -> Made:
    """`updcomp.diff` with a step, both fingerprints included."""
    update = api.encode(api.diff(old, new, step=step), old)
    return Made(len(update), container.apply_update(update, old))


def uniform(zstandard: Any, old: Weights, new: Weights, step: float) -> Made:
    """Rounded differences of one step as byte planes, by zstd -19: no names, no shapes, no fingerprints."""
    return _zipped(zstandard, old, {name: np.rint(_difference(old, new, name) / step) for name in old}, lambda _: step)


def uniform_bits(zstandard: Any, old: Weights, new: Weights, step: float) -> Made:
    """Differences rounded to so many bits a weight that no leaf's step is larger; each leaf has its own, 4 bytes."""
    largest = {name: float(np.abs(_difference(old, new, name)).max(initial=0)) for name in old}
    bits = int(np.clip(np.ceil(np.log2(max(largest.values()) / step + 1)) + 1, _LEAST_BITS, _MOST_BITS))
    steps = {name: found / (2 ** (bits - 1) - 1) or 1.0 for name, found in largest.items()}
    whole = {name: np.rint(_difference(old, new, name) / steps[name]) for name in old}
    made = _zipped(zstandard, old, whole, steps.__getitem__)
    return made._replace(size=made.size + 4 * len(old))


def within_bytes(old: Weights, new: Weights, step: float) -> Made:
    """What `updcomp.diff(max_bytes=)` makes of the bytes that one step for all leaves takes."""
    update = api.encode(api.diff(old, new, max_bytes=ours(old, new, step).size), old)
    return Made(len(update), dict(api.apply(update, old)))


def ways(zstandard: Any | None) -> dict[str, Way]:
    """All ways that are there, by name."""
    found: dict[str, Way] = {"updcomp, a step": ours, "updcomp, as many bytes": within_bytes}
    if zstandard is not None:
        found["a step, zstd -19"] = functools.partial(uniform, zstandard)
        found["uniform bits, zstd -19"] = functools.partial(uniform_bits, zstandard)
    return found


def remembered(way: Way) -> Way:
    """The same for one pair of models, of which it makes nothing twice."""
    known: dict[float, Made] = {}

    def code(old: Weights, new: Weights, step: float) -> Made:
        if step not in known:
            known[step] = way(old, new, step)
        return known[step]

    return code


def at_equal_accuracy(
    pair: tuple[Weights, Weights], judge: codec_images.Judge, known: Mapping[str, Way]
) -> dict[str, Figures]:
    """Each way with its largest step at which the model is as right as the new one, by validation samples.

    Args:
      pair: old and new.
      judge: of models.
      known: the ways.

    Returns:
      Way -> bytes, step, largest error, and accuracy on validation and test samples; "new model" -> its accuracy.
    """
    wanted, found = judge.validation(pair[1]) - _WITHIN, dict[str, Figures]()
    for name, way in known.items():
        step, made = largest_step(pair, way, lambda model: judge.validation(model) >= wanted)
        found[name] = _figures(pair, step, made) | {
            "validation": judge.validation(made.model),
            "test": judge.test(made.model),
        }
    return found | {"new model": {"validation": judge.validation(pair[1]), "test": judge.test(pair[1])}}


def at_equal_error(pair: tuple[Weights, Weights], error: float, known: Mapping[str, Way]) -> dict[str, Figures]:
    """Each way with its largest step at which no weight is further from the new one than this."""
    found = {}
    for name, way in known.items():
        step, made = largest_step(pair, way, lambda model: largest_error(model, pair[1]) <= error)
        found[name] = _figures(pair, step, made)
    return found


def at_equal_relative_error(pair: tuple[Weights, Weights], known: Mapping[str, Way]) -> dict[str, Figures]:
    """Way and relative error -> figures: the root of squared errors by that of squared differences."""
    found = {}
    for error in _ERRORS:
        for name, way in known.items():
            step, made = largest_step(pair, way, lambda model, error=error: relative_error(model, *pair) <= error)  # type: ignore[misc]
            found[f"{name}, relative error {error}"] = _figures(pair, step, made) | {
                "relative error": relative_error(made.model, *pair)
            }
    return found


def largest_step(pair: tuple[Weights, Weights], way: Way, is_good: Callable[[Weights], bool]) -> tuple[float, Made]:
    """The first step that does, by quarter octaves from the largest difference down.

    >>> old, new = {"w": np.zeros(2)}, {"w": np.array([0.5, 4.0])}
    >>> rounded = lambda old, new, step: Made(0, {"w": np.rint(new["w"] / step) * step})
    >>> step, _ = largest_step((old, new), rounded, lambda model: np.abs(model["w"] - new["w"]).max() < 0.1)
    >>> round(step, 6)
    0.5
    """
    largest = max(float(np.abs(_difference(*pair, name)).max(initial=0)) for name in pair[0])
    step, made = largest, way(*pair, largest)
    while not is_good(made.model) and step > largest * 2.0**-_OCTAVES:
        step /= _QUARTER
        made = way(*pair, step)
    return step, made


def largest_error(model: Weights, new: Weights) -> float:
    """Of all weights."""
    return max(float(np.abs(_difference(new, model, name)).max(initial=0)) for name in new)


def relative_error(model: Weights, old: Weights, new: Weights) -> float:
    """The Frobenius norm of what is missing, by that of the difference."""
    missing, whole = (sum(float(np.square(_difference(one, new, name)).sum()) for name in new) for one in (model, old))
    return float(np.sqrt(missing / whole))


def _figures(pair: tuple[Weights, Weights], step: float, made: Made) -> Figures:
    return {"bytes": made.size, "step": step, "largest error": largest_error(made.model, pair[1])}


def _difference(old: Weights, new: Weights, name: str) -> np.ndarray:
    a, b = (dtypes.to_floats(dtypes.hold(model[name])).astype(np.float64) for model in (old, new))
    return np.asarray(b - a)


def _zipped(zstandard: Any, old: Weights, whole: Mapping[str, np.ndarray], step_of: Callable[[str], float]) -> Made:
    """The integers, each leaf in the narrowest dtype that has them."""
    size, model = 0, {}
    for name, leaf in old.items():
        furthest = float(np.abs(whole[name]).max(initial=0))
        width = 1 if furthest < 1 << 7 else 2 if furthest < 1 << 15 else 4
        integers = whole[name].astype(f"<i{width}")
        size += len(zstandard.ZstdCompressor(level=19).compress(planes(integers.reshape(-1))))
        held = dtypes.hold(leaf)
        floats = dtypes.to_floats(held)
        moved = floats + (integers * step_of(name)).astype(floats.dtype)
        model[name] = dtypes.round_floats(moved, held.dtype)
    return Made(size, model)

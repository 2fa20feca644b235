"""How the time and the memory of exact updates grow with the model."""

import time
import tracemalloc

import numpy as np

from experiments import codec_cases
from updcomp import api
from updcomp.wire import container

Model = dict[str, np.ndarray]
Figures = dict[str, float]

_FACTOR = 5


def growth(largest: int) -> list[Figures]:
    """Case C once, and several times over.

    Args:
      largest: bytes of a model at most.

    Returns:
      Of each size the seconds, and the most memory beside both models; smallest first.
    """
    found, scale = list[Figures](), 1
    while True:
        old, new = codec_cases.one_step(scale)
        size = sum(leaf.nbytes for leaf in old.values())
        if size > largest:
            return found
        found.append(
            {
                "MB": size / 1e6,
                "largest leaf, MiB": max(leaf.nbytes for leaf in old.values()) / 2**20,
                **_seconds(old, new),
                **_peaks(old, new),
            }
        )
        print({name: round(value, 2) for name, value in found[-1].items()}, flush=True)
        scale *= _FACTOR


def _seconds(old: Model, new: Model) -> Figures:
    """Of the clock, and of a core, which other work on the machine changes less."""
    times = [(time.perf_counter(), time.process_time())]
    update = api.encode(api.diff(old, new), old)
    times.append((time.perf_counter(), time.process_time()))
    container.apply_update(update, old)
    times.append((time.perf_counter(), time.process_time()))
    found: Figures = {"bytes": len(update)}
    for what, before, after in zip(("encode", "apply"), times[:-1], times[1:], strict=True):
        found |= {f"{what}, s": after[0] - before[0], f"{what}, s of a core": after[1] - before[1]}
    return found


def _peaks(old: Model, new: Model) -> Figures:
    tracemalloc.start()
    try:
        update = api.encode(api.diff(old, new), old)
        encoding = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        made = container.apply_update(update, old)
        applying = tracemalloc.get_traced_memory()[1] - sum(leaf.nbytes for leaf in made.values())
    finally:
        tracemalloc.stop()
    return {"encode, MiB": encoding / 2**20, "apply, MiB": applying / 2**20}

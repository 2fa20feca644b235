"""Exact selection of the 1 % largest of 10 and 100 million scores, as ratios to `lax.top_k` and a sort in one run."""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.results import write_figures
from updcomp import selection


@dataclasses.dataclass(frozen=True)
class Config:
    """How often each figure is measured at 10 million scores; a third as often at 100 million. The median counts."""

    repeats: int = 9


def run(config: Config, workdir: Path) -> dict[str, float]:
    """Measures both sizes and writes `bench_select.json`.

    Args:
      config: how often.
      workdir: where the figures go.

    Returns:
      Figure name -> value.
    """
    figures = {**_size(10_000_000, config.repeats), **_size(100_000_000, max(1, config.repeats // 3))}
    print(f"on {jax.default_backend()}, in one run")
    for name, value in figures.items():
        print(f"{value:9,.3f}  {name}")
    write_figures(workdir, "bench_select", figures)
    return figures


def _size(count: int, repeats: int) -> dict[str, float]:
    """Normal scores: of 10 million many are equal in float32, so that ties are cut, which is the slower case."""
    scores = jax.random.normal(jax.random.key(0), (count // 1000, 1000))
    k = count // 100

    def by_top_k(scores: jax.Array) -> jax.Array:
        chosen = jax.lax.top_k(scores.ravel(), k)[1]
        return jnp.zeros(scores.size, bool).at[chosen].set(True).reshape(scores.shape)

    def by_sort(scores: jax.Array) -> jax.Array:
        return scores >= jnp.sort(scores.ravel())[-k]

    ours, ours_memory, mask = _measure(lambda scores: selection.top_k(scores, k), scores, repeats)
    theirs, theirs_memory, expected = _measure(by_top_k, scores, repeats)
    sort, sort_memory, _ = _measure(by_sort, scores, 1)
    assert mask.sum() == k
    assert np.array_equal(mask, expected)
    return {
        f"{count:,} scores: selection.top_k, s": ours,
        f"{count:,} scores: lax.top_k and a scatter, as a multiple of that": theirs / ours,
        f"{count:,} scores: a full sort (once), as a multiple of that": sort / ours,
        f"{count:,} scores: selection.top_k, temporary bytes per score": ours_memory / count,
        f"{count:,} scores: lax.top_k and a scatter, temporary bytes per score that XLA knows of": theirs_memory
        / count,
        f"{count:,} scores: a full sort, temporary bytes per score": sort_memory / count,
    }


def _measure(choose: Any, scores: jax.Array, repeats: int) -> tuple[float, int, np.ndarray]:
    """Seconds, bytes of temporary memory, and the mask."""
    compiled = jax.jit(choose).lower(scores).compile()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        mask = jax.block_until_ready(compiled(scores))
        times.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    assert memory is not None
    return statistics.median(times), memory.temp_size_in_bytes, np.asarray(mask)

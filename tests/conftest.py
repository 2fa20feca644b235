"""Strict sessions: two CPU devices, no silent promotion of dtypes or ranks, warnings are errors (pyproject.toml).

Every session is the same: property tests draw the same examples each time. New seeds are a slow job of their own,

    python -m pytest --hypothesis-profile=explore

which prints what it finds as a decorator that reproduces it. Workers, subprocesses and later sessions share what JAX
has compiled, in `.pytest_cache`; `python -m pytest --cache-clear` starts from nothing. Most of a first session is
compilation, so that is made quick rather than good; `XLA_FLAGS= python -m pytest` compiles as users do.
"""

import os
from importlib.metadata import version
from pathlib import Path

# Before jax is imported by anything: it counts its devices once, and opens its cache once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each core has a worker already
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "d" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if version("jaxlib").startswith("0.10."):  # another XLA may not know these flags, and ends at one that it does not know
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# No time limit per example: machines are slow at times.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile("same")

MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    """Every function that XLA:CPU compiles maps memory, of which Linux allows a process 65,530 pieces."""
    yield
    if MAPS.exists() and len(MAPS.read_text().splitlines()) > 25_000:
        jax.clear_caches()

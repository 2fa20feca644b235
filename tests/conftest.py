"""Strict sessions: two CPU devices, no silent promotion of dtypes or ranks, warnings are errors (pyproject.toml)."""

import os

# Before jax is imported by anything, since it counts its devices once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

import hypothesis
import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Property tests have no time limit per example: machines are slow at times.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

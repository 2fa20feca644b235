"""Experiments: one module each, with a `Config` of all its settings and a `run(config, workdir)` function.

A new experiment is one module and one line in `EXPERIMENTS`.
"""

from importlib import import_module
from types import ModuleType

from updcomp.wire.errors import Error

EXPERIMENTS = {
    "quickstart": "one world change on handwritten digits: every method, bytes against accuracy, in two minutes",
    "compare": "the same comparison on any dataset, model and shift",
    "language": "the same comparison of a character model that knew documentation and meets source code",
    "front": "the score that bytes buy, every method tuned with the same effort: front, bytes to reach, mean savings",
    "front_language": "the same of that character model",
    "rounds": "deep partial updating over many rounds, and all that its paper compares it with",
    "neurons": "training some neurons under a budget: ways to select them, what they take, and what they gain",
    "weight_sync": "a trainer that sends every step to a worker through files, each verified: sizes and seconds",
    "bench_train": "training speed with recording and masking, as ratios to PyTorch",
    "bench_neurons": "memory and speed of training some neurons, beside what the compiler says of them",
    "bench_wire": "codec speed and size, import time, applying a sparse update to 100 MB",
    "bench_codec": "exact updates beside zstd, bsdiff and others: bytes, speed both ways, memory, and what bounds them",
    "bench_scale": "training, selecting from and encoding up to 1 billion weights on up to 8 devices",
    "bench_select": "exact selection among 10 and 100 million scores, as ratios to lax.top_k and a sort",
}


def by_name(name: str) -> ModuleType:
    """The experiment's module.

    Raises:
      Error: there is no such experiment; lists the names.
    """
    if name not in EXPERIMENTS:
        raise Error(f"--experiment: expected one of {', '.join(EXPERIMENTS)}, found {name!r}")
    return import_module(f"experiments.{name}")

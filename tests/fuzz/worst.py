"""The most time and memory that an update takes which the default budget accepts: `python -m tests.fuzz.worst`.

For each model and kind of block, updates of random attacks (`crafting.Attack`) are made and applied; better ones are
changed further. The worst of each is measured again in a process of its own, on one core. Beside it stands the honest
worst: what the encoder makes of the largest packet of that kind that it does not refuse.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # before NumPy is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np

from tests.fuzz import crafting
from updcomp.wire import container, costs, dtypes, errors, versions
from updcomp.wire.kind import Head

_LANES = (None, None, 1, 8, 64, 512, 4096)
_SHARES = (1.0, 1.0, 0.3, 0.1, 0.02)


def _one(rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"w": ((rows, columns), "f4")}


def _many(count: int, *shape: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {f"layer{i:06d}": (shape, "f4") for i in range(count)}


def _mixed(blocks: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Matrices, convolutions, vectors and tables of every float dtype."""
    leaves = {
        "attention": ((256, 4, 64), "f4"),
        "bias": ((1024,), "f4"),
        "convolution": ((128, 64, 3, 3), "f4"),
        "depthwise": ((3, 3, 512), "f2"),
        "double": ((64, 256), "f8"),
        "feed": ((256, 1024), "bf16"),
        "scale": ((256,), "f8"),
        "table": ((4096, 32), "u1"),
    }
    return {f"{i:03d}/{name}": spec for i in range(blocks) for name, spec in leaves.items()}


MODELS = {
    "1 MB, one matrix": _one(500, 500),
    "1 MB, leaves of 8 x 8": _many(4_000, 8, 8),
    "1 MB, leaves of 16": _many(16_000, 16),
    "17 MB, one matrix": _one(1024, 4096),
    "17 MB, leaves of 32 x 32": _many(4_096, 32, 32),
    "17 MB, one tall matrix": _one(1 << 20, 4),
    "17 MB, mixed": _mixed(13),
    "100 MB, one matrix": _one(5_000, 5_000),
    "100 MB, leaves of 8 x 128": _many(24_000, 8, 128),
    "100 MB, mixed": _mixed(74),
}


def model(name: str) -> dict[str, np.ndarray]:
    """A model of `MODELS`: normal weights, of little memory beside them."""
    rng, made = np.random.default_rng(0), {}
    for leaf, (shape, dtype) in MODELS[name].items():
        if dtype == "u1":
            made[leaf] = rng.integers(0, 256, shape, np.uint8)
        else:
            weights = rng.standard_normal(shape, np.float32) * np.float32(0.05)
            bits = dtypes.round_floats(weights, dtypes.BFLOAT16) if dtype == "bf16" else weights.astype(dtype)
            made[leaf] = bits
    return made


def apply(update: bytes, base: dict[str, np.ndarray]) -> str:
    """Applies it; the class of the error and how its message begins."""
    try:
        container.apply_update(update, base)
        container.new_metadata(update, {})
    except errors.Error as error:
        return f"{type(error).__name__}: {str(error)[:40]}"
    return "accepted"


class Taken(NamedTuple):
    """What applying an update takes."""

    seconds: float  # of CPU
    peak: int  # bytes, those of the new leaves included
    outcome: str


def measure(update: bytes, base: dict[str, np.ndarray], *, traced: bool = True) -> Taken:
    """Applies an update in this process, and again with its memory traced."""
    start = time.process_time()
    outcome = apply(update, base)
    seconds = time.process_time() - start
    if not traced or outcome.startswith("CostError"):
        return Taken(seconds, 0, outcome)
    tracemalloc.start()
    apply(update, base)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Taken(seconds, peak, outcome)


def measured(name: str, update: bytes) -> Taken:
    """`measure` in a process of its own, on one core."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        file.write(update)
        file.flush()
        command = [sys.executable, "-m", "tests.fuzz.worst", "--measure", file.name, "--models", name]
        return Taken(*json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout))


class Found(NamedTuple):
    """An update that the default budget accepts."""

    taken: Taken  # here, where other processes may disturb it
    text: str
    update: bytes


NOTHING = Found(Taken(0.0, 0, ""), "none is accepted", b"")


def search(name: str, kind: str, count: int, seed: int) -> list[Found]:
    """The honest update, and of so many attacks the slowest and the largest."""
    base, rng = model(name), random.Random(f"{name} {kind} {seed}")
    plain = [crafting.Attack(kind, filler) for filler in crafting.FILLERS]
    tried = {attack: _attacked(attack, base) for attack in plain}
    for number in range(count):
        field = number % 2
        best = max(tried, key=lambda attack: tried[attack].taken[field])
        attack = _changed(rng.choice((best, best, rng.choice(plain))), max(leaf.ndim for leaf in base.values()), rng)
        if attack not in tried:
            tried[attack] = _attacked(attack, base)
    worst = [max(tried.values(), key=lambda found: found.taken[field]) for field in range(2)]
    return [_honest(crafting.Attack(kind, "honest"), base), *worst]


def _changed(attack: crafting.Attack, ndim: int, rng: random.Random) -> crafting.Attack:
    """One to three fields drawn anew."""
    drawn = {
        "filler": rng.choice(list(crafting.FILLERS)),
        "share": rng.choice(_SHARES),
        "lanes": rng.choice(_LANES),
        "view": rng.choice((None, rng.randrange(1, 3**ndim))),
        "last": rng.randrange(2) == 0,
    }
    return attack._replace(**{field: drawn[field] for field in rng.sample(list(drawn), rng.randrange(1, 4))})


def _attacked(attack: crafting.Attack, base: dict[str, np.ndarray]) -> Found:
    """An update with as much as the budget accepts."""
    for said in _fewer(crafting.heads(attack, dtypes.specs(base))):
        try:
            update = crafting.update(attack, base, said)
        except errors.Error:
            return NOTHING
        # Small leaves take little memory, and long to trace.
        taken = measure(update, base, traced=len(base) < 1000)
        if not taken.outcome.startswith("CostError"):
            sizes = max(head.size or 0 for head in said)
            text = f"{len(said)} blocks, sizes to {sizes}, {attack}, {len(update):,} B: {taken.outcome}"
            return Found(taken, text, update)
    return NOTHING


def _honest(attack: crafting.Attack, base: dict[str, np.ndarray]) -> Found:
    """What the encoder makes of the same, with as much as it accepts."""
    for said in _fewer(crafting.heads(attack, dtypes.specs(base))):
        try:
            sent = container.decode(crafting.update(attack, base, said), base)
            update = container.encode(sent, base)
        except errors.CostError:
            continue
        except errors.Error:
            return NOTHING
        return Found(Taken(0.0, 0, ""), f"{len(said)} blocks, {len(update):,} B", update)
    return NOTHING


def _fewer(said: list[Head]) -> Iterator[list[Head]]:
    """The blocks, then always a fifth less of them, or of the last one."""
    while said:
        yield said
        if len(said) > 1:
            said = said[: len(said) * 4 // 5]
        else:
            size = (said[0].size or 0) * 4 // 5
            said = [said[0]._replace(size=size)] if size else []


def main() -> None:
    """Searches, and prints a line for each model and kind."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.worst", description=__doc__)
    kinds = [kind.name for kind in versions.NEWEST.kinds.values()]
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--kinds", nargs="*", choices=kinds, default=kinds)
    parser.add_argument(
        "--count", type=int, default=10, help="attacks of each kind on each model, beside the plain ones"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the worst updates")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure.read_bytes(), model(options.models[0]))))
        return
    for name in options.models:
        specs = dtypes.specs(model(name))
        allowed, size = costs.allowed(specs, 1.0), sum(spec.nbytes for spec in specs.values())
        print(
            f"\n{name} ({len(specs)} leaves): allowed {allowed.operations / 1e9:.1f}e9 operations, "
            f"{allowed.working_bytes >> 20} MiB and the new model, {size >> 20} MiB\n"
            "kind         honest s   MiB | slowest s   MiB | largest s   MiB",
            flush=True,
        )
        for kind in options.kinds:
            found = search(name, kind, options.count, options.seed)
            _keep(options.keep, f"{name} {kind}", found)
            figures = " | ".join(_figures(name, one) for one in found)
            print(f"{kind:12} {figures}\n{'':14}slowest: {found[1].text}\n{'':14}largest: {found[2].text}", flush=True)
        bomb = Found(Taken(0.0, 0, ""), "", crafting.metadata_bomb(model(name)))
        print(f"{'metadata':12} {_figures(name, NOTHING)} | {_figures(name, bomb)}", flush=True)


def _keep(folder: Path | None, name: str, found: list[Found]) -> None:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for what, one in zip(("honest", "slowest", "largest"), found, strict=True):
            (folder / f"{name} {what}.updc".replace(" ", "-")).write_bytes(one.update)


def _figures(name: str, found: Found) -> str:
    if not found.update:
        return f"{'-':>8} {'-':>5}"
    taken = measured(name, found.update)
    return f"{taken.seconds:8.2f} {taken.peak >> 20:5}"


if __name__ == "__main__":
    main()

"""The codec against its entropy, the device's import, and sparse updates: 100 MB in memory, a file of 1 GB on disk."""

import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results import write_figures
from updcomp.edge import files
from updcomp.wire import container, dtypes, fingerprint, rans, tables
from updcomp.wire.increments import round_step
from updcomp.wire.kind import Block
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.sparse import Sparse
from updcomp.wire.packet import Packet

ROOT = Path(__file__).resolve().parents[1]

# Runs a command and prints its peak memory. A child of this process itself would begin with the peak of this one.
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """How often each figure is measured, the median counting, and the size of the model file that is updated."""

    repeats: int = 7
    file_bytes: int = 1_000_000_000


def run(config: Config, workdir: Path) -> dict[str, float]:
    """Measures everything and writes `bench_wire.json`.

    Args:
      config: how often.
      workdir: where the figures go.

    Returns:
      Figure name -> value.
    """
    figures = {
        **_rans(5_000_000, config.repeats),
        **_rans(5_000, config.repeats),
        **_imports(config.repeats),
        **_sparse_apply(config.repeats),
        **_file_apply(workdir, config.file_bytes, config.repeats),
        **_fixed_cost(),
    }
    for name, value in figures.items():
        print(f"{value:14,.3f}  {name}")
    write_figures(workdir, "bench_wire", figures)
    return figures


def _seconds(action: Callable[[], Any], repeats: int) -> float:
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _rans(count: int, repeats: int) -> dict[str, float]:
    """Symbols of a two-sided geometric distribution of 15 levels, as 4-bit updates have."""
    weights = 0.6 ** np.abs(np.arange(-7, 8))
    frequencies = np.maximum(1, np.floor(weights / weights.sum() * rans.TOTAL)).astype(np.int64)
    frequencies[7] += rans.TOTAL - frequencies.sum()
    symbols = np.random.default_rng(0).choice(15, count, p=frequencies / rans.TOTAL).astype(np.uint8)
    sizes, starts = frequencies[symbols], rans.starts_of(frequencies[None])[0][symbols]
    table = tables.Table.of(frequencies[None])
    encoder = rans.Encoder()
    encoder.push(starts, sizes)
    lanes, data = encoder.finish()

    def decode() -> np.ndarray:
        return rans.Decoder(data, lanes).pull(count, table)

    assert np.array_equal(decode(), symbols)
    entropy = rans.information(sizes) / 8
    return {
        f"rANS, {count:,} symbols: decoded, M symbols/s ({lanes} lanes)": count / _seconds(decode, repeats) / 1e6,
        f"rANS, {count:,} symbols: bytes above the model's entropy, %": 100 * (len(data) / entropy - 1),
    }


def _imports(repeats: int) -> dict[str, float]:
    def seconds(module: str) -> float:
        command = [sys.executable, "-c", f"import {module}"]
        return _seconds(lambda: subprocess.run(command, cwd=ROOT, check=True), repeats)

    numpy, edge = seconds("numpy"), seconds("updcomp.edge.__main__")
    return {"import of updcomp.edge and all it uses, s more than import numpy": edge - numpy}


def _sparse_apply(repeats: int) -> dict[str, float]:
    """25 million float32 weights in ten leaves, of which 1 % change."""
    generator = np.random.default_rng(0)
    model = {f"layer{i}/kernel": generator.normal(size=(2500, 1000)).astype(np.float32) for i in range(10)}
    update = _sparse_update(model, generator)
    megabytes = sum(leaf.nbytes for leaf in model.values()) / 1e6
    apply = _seconds(lambda: container.apply_update(update, model), repeats)
    hashing = _seconds(lambda: fingerprint.of(model), repeats)
    return {
        "1 % sparse update of 100 MB: applied with both fingerprints, MB/s": megabytes / apply,
        "1 % sparse update of 100 MB: time, as a multiple of two fingerprints alone": apply / (2 * hashing),
        "1 % sparse update of 100 MB: bytes per sent weight": len(update) / (0.01 * megabytes * 1e6 / 4),
    }


def _sparse_update(model: dtypes.Model, generator: np.random.Generator) -> bytes:
    """Of 1 % of the weights of every leaf."""
    blocks: dict[str, Block] = {}
    for name, leaf in model.items():
        positions = np.unique(generator.integers(0, leaf.size, leaf.size // 100))
        values = generator.integers(1, 8, len(positions)) * generator.choice([-1, 1], len(positions))
        blocks[name] = Sparse(positions, values.astype(np.int32), round_step(1e-3))
    return container.encode(Packet(blocks), model)


def _file_apply(workdir: Path, file_bytes: int, repeats: int) -> dict[str, float]:
    """The device's command line on a file of 32 leaves, of which 1 % change, against copying and syncing the file."""
    generator = np.random.default_rng(0)
    shape = (32, file_bytes // (32 * 32 * 4))
    model = {f"layer{i:02d}/kernel": generator.standard_normal(shape, np.float32) for i in range(32)}
    update = _sparse_update(model, generator)
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workdir) as name:
        folder = Path(name)
        files.write_model(folder / "old.safetensors", model)
        (folder / "update.upd").write_bytes(update)
        megabytes = (folder / "old.safetensors").stat().st_size / 1e6
        del model
        peaks: list[float] = []

        def apply() -> None:
            device = [sys.executable, "-m", "updcomp.edge", "apply"]
            command = [sys.executable, "-c", _PEAK, *device, "old.safetensors", "update.upd", "-o", "new.safetensors"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True)
            peaks.append(int(done.stdout) / 1024)

        def copy() -> None:
            with (folder / "old.safetensors").open("rb") as old, (folder / "copy").open("wb") as new:
                shutil.copyfileobj(old, new, 1 << 20)
                new.flush()
                os.fsync(new.fileno())

        applied, copied = _seconds(apply, repeats), _seconds(copy, repeats)
    title = f"1 % sparse update of a file of {megabytes:,.0f} MB, `updcomp.edge apply`"
    return {
        f"{title}: MB/s": megabytes / applied,
        f"{title}: time, as a multiple of copying and syncing the file": applied / copied,
        f"{title}: peak memory, MiB": max(peaks),
    }


def _fixed_cost() -> dict[str, float]:
    """Updates whose blocks carry a single changed weight each."""

    def size(leaves: int) -> int:
        model = {f"{i:03d}": np.zeros(1, np.float32) for i in range(leaves)}
        return len(container.encode(Packet({name: Dense(np.ones(1, np.int32), 1.0) for name in model}), model))

    return {
        "container: bytes with no block": size(0),
        "container: bytes per sent leaf of one weight": (size(200) - size(0)) / 200,
    }

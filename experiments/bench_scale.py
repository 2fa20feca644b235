"""Training, selecting and encoding of transformers of up to 1 billion weights on up to 8 devices, and what that says.

Devices are virtual ones of the CPU. Each model on each mesh has a process of its own.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments import resident, scale_report
from experiments.config import Check, Settings, anything, command, setting
from experiments.results import write_figures
from experiments.scale_cells import RATIO
from experiments.scale_models import LENGTH, ROWS, SIZES
from updcomp.wire.errors import Error

_NAME = "bench_scale"
_MESH = re.compile(r"(data)?[1-9]\d*")


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Scale."""

    sizes: tuple[str, ...] = setting(
        ("10M", "100M", "1B"),
        f"numbers of weights, some of {', '.join(SIZES)}",
        check=Check(lambda: f"some of {', '.join(SIZES)}", lambda value: set(value) <= set(SIZES)),
        later=anything,
    )
    meshes: tuple[str, ...] = setting(
        ("1", "2", "4", "8", "data8"),
        "devices that the model is split over; data8: 8 that leaves, optimizer state and batches are split over",
        check=Check(lambda: "numbers such as 8 or data8", lambda value: all(map(_MESH.fullmatch, value))),
        later=anything,
    )


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Measures every size on every mesh, and writes `bench_scale.json` and a report; what is there stays as it is.

    Args:
      config: what is measured.
      workdir: where the figures go.

    Returns:
      The settings, and the figures of each size and mesh, as `scale_cells.measure` gives them.
    """
    settings = {"ratio": RATIO, "rows": ROWS, "length": LENGTH, "sizes": {n: list(s) for n, s in SIZES.items()}}
    figures: dict[str, Any] = {"settings": settings, "cells": _measured(workdir, settings)}
    for size in config.sizes:
        for mesh in config.meshes:
            if (name := f"{size} {mesh}") not in figures["cells"]:
                print(f"{name}: measuring", flush=True)
                figures["cells"][name] = _in_a_process(size, mesh)
                write_figures(workdir, _NAME, figures)
    print(scale_report.write(workdir, figures["cells"], command=command(_NAME, config, workdir)))
    return figures


def _measured(workdir: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of an earlier start.

    Raises:
      Error: they are of other settings.
    """
    path = workdir / f"{_NAME}.json"
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    if before["settings"] != settings:
        raise Error(f"{path}: expected figures of {settings}, found {before['settings']}; use another --workdir")
    return dict(before["cells"])


def _in_a_process(size: str, mesh: str) -> dict[str, Any]:
    """The figures of one size on one mesh."""
    root = str(Path(__file__).parents[1])
    environment = {
        **os.environ,
        **resident.ALLOCATOR,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": mesh.removeprefix("data"),
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    arguments = [sys.executable, "-m", "experiments.scale_cells", size, mesh]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Error(f"{_NAME}: {size} {mesh}: its process failed: {done.stderr.strip()[-1000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))

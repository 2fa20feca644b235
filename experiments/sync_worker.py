"""The worker of `weight_sync`: a process of its own, which needs NumPy alone and follows a trainer by its files."""

import json
import sys
import time
from pathlib import Path

from updcomp import edge
from updcomp.edge import files
from updcomp.wire import fingerprint

START = "start.safetensors"
_PAUSE = 0.002  # seconds between looks for the next file


def update_path(folder: Path, step: int) -> Path:
    """Where the trainer puts the update of a step; it is there when it is whole."""
    return folder / f"{step:06d}.upd"


def answer_path(folder: Path, step: int) -> Path:
    """Where the worker says which model it has after a step."""
    return folder / f"{step:06d}.json"


def main(folder: Path, steps: int) -> None:
    """Applies an update after the other, and answers each with the fingerprint of the model that it has then.

    Args:
      folder: with the model to start from.
      steps: how many updates come.

    Raises:
      Error: an update does not start from the model that it has, or does not give what it promises.
    """
    model = edge.read_model(folder / START).model
    for step in range(1, steps + 1):
        while not update_path(folder, step).exists():
            time.sleep(_PAUSE)
        began = time.perf_counter()
        model = edge.apply(edge.read_bytes(update_path(folder, step)), model)
        seconds = time.perf_counter() - began
        # Applying has checked it; the trainer is told what was computed anew of what is held.
        answer = {"fingerprint": fingerprint.of(model).hex(), "seconds": seconds}
        files.write_bytes(answer_path(folder, step), json.dumps(answer).encode())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except edge.Error as error:
        sys.exit(f"worker: {error}")

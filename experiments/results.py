"""Rows of results on disk: appended one by one, so that a killed experiment continues where it was."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from updcomp.edge import files
from updcomp.wire.errors import Error

# What a second start may change: the same data may lie elsewhere by now, and more methods, seeds and rounds add rows.
_EXTENSIBLE = {"data_dir", "methods", "seeds", "rounds"}


class Row(NamedTuple):
    """One update of one method; one line of `results.jsonl`."""

    experiment: str
    dataset: str
    model: str
    method: str
    setting: str  # the method's options, such as "rank=4 bits=8 aux=16"
    seed: int
    round: int
    update_bytes: int  # size of the update file
    accuracy: float  # on the test set, of the model that the device wrote
    full_update_accuracy: float | None  # of the raw full update, same seed and round; None where that was not run
    deployed_accuracy: float  # of the model before the update
    train_seconds: float
    encode_seconds: float
    apply_seconds: float  # the device's process, its start included
    validation_accuracy: float  # of the model that the device wrote; what settings are chosen by
    deployed_validation_accuracy: float  # of the model before the update
    samples: int  # that the update was trained on
    restart: bool  # the update is relative to the first model rather than the one before
    sent: bool  # False: training gave nothing better on validation data, and an empty update went out
    trained_accuracy: float  # on the test set, of the model that training gave, sent or not
    plain_bytes: int  # the same update as int32 positions and float32 values, aux leaves included; 0 where not sent


class Results:
    """The rows in a working folder."""

    def __init__(self, workdir: Path, config: Any) -> None:
        """Opens or creates the folder.

        Args:
          workdir: the experiment's folder.
          config: the experiment's settings, a dataclass; they are kept beside the rows.

        Raises:
          Error: the folder holds results of other settings.
        """
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Error(f"--workdir: {workdir}: cannot make this folder: {error.strerror}") from None
        self._path = workdir / "results.jsonl"
        self._config = workdir / "config.json"
        self._settings = json.loads(json.dumps(dataclasses.asdict(config)))
        _check_same_settings(self._config, self._settings)
        self.rows = self._read()

    def _read(self) -> list[Row]:
        if not self._path.exists():
            return []
        # A line without its end was being written when the run was killed: its update is made again.
        lines = self._path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if whole != lines:
            files.write_bytes(self._path, "".join(whole).encode())
        try:
            return [Row(**json.loads(line)) for line in whole]
        except (ValueError, TypeError):
            expected = "expected one row of this version per line"
            raise Error(f"{self._path}: {expected}, found another; use another --workdir") from None

    def find(self, method: str, setting: str, seed: int, round_: int = 0) -> Row | None:
        """The row of an update that is done already."""
        wanted = (method, setting, seed, round_)
        return next((row for row in self.rows if (row.method, row.setting, row.seed, row.round) == wanted), None)

    def append(self, row: Row) -> None:
        """Adds a row, on disk before it returns; the settings come first, once they have proved to work."""
        if not self._config.exists():
            files.write_bytes(self._config, json.dumps(self._settings, indent=2).encode())
        with self._path.open("a") as file:
            file.write(json.dumps(row._asdict()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


def _check_same_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())
    except ValueError:
        raise Error(f"{path}: expected the settings as JSON, found something else; use another --workdir") from None
    names = (before.keys() | settings.keys()) - _EXTENSIBLE
    changed = sorted(name for name in names if before.get(name) != settings.get(name))
    if changed:
        name = changed[0]
        found = f"--{name}: expected {before.get(name)!r} as in {path}, found {settings.get(name)!r}"
        raise Error(f"{found}; give the same flags to continue, or another --workdir to start anew")


def command(experiment: str, config: Any) -> str:
    """The command that runs an experiment with these settings: every flag that is not at its default."""
    changed = [
        (field.name, getattr(config, field.name))
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    ]
    flags = (f"--{name}={','.join(value) if isinstance(value, tuple) else value}" for name, value in changed)
    return " ".join([f"python run.py --experiment={experiment}", *flags])

"""Rows of results on disk: appended one by one, so that a killed experiment continues where it was."""

import dataclasses
import fcntl
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from updcomp import protocol
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
    train_seconds: float  # since the last start of the experiment
    encode_seconds: float
    apply_seconds: float  # the device's process, its start included
    validation_accuracy: float  # of the model that the device wrote; what settings are chosen by
    deployed_validation_accuracy: float  # of the model before the update
    samples: int  # that the update was trained on
    restart: bool  # the update is relative to the first model rather than to the one before
    sent: bool  # False: training gave nothing better on validation data, and an empty update went out
    trained_accuracy: float  # on the test set, of the model that training gave, sent or not
    plain_bytes: int  # the same update as int32 positions and float32 values, aux leaves included; 0 where not sent


class Results:
    """The rows in a working folder."""

    def __init__(self, workdir: Path, config: Any) -> None:
        """Opens or creates the folder.

        Args:
          workdir: the experiment's folder.
          config: the experiment's settings, a dataclass.

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

    def keep_settings(self) -> None:
        """Writes the settings beside the rows; from here on, the folder is theirs.

        To be called once they have proved to fit, before anything is trained: its checkpoints are theirs as well.

        Raises:
          Error: another process was faster, with other settings.
        """
        _check_same_settings(self._config, self._settings)
        if not self._config.exists():
            files.write_bytes(self._config, json.dumps(self._settings, indent=2).encode())

    @property
    def rows(self) -> list[Row]:
        """All rows so far, those of other processes in this folder included."""
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines(keepends=True)
        try:
            # A line without its end is being written, or was when the run was killed.
            return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]
        except (ValueError, TypeError):
            expected = "expected one row of this version per line"
            raise Error(f"{self._path}: {expected}, found another; use another --workdir") from None

    def find(self, method: str, setting: str, seed: int, round_: int = 0) -> Row | None:
        """The row of an update that is done already."""
        wanted = (method, setting, seed, round_)
        return next((row for row in self.rows if (row.method, row.setting, row.seed, row.round) == wanted), None)

    def append(self, row: Row) -> None:
        """Adds a row, on disk before it returns."""
        with self._path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(row._asdict()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def row_of(result: protocol.Round, **fields: Any) -> Row:
    """A row with what the protocol measured of a round, and the other fields by name."""
    measured = ("update_bytes", "plain_bytes", "sent", "train_seconds", "encode_seconds", "apply_seconds")
    return Row(**{name: getattr(result, name) for name in measured}, **fields)


def write_figures(workdir: Path, name: str, figures: dict[str, Any]) -> None:
    """Writes what a benchmark measured as `NAME.json`."""
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_bytes(workdir / f"{name}.json", json.dumps(figures, indent=2).encode())


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

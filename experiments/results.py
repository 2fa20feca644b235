"""Rows of results on disk: appended one by one, so that a killed experiment continues where it was."""

import csv
import dataclasses
import fcntl
import importlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from experiments import specs
from experiments.config import described, unchanged
from experiments.specs import Setting
from updcomp import processes
from updcomp.edge import files
from updcomp.wire.errors import Error


class Identity(NamedTuple):
    """Which update a row is about; the same update is never made twice."""

    experiment: str
    dataset: str
    model: str
    about: dict[str, str]  # what else identifies the data, such as {"shift": "rotation"} or the digest of a text
    method: str
    setting: Setting  # the method's options, such as {"rank": 4, "bits": 2}
    seed: int
    round: int


class Row(NamedTuple):
    """One update of one method.

    A line of `results.jsonl` is one flat JSON object: the fields of the identity, in which `about` and `setting` are
    objects, and then every metric by its name. Where the score is called "accuracy", the metrics are

      update_bytes: size of the update file.
      plain_bytes: the same update as int32 positions and float32 values; 0 where nothing was sent.
      sent: false where training gave nothing better on validation data, and an empty update went out.
      accuracy: on the test data, of the model that the device wrote.
      full_update_accuracy: of the full update, same seed and round; null where that was not run.
      deployed_accuracy: of the model before the update.
      trained_accuracy: of the model that training gave, sent or not.
      validation_accuracy: of the model that the device wrote, on the validation data; what settings are chosen by.
      deployed_validation_accuracy: of the model before the update.
      train_seconds: making the update, without compile_seconds; since the last start of the experiment.
      compile_seconds, encode_seconds: of the same update.
      apply_seconds: the device's process, its start included.
      samples: that the update was trained on.
      restart: whether the update is relative to the first model rather than to the one before.
    """

    identity: Identity
    metrics: dict[str, Any]


class Results:
    """The rows in a working folder; of several processes the first one reads and writes it, and tells the others."""

    def __init__(self, workdir: Path, experiment: str, config: Any) -> None:
        """Checks that the folder is not in use with other settings; writes nothing.

        Args:
          workdir: the experiment's folder.
          experiment: its name.
          config: its settings, a dataclass.

        Raises:
          Error: it is.
        """
        self.workdir, self.experiment, self._config = workdir, experiment, config
        self._path, self._settings_path = workdir / "results.jsonl", workdir / "config.json"
        processes.from_first(self._check)

    def claim(self) -> None:
        """Makes the folder and writes the settings; from here on, it is theirs.

        To be called once they have proved to fit, before anything is trained: its checkpoints are theirs as well.

        Raises:
          Error: the folder cannot be made, or another process was faster, with other settings.
        """
        first = processes.from_first(self._now)
        processes.in_all(lambda: self._check_alike(first))
        processes.from_first(self._claim)
        token = processes.from_first(self._settings_path.read_bytes)
        processes.in_all(lambda: self._check_shared(token))

    def _check_alike(self, first: dict[str, Any]) -> None:
        """Checks that this process has the flags of the first one."""
        for name, value in self._now().items():
            if value != first[name]:
                raise Error(
                    f"--{name}: expected {first[name]!r} as in the first process, found {value!r}; give all the same"
                )

    def _check_shared(self, token: bytes) -> None:
        """Checks that this process sees what the first one wrote."""
        if not self._settings_path.exists() or self._settings_path.read_bytes() != token:
            expected = f"expected {self._settings_path} as the first process wrote it, found none or another"
            raise Error(f"--workdir: {expected}; with --multihost give a folder that all processes share")

    def _claim(self) -> None:
        try:
            for name in ("device", "updates"):
                (self.workdir / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Error(f"--workdir: {self.workdir}: cannot make this folder: {error.strerror}") from None
        before = self._check()
        now = {name: before.get(name) if value is None else value for name, value in self._now().items()}
        if now != before:
            files.write_bytes(self._settings_path, json.dumps(now, indent=2).encode())

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the latest start; those that it was not given are of the one before."""
        return processes.from_first(self._read_settings)

    def _read_settings(self) -> dict[str, Any]:
        if not self._settings_path.exists():
            return {}
        try:
            return dict(json.loads(self._settings_path.read_text()))
        except (ValueError, TypeError):
            expected = "expected the settings as JSON, found something else"
            raise Error(f"{self._settings_path}: {expected}; use another --workdir") from None

    def _now(self) -> dict[str, Any]:
        settings = {"experiment": self.experiment, **dataclasses.asdict(self._config)}
        return dict(json.loads(json.dumps(settings)))

    def _check(self) -> dict[str, Any]:
        """The settings that are there, which must go together with these."""
        before, now = self._read_settings(), self._now()
        for name in sorted(before.keys() | now.keys()) if before else ():
            later = described(type(self._config), name).get("later", unchanged)
            if not later(before.get(name), now.get(name)):
                found = f"expected {before.get(name)!r} as in {self._settings_path}, found {now.get(name)!r}"
                advice = "give the same flags to continue, or another --workdir to start anew"
                raise Error(f"--{name}: {found}; {advice}")
        return before

    @property
    def rows(self) -> list[Row]:
        """All rows so far, those of other processes in this folder included."""
        return processes.from_first(lambda: read(self._path))

    def find(self, identity: Identity) -> Row | None:
        """The row of an update that is done already.

        Raises:
          Error: it is there, but of other data.
        """
        for row in self.rows:
            if row.identity == identity:
                return row
            if row.identity._replace(about=identity.about) == identity:
                expected = f"expected rows about the same data, {identity.about}, found {row.identity.about}"
                raise Error(f"{self._path}: {expected}; use another --workdir")
        return None

    def append(self, row: Row) -> None:
        """Adds a row, on disk before it returns, and writes `results.csv` anew."""
        processes.from_first(lambda: self._append(row))

    def _append(self, row: Row) -> None:
        with self._path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps({**row.identity._asdict(), **row.metrics}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            files.write_bytes(self.workdir / "results.csv", to_csv(read(self._path)).encode())


def read(path: Path) -> list[Row]:
    """Reads `results.jsonl`.

    Args:
      path: of the file; no rows if it is not there.

    Returns:
      Its rows. A last line without its end is being written, or was when the run was killed, and does not count.

    Raises:
      Error: a line is no row of this version.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    try:
        return [_row(json.loads(line)) for line in lines if line.endswith("\n")]
    except (ValueError, TypeError, KeyError, AttributeError):
        expected = "expected one row of this version per line"
        raise Error(f"{path}: {expected}, found another; use another --workdir") from None


def _row(fields: dict[str, Any]) -> Row:
    identity = Identity(**{name: fields.pop(name) for name in Identity._fields})
    identity.about.items(), identity.setting.items()  # those of other versions were no objects
    return Row(identity, fields)


def flat(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as one level of columns, for tables.

    Args:
      rows: any.

    Returns:
      For each row its identity, with `setting` as text and each option as `setting_rank` and so on, what is in `about`
      as `about_shift` and so on, and the metrics. All have the same columns; None where a row lacks one.
    """
    parts = [_parts(row) for row in rows]
    columns = [name for part in zip(*parts, strict=True) for fields in part for name in fields]
    return [{name: {**one, **two, **three}.get(name) for name in dict.fromkeys(columns)} for one, two, three in parts]


def _parts(row: Row) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    names = {**row.identity._asdict(), "setting": specs.describe(row.identity.setting)}
    about = {f"about_{name}": value for name, value in names.pop("about").items()}
    return names, {**about, **{f"setting_{name}": value for name, value in row.identity.setting.items()}}, row.metrics


def to_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV with the columns of `flat`; empty where a row has none."""
    out = io.StringIO()
    if table := flat(rows):
        writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return out.getvalue()


def frame(workdir: str | Path) -> Any:
    """The rows of an experiment as a pandas DataFrame, one column for each of `flat`'s.

    Args:
      workdir: the experiment's folder.

    Returns:
      A `pandas.DataFrame`, such as for `frame.groupby(["method", "setting"]).accuracy.mean()`.

    Raises:
      Error: there are no results, or pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        raise Error("results.frame: expected pandas, found it not installed; pip install pandas") from None
    rows = read(Path(workdir) / "results.jsonl")
    if not rows:
        raise Error(f"{workdir}: expected rows in results.jsonl, found none; run an experiment with this --workdir")
    return pandas.DataFrame(flat(rows))


def write_figures(workdir: Path, name: str, figures: dict[str, Any]) -> None:
    """Writes what a benchmark measured as `NAME.json`."""
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_bytes(workdir / f"{name}.json", json.dumps(figures, indent=2).encode())

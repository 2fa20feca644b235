"""The entry point: whole in a process of its own and interrupted there, and all that flags can get wrong."""

import gc
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run as entry
from experiments import interrupts, quickstart
from experiments.results import read
from tests.experiments.little import QUICKSTART, ROUNDS, flags, lines_of, without_times

ROOT = Path(__file__).parents[2]
LITTLE = {**QUICKSTART, "model": "mlp", "settings": "subspace:rank=2,4"}


def test_ctrl_c_is_one_line_that_says_how_to_go_on_and_nothing_is_half_written(tmp_path, capsys):
    """The device is its own process here, as it is in use."""
    arguments = [f"--workdir={tmp_path / 'a folder'}", *flags(**LITTLE)]
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (rows := read(tmp_path / "a folder" / "results.jsonl")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = (text.decode() for text in process.communicate(timeout=120))
    assert (process.returncode, out) == (130, "")
    _, line, rest = err.split("\n")  # the progress bar comes first
    assert rest == ""
    assert line.startswith("updcomp: interrupted; this goes on where it was: python run.py ")
    assert not [path for path in (tmp_path / "a folder").rglob(".*") if path.name != "."]
    again = shlex.split(line.split(": ", 2)[2])[2:]
    assert again == arguments
    assert entry.main(again) == 0
    assert read(tmp_path / "a folder" / "results.jsonl")[: len(rows)] == rows
    out = capsys.readouterr().out
    assert re.search(r"\| subspace +\| rank=4 ", out)
    assert re.search(r"bytes instead of .* keep .* % of the full update's gain|No smaller update|gains nothing", out)


def test_ctrl_c_before_anything_is_loaded_is_one_line_as_well(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_run", interrupted)
    assert entry.main(["--workdir=a b"]) == 130
    assert capsys.readouterr().err.endswith("goes on where it was: python run.py '--workdir=a b'\n")


class Dying:
    """Garbage that only the collector finds, and that Ctrl-C meets in its finalizer."""

    def __init__(self, done):
        self.itself, self.done = self, done

    def __del__(self):
        self.done.append("finalizer")
        signal.raise_signal(signal.SIGINT)


def collect():
    gc.collect()
    time.sleep(5)


@pytest.mark.parametrize("where", ["finalizer", "start", "stop"])
def test_an_interrupt_within_the_garbage_collector_is_not_lost(where):
    before, callbacks, done = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGALRM)}, gc.callbacks[:], []

    def collecting(phase, info):
        if phase == where and not done:
            done.append(phase)
            signal.raise_signal(signal.SIGINT)

    if where == "finalizer":
        Dying(done)
    try:
        interrupts.install()
        gc.callbacks.append(collecting)
        with pytest.raises(KeyboardInterrupt):
            collect()
    finally:
        gc.callbacks[:] = callbacks
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done == [where]


def failed(arguments, capsys):
    """The one line of a start that fails."""
    status = entry.main(arguments)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("updcomp: error: ")]
    assert (status, out, len(lines)) == (2, "", 1)
    assert err.count("\n") == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment=nope"], "--experiment: expected one of quickstart, compare, language, front, "),
        (["--methods=best"], "--methods: expected some of full, partial"),
        (["--settings=low_rank:rank=0"], "--settings: low_rank: rank: expected"),
        (["--settings_file=/nonexistent.py"], "--settings_file: /nonexistent.py: cannot run it"),
        (["--shift=flood"], "--shift: expected one of rotation"),
        (["--shift=rotation:angle=1"], "--shift: rotation takes low=30, high=45"),
        (["--model=brain"], "--model: expected one of mlp"),
        (["--augment=mixup"], "--augment: expected one of none, crop_and_flip, found 'mixup'"),
        (["--experiment=bench_wire", "--epochs=3"], "--epochs: bench_wire does not read it"),
        (["--samples=5000"], "split: expected counts of together at most 1198"),
        (["--samples=20"], "--samples: expected at least --batch_size=50 samples to train on, found 20; use"),
        (["--dataset=mnist", "--data_dir=/nonexistent"], "mnist"),
        (["quickstart"], "expected flags only, found 'quickstart'"),
        (["--epochs=abc"], "--epochs"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["--batch_size=0"], "--batch_size: expected at least 1, found 0"),
        (["--learning_rate=nan"], "--learning_rate: expected above 0, found nan"),
        (["--optimizer=lion"], "--optimizer: expected one of adam, sgd, found 'lion'"),
        (["--schedule=never"], "--schedule: expected one of tenth"),
        (["--seeds=0"], "--seeds: expected at least 1, found 0"),
        (["--devices=99"], "--devices: expected from 1 to"),
        (["--flagfile=/nonexistent.flags"], "/nonexistent.flags"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_wrong_flags_are_one_line_and_exit_status_2_and_write_nothing(arguments, message, tmp_path, capsys):
    assert message in failed([f"--workdir={tmp_path / 'new'}", *arguments], capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio=0"], "--ratio: expected above 0 and at most 1, found 0.0"),
        (["--methods=fu", "--ratio=1.5"], "--ratio: expected above 0 and at most 1, found 1.5"),
        (
            ["--initial_samples=20"],
            "--initial_samples: expected at least --batch_size=30 samples to train on, found 20",
        ),
        (["--rounds=99"], "rounds: expected at most 19: 60 samples and 60 more each round of 1198 in all; found 99"),
        (["--validation_samples=600"], "--validation_samples: expected less than the 599 test images, found 600"),
        (["--methods=best"], "--methods: expected some of fu, "),
        (["--methods="], "--methods: expected some of fu, "),
        (["--aux=5"], "--aux: expected one of 0, 4, 8, 16, found 5"),
        (["--bits=17"], "--bits: expected from 2 to 16, found 17"),
        (["--sparse_rate=0"], "--sparse_rate: expected above 0, found 0.0"),
        (["--shift=rotation"], "--shift: rounds does not read it; it takes --optimizer, "),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_wrong_flags_of_rounds_are_one_line_and_write_nothing(arguments, message, tmp_path, capsys):
    given = ["--experiment=rounds", f"--workdir={tmp_path / 'new'}", *flags(**ROUNDS), *arguments]
    assert message in failed(given, capsys)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_reported_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = [f"--workdir={tmp_path / 'file' / 'new'}", *flags(**QUICKSTART)]
    assert entry.main(arguments) == 2
    assert "--workdir: " in capsys.readouterr().err


def test_other_flags_in_the_same_folder_are_refused(tmp_path, capsys):
    arguments = [f"--workdir={tmp_path}", *flags(**{**QUICKSTART, "settings": "full:bits=none"})]
    assert entry.main(arguments) == 0
    capsys.readouterr()
    assert "--epochs: expected 20 as in " in failed([*arguments, "--epochs=3"], capsys)
    assert len(lines_of(tmp_path)) == 1


def test_flags_and_config_are_the_same(tmp_path):
    assert entry.main([f"--workdir={tmp_path / 'flags'}", *flags(**{**QUICKSTART, "settings": "full:bits=none"})]) == 0
    rows = quickstart.run(quickstart.Config(**QUICKSTART, settings=("full:bits=none",)), tmp_path / "config")
    assert without_times(read(tmp_path / "flags" / "results.jsonl")) == without_times(rows)


def test_help_exits_with_status_0_and_starts_nothing(capsys):
    assert entry.main(["--help"]) == 0
    assert "--learning_rate" in capsys.readouterr().out

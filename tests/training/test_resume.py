"""Which saved training a training continues: its own, in any process, and no other."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import updcomp
from tests.methods.worlds import KEY, regression
from updcomp.methods import full, magnitude_mask, partial, random_mask
from updcomp.training import checkpoints

FOLDERS = """
import tempfile, os, sys
from tests.methods.worlds import KEY, regression
from updcomp.methods import full
from updcomp.training import checkpoints, loop
checkpoints.SECONDS_BETWEEN = -1.0
deployed, task = regression()
full()(KEY, deployed, task._replace(epochs=1, checkpoints=sys.argv[1]))
print(*os.listdir(sys.argv[1]))
"""


def test_another_process_finds_the_same_folder(tmp_path):
    found = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", FOLDERS, str(tmp_path / seed)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.add(done.stdout)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (random_mask(ratio=0.2), random_mask(ratio=0.6)),
        (magnitude_mask(ratio=0.2), magnitude_mask(ratio=0.6)),
        (partial(ratio=0.2), partial(ratio=0.6)),
        (full(bits=8), full(bits=4)),
        (full(bits=8), full(bits=8, rate=0.5)),
    ],
    ids=["random", "magnitude", "partial", "bits", "rate"],
)
def test_another_setting_in_the_same_folder_starts_anew(before, after, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", -1.0)
    deployed, task = regression()
    before(KEY, deployed, task._replace(checkpoints=tmp_path))
    found = after(KEY, deployed, task._replace(checkpoints=tmp_path))
    assert updcomp.encode(found, deployed) == updcomp.encode(after(KEY, deployed, task), deployed)


@pytest.mark.parametrize(
    "change",
    [
        lambda deployed, task: (jax.tree.map(lambda leaf: leaf * 1.5, deployed), task),
        lambda deployed, task: (deployed, task._replace(samples=np.arange(40))),
    ],
    ids=["model", "samples"],
)
def test_another_model_or_other_samples_start_anew(change, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", -1.0)
    deployed, task = regression()
    full(bits=8)(KEY, deployed, task._replace(checkpoints=tmp_path))
    other, changed = change(deployed, task)
    found = full(bits=8)(KEY, other, changed._replace(checkpoints=tmp_path))
    assert updcomp.encode(found, other) == updcomp.encode(full(bits=8)(KEY, other, changed), other)

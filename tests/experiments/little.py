"""What the tests of experiments share: small settings, and rows without what differs from run to run."""

import json

from experiments import quickstart, rounds

QUICKSTART = {
    "model": "tiny",
    "pretrain_samples": 100,  # as many as below: the same shapes compile once
    "samples": 100,
    "validation_samples": 50,
    "pretrain_epochs": 20,
    "epochs": 20,
    "learning_rate": 0.03,
    "seeds": 1,
}
ROUNDS = {
    "dataset": "digits",
    "model": "tiny",
    "initial_samples": 60,
    "step_samples": 60,
    "validation_samples": 200,
    "rounds": 4,
    "epochs": 2,
    "learning_rate": 0.03,
    "batch_size": 30,
    "ratio": 0.05,
}
TIMES = ("train_seconds", "compile_seconds", "encode_seconds", "apply_seconds")


class Killed(Exception):
    pass


def little(**options):
    return quickstart.Config(**{**QUICKSTART, "settings": ("subspace:rank=2,4",), **options})


def little_rounds(**options):
    return rounds.Config(**{**ROUNDS, "methods": ("fu", "dpu", "pruning"), **options})


def flags(**settings):
    return [f"--{name}={','.join(value) if isinstance(value, tuple) else value}" for name, value in settings.items()]


def without_times(rows):
    return [(row.identity, {name: value for name, value in row.metrics.items() if name not in TIMES}) for row in rows]


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]

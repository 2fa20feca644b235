"""Handwritten digits, deployed upright and then met rotated by 30 to 45 degrees: all methods, in a minute."""

import dataclasses
from pathlib import Path

from experiments import compare
from experiments.results import Row


@dataclasses.dataclass(frozen=True)
class Config(compare.Config):
    """The comparison at the size of the digits."""

    dataset: str = "digits"
    pretrain_samples: int = 550
    samples: int = 500
    validation_samples: int = 148
    pretrain_epochs: int = 30
    epochs: int = 30
    batch_size: int = 50
    learning_rate: float = 3e-3
    compact: bool = True


def run(config: Config, workdir: Path) -> list[Row]:
    """Runs the comparison; see `compare.run`."""
    return compare.run(config, workdir, experiment="quickstart")

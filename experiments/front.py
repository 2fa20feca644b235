"""Fronts of images that change: the accuracy that bytes buy, every method tuned with the same effort."""

import dataclasses
from pathlib import Path

from experiments import fronts, images
from experiments.results import Row


@dataclasses.dataclass(frozen=True)
class Config(fronts.FrontConfig, images.ShiftConfig):
    """What is compared."""

    epochs: int = 40


def run(config: Config, workdir: Path) -> list[Row]:
    """Runs it; see `fronts.run`."""
    return fronts.run(config, workdir, experiment="front", worlds=images.shifted)

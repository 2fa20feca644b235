"""Fronts of a character model that knew documentation and meets source code: the bits a character that bytes buy."""

import dataclasses
from pathlib import Path

from experiments import fronts, language
from experiments.results import Row


@dataclasses.dataclass(frozen=True)
class Config(fronts.FrontConfig, language.TextConfig):
    """What is compared."""

    rate_scale: float = 0.1  # a transformer's many small changes want lower ones than perceptrons
    tune_epochs: int = 1
    learning_rate: float = 2e-3
    epochs: int = 2
    batch_size: int = 16


def run(config: Config, workdir: Path) -> list[Row]:
    """Runs it; see `fronts.run`."""
    return fronts.run(config, workdir, experiment="front_language", worlds=language.documented)

"""A language model of characters, deployed for Python's documentation, then met with source code: bytes against bits.

Text that every Python installation has; see `updcomp.training.text`.
"""

import dataclasses
import functools
from pathlib import Path

from experiments import compare
from experiments.config import Check, setting
from experiments.results import Row
from experiments.settings import ComparisonConfig, Table
from experiments.trainings import TrainingConfig, check_rows, task_of
from experiments.worlds import Score, World, Worlds
from updcomp.training import text
from updcomp.training.language_model import language_model
from updcomp.training.objectives import Objective, make_score
from updcomp.training.transformer import Transformer, transformer

# A transformer's many small changes want lower rates than the methods' own, which suit perceptrons.
_COMMON = {"bits": 2, "aux": 4}
SETTINGS: Table = {
    "full": [{"bits": None}, {"bits": 4}, {"bits": 2}],
    "partial": [{"ratio": ratio, **_COMMON, "sparse_rate": 1.0} for ratio in (0.03, 0.1, 0.3)],
    "low_rank": [{"rank": rank, **_COMMON, "rate": 2.0} for rank in (2, 8, 16)],
    "subspace": [{"rank": rank, "bits": 2, "rate": 2.0} for rank in (16, 32, 64)],
    "random_mask": [{"ratio": ratio, **_COMMON, "rate": 1.5} for ratio in (0.03, 0.1, 0.3)],
    "magnitude_mask": [{"ratio": ratio, **_COMMON, "rate": 2.0} for ratio in (0.03, 0.1, 0.3)],
}
_BELOW_ONE = Check(lambda: "from 0 to below 1", lambda value: 0 <= value < 1)


@dataclasses.dataclass(frozen=True)
class TextConfig(TrainingConfig):
    """Text."""

    width: int = setting(64, "of the transformer, a multiple of its heads")
    depth: int = setting(2, "blocks of the transformer")
    heads: int = setting(4, "attention heads of each block")
    length: int = setting(64, "characters that the transformer reads at most, and that a sample predicts")
    dropout: float = setting(0.0, "share of each block's outputs that training drops", check=_BELOW_ONE)
    pretrain_characters: int = setting(1_200_000, "of documentation, that the deployed model is trained on")
    characters: int = setting(600_000, "of source code, that the server retrains on")
    validation_characters: int = setting(
        100_000, "of either, that choose the best epoch, and whether an update is sent"
    )
    test_characters: int = setting(200_000, "of source code, that the device meets")
    pretrain_epochs: int = setting(8, "epochs that the deployed model is trained for")
    pretrain_learning_rate: float = setting(6e-3, "at the start of the deployed model's training")
    schedule: str = "cosine"
    learning_rate: float = 2e-3
    epochs: int = 2
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Checks what needs no text.

        Raises:
          Error: a value does not fit.
        """
        super().__post_init__()
        _model(self)
        for name in ("pretrain_characters", "characters"):
            check_rows(name, (getattr(self, name) - 1) // self.length, self.batch_size)


@dataclasses.dataclass(frozen=True)
class Config(TextConfig, ComparisonConfig):
    """What is compared."""

    seeds: int = 1


def _model(config: TextConfig) -> Transformer:
    return transformer(
        vocabulary=text.VOCABULARY,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        length=config.length,
        dropout=config.dropout,
    )


@functools.cache
def _score(objective: Objective) -> Score:
    of = make_score(objective)
    return Score("bits_per_character", lambda variables, data: -of(variables, data), higher_is_better=False)


def documented(config: TextConfig) -> Worlds:
    """Worlds in which a model of documentation meets source code.

    Args:
      config: the experiment's settings.

    Returns:
      seed -> `World`; each seed has other documents and files.
    """
    model = _model(config)
    objective = language_model(model.apply)

    def world(seed: int) -> World:
        known, new = config.pretrain_characters, config.characters
        before = (known, config.validation_characters)
        after = (new, config.validation_characters, config.test_characters)
        documentation = text.topics_and_docstrings(sum(before), seed=seed)
        sources = text.sources(sum(after), seed=seed)
        documents = [text.windows(part, config.length) for part in text.split(documentation, before)]
        train, validation, test = [text.windows(part, config.length) for part in text.split(sources, after)]
        pretraining = task_of(config, objective, *documents)._replace(
            epochs=config.pretrain_epochs, learning_rate=config.pretrain_learning_rate
        )
        return World(
            dataset="python",
            model=f"transformer-{config.depth}x{config.width}",
            title=f"Python's documentation, then its source code; transformer {config.depth} x {config.width}",
            init=model.init,
            before=pretraining._replace(axes=model.axes),
            task=task_of(config, objective, train, validation)._replace(axes=model.axes),
            test=test,
            score=_score(objective),
            about={"documentation": text.digest(documentation), "sources": text.digest(sources)},
        )

    return world


def run(config: Config, workdir: Path) -> list[Row]:
    """Runs the comparison; see `compare.run`."""
    return compare.run(config, workdir, experiment="language", worlds=documented, defaults=SETTINGS)

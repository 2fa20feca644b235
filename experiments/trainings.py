"""How models are trained: the settings that all experiments with real trainings share, and the task they give."""

import dataclasses

import jax
import numpy as np
import optax

from updcomp.training import devices
from updcomp.training.augment import crop_and_flip
from updcomp.training.data import Dataset
from updcomp.training.loop import Task
from updcomp.training.models import Model
from updcomp.training.optimizers import OptimizerFactory, constant, cosine, every_third
from updcomp.wire.errors import Error


def _sgd(learning_rate: float) -> optax.GradientTransformation:
    """As residual networks are trained: Nesterov momentum 0.9, weight decay 1e-4."""
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(learning_rate, momentum=0.9, nesterov=True))


OPTIMIZERS: dict[str, OptimizerFactory] = {"adam": optax.adam, "sgd": _sgd}
SCHEDULES = {
    "tenth": every_third(0.1),  # times a tenth after each third of the epochs
    "fifth": every_third(0.2),
    "cosine": cosine,
    "constant": constant,
}
_AUGMENTED = ("cifar10", "cifar100", "imagenet2012")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training; counts are at least 1 unless a field's metadata says "least"."""

    dataset: str = "mnist"
    data_dir: str | None = None
    model: str = "mlp"
    optimizer: str = "adam"
    schedule: str = "tenth"
    learning_rate: float = 1e-3
    epochs: int = 20
    batch_size: int = 128
    devices: int = 1

    def __post_init__(self) -> None:
        """Checks the flags that no later step would explain.

        Raises:
          Error: a count is below 1, a name is unknown, or there are fewer devices.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < (least := field.metadata.get("least", 1)):
                raise Error(f"--{field.name}: expected at least {least}, found {value}")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if (found := getattr(self, name)) not in known:
                raise Error(f"--{name}: expected one of {', '.join(known)}, found {found!r}")
        if not self.learning_rate > 0:
            raise Error(f"--learning_rate: expected above 0, found {self.learning_rate}")
        if self.devices > len(jax.devices()) or self.batch_size % self.devices:
            expected = (
                f"at most {len(jax.devices())} (those that jax sees) and a divisor of --batch_size={self.batch_size}"
            )
            raise Error(f"--devices: expected {expected}, found {self.devices}")


def task_of(config: TrainingConfig, model: Model, train: Dataset, validation: Dataset) -> Task:
    """The task of training a model on these samples.

    Args:
      config: how.
      model: what.
      train: all training samples; placed on the devices unless they are a memory map, which is read as it is needed.
      validation: chooses the best epoch; placed on the devices.

    Returns:
      A `Task` without checkpoints.
    """
    mesh = devices.data_mesh(jax.devices()[: config.devices]) if config.devices > 1 else None
    return Task(
        apply=model.apply,
        train=train if isinstance(train.images, np.memmap) else devices.replicate(train, mesh),
        validation=devices.replicate(validation, mesh),
        optimizer=OPTIMIZERS[config.optimizer],
        learning_rate=config.learning_rate,
        epochs=config.epochs,
        batch_size=config.batch_size,
        schedule=SCHEDULES[config.schedule],
        augment=crop_and_flip if config.dataset in _AUGMENTED else None,
        mesh=mesh,
    )

"""How models are trained: the settings that all experiments with real trainings share, and the task that they give."""

import dataclasses

import jax
import numpy as np
import optax

from experiments.config import Settings, anything, one_of, setting
from updcomp.training import devices
from updcomp.training.batches import Stream
from updcomp.training.objectives import Objective
from updcomp.training.optimizers import OptimizerFactory, constant, cosine, every_third
from updcomp.training.tasks import KEPT, Task
from updcomp.trees import PyTree
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


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Settings):
    """Training."""

    optimizer: str = setting(
        "adam", "adam, or sgd with Nesterov momentum 0.9 and weight decay 1e-4", check=one_of(OPTIMIZERS)
    )
    schedule: str = setting(
        "tenth", "of the learning rate: tenth or fifth (after each third), cosine or constant", check=one_of(SCHEDULES)
    )
    keep: str = setting(
        "best",
        "the epoch that an update is of: best on the validation data, or last, if that beats the start",
        check=one_of(KEPT),
    )
    learning_rate: float = setting(1e-3, "at the start of each training; methods multiply it")
    epochs: int = setting(20, "epochs of each training of an update")
    batch_size: int = setting(128, "samples per step")
    devices: int | None = setting(
        None, "devices that train together; if not given, one, and with --multihost all of them", later=anything
    )
    model_axis: int = setting(
        1, "of these, devices that the model is split over; every batch is split over the others", later=anything
    )

    compact: bool = setting(
        False, "update files with fingerprints of 8 bytes each in place of 16 and a checksum: 20 bytes less"
    )

    def __post_init__(self) -> None:
        """Checks the fields, and that there are so many devices.

        Raises:
          Error: a value does not fit.
        """
        super().__post_init__()
        there = jax.device_count()
        if self.devices is not None and not 1 <= self.devices <= there:
            raise Error(f"--devices: expected from 1 to {there}, those that jax sees, found {self.devices}")
        if jax.process_count() > 1 and self.devices not in (None, there):
            raise Error(f"--devices: expected all {there} with --multihost, found {self.devices}; leave it out")
        count = self.device_count
        if count % self.model_axis:
            raise Error(f"--model_axis: expected a divisor of the {count} devices, found {self.model_axis}")
        if self.batch_size % (parts := count // self.model_axis):
            found = f"expected a multiple of {parts}, the parts that {count} devices split it into"
            raise Error(f"--batch_size: {found}, found {self.batch_size}; change it, --devices or --model_axis")

    @property
    def device_count(self) -> int:
        """How many devices train together."""
        return self.devices or (1 if jax.process_count() == 1 else jax.device_count())


def check_rows(flag: str, rows: int, batch_size: int) -> None:
    """Checks that a training set has a batch, before anything is trained.

    Raises:
      Error: it has fewer samples.
    """
    if rows < batch_size:
        expected = f"expected at least --batch_size={batch_size} samples to train on"
        raise Error(f"--{flag}: {expected}, found {rows}; use more samples or a smaller batch")


def task_of(config: TrainingConfig, objective: Objective, train: PyTree | Stream, validation: PyTree) -> Task:
    """The task of training a model.

    Args:
      config: how.
      objective: what is minimised, and what the best epoch is chosen by.
      train: arrays with a common leading axis, placed on the devices; or a stream, or arrays with a memory map among
        them, which are read as they are needed.
      validation: arrays; placed on the devices.

    Returns:
      A `Task` without checkpoints.
    """
    count = config.device_count
    mesh = devices.make_mesh(jax.devices()[:count], model=config.model_axis) if count > 1 else None
    streamed = isinstance(train, Stream) or any(isinstance(leaf, np.memmap) for leaf in jax.tree.leaves(train))
    streamed |= jax.process_count() > 1  # then each reads the rows of its own devices
    return Task(
        objective=objective,
        train=train if streamed else devices.replicate(train, mesh),
        validation=devices.replicate(validation, mesh),
        optimizer=OPTIMIZERS[config.optimizer],
        learning_rate=config.learning_rate,
        epochs=config.epochs,
        batch_size=config.batch_size,
        schedule=SCHEDULES[config.schedule],
        keep=config.keep,
        mesh=mesh,
    )

"""Labelled images: handwritten digits or any dataset of TensorFlow Datasets, a model for them, and how they change."""

import dataclasses
import functools
from typing import NamedTuple

import jax

from experiments import shifts
from experiments.config import Settings, anything, at_least, one_of, setting
from experiments.trainings import TrainingConfig, check_rows, task_of
from experiments.worlds import Score, World, Worlds, keys_of
from updcomp import processes
from updcomp.training import data, models
from updcomp.training.augment import crop_and_flip
from updcomp.training.classification import Augment, classification
from updcomp.training.objectives import Objective, make_score
from updcomp.trees import PyTree

AUGMENTATIONS: dict[str, Augment | None] = {"none": None, "crop_and_flip": crop_and_flip}
AUGMENTED = dict.fromkeys(("cifar10", "cifar100", "imagenet2012"), "crop_and_flip")  # where no flag says otherwise


@dataclasses.dataclass(frozen=True)
class ImageConfig(Settings):
    """Labelled images."""

    dataset: str = setting("mnist", "digits, or any TFDS image-classification dataset prepared under --data_dir")
    data_dir: str | None = setting(None, "folder of prepared TFDS datasets", later=anything)
    image_size: int = setting(
        0,
        "pixels a side that images are resized to; 0: as they are, and 224 where they vary in size",
        check=at_least(0),
    )
    model: str = setting("mlp", ", ".join(models.MODELS), check=one_of(models.MODELS))
    augment: str | None = setting(
        None,
        f"what training does to its images: {' or '.join(AUGMENTATIONS)}; if not given, "
        f"{'; '.join(f'{name}: {what}' for name, what in AUGMENTED.items())}; others: none",
        check=one_of(AUGMENTATIONS),
    )


@dataclasses.dataclass(frozen=True)
class ShiftConfig(ImageConfig, TrainingConfig):
    """A world that changes."""

    shift: str = setting(
        "rotation", f"how it changes, with these numbers or others: {', '.join(map(shifts.usual, shifts.SHIFTS))}"
    )
    pretrain_samples: int = setting(
        20_000, "samples that the deployed model is trained on (those of its classes, where the shift changes them)"
    )
    samples: int = setting(5_000, "new samples that the server retrains on (with --shift=other_classes, those of them)")
    validation_samples: int = setting(1_000, "samples that choose the best epoch, and whether an update is sent")
    pretrain_epochs: int = setting(10, "epochs that the deployed model is trained for")

    def __post_init__(self) -> None:
        """Checks what needs no data.

        Raises:
          Error: a value does not fit.
        """
        super().__post_init__()
        shifts.choose(self.shift)
        check_rows("samples", self.samples, self.batch_size)


class Images(NamedTuple):
    """A dataset, a model for it, and how that is trained and judged."""

    source: data.Source
    model: models.Model
    objective: Objective
    score: Score

    def init(self, key: jax.Array) -> PyTree:
        """Variables before any training."""
        return self.model.init(key, self.source.train.images)


def load(config: ImageConfig) -> Images:
    """The images that the settings name.

    Args:
      config: the experiment's.

    Returns:
      `Images`.

    Raises:
      DatasetError: the dataset is not there.
    """
    size = config.image_size or None
    source = processes.in_all(lambda: data.load(config.dataset, data_dir=config.data_dir, image_size=size))
    augment = config.augment or AUGMENTED.get(config.dataset, "none")
    return Images(source, *_judged(config.model, source.num_classes, augment))


@functools.cache
def _judged(name: str, num_classes: int, augment: str) -> tuple[models.Model, Objective, Score]:
    """Once for the same arguments, so that a second experiment in a process compiles nothing anew."""
    model = models.by_name(name, num_classes=num_classes)
    objective = classification(model.apply, augment=AUGMENTATIONS[augment])
    return model, objective, Score("accuracy", make_score(objective))


def shifted(config: ShiftConfig) -> Worlds:
    """Worlds in which images or their classes change after deployment.

    Args:
      config: the experiment's settings.

    Returns:
      seed -> `World`: disjoint random samples for before, after and validation, and the changed test set.

    Raises:
      DatasetError: the dataset is not there, or has too few samples.
    """
    images, shift = load(config), shifts.choose(config.shift)

    def world(seed: int) -> World:
        counts = (config.pretrain_samples, config.samples, config.validation_samples)
        before, new, validation = data.split(images.source.train, counts, seed=seed)
        before, known = (shift.before(samples, images.source) for samples in (before, validation))
        check_rows("pretrain_samples", len(before.labels), config.batch_size)
        keys = keys_of(seed)
        new, after = shift.after(new, images.source, keys.new), shift.after(validation, images.source, keys.validation)
        check_rows("samples", len(new.labels), config.batch_size)
        pretraining = task_of(config, images.objective, before, known)._replace(epochs=config.pretrain_epochs)
        return World(
            dataset=config.dataset,
            model=config.model,
            title=f"{config.dataset}, {config.model}, {config.shift}",
            init=images.init,
            before=pretraining,
            task=task_of(config, images.objective, new, after),
            test=shift.after(images.source.test, images.source, keys.test),
            score=images.score,
            about={"shift": config.shift},
        )

    return world

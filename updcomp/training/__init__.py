"""Training an update: objectives over batches of any kind, tasks, models, masked optimizers, the compiled loop."""

from updcomp.training.batches import Stream
from updcomp.training.classification import classification
from updcomp.training.devices import make_mesh
from updcomp.training.objectives import Extra, Mean, Objective, make_score
from updcomp.training.tasks import Epoch, Task

__all__ = ["Epoch", "Extra", "Mean", "Objective", "Stream", "Task", "classification", "make_mesh", "make_score"]

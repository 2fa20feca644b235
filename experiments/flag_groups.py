"""All flags, in groups. A flag that is not given leaves an experiment's own default (its `Config`) in place."""

import dataclasses
import textwrap
from typing import Any, NamedTuple, TypeVar

from absl import flags

from experiments import EXPERIMENTS
from updcomp.training.models import MODELS
from updcomp.wire.errors import Error

ConfigT = TypeVar("ConfigT")


class Flag(NamedTuple):
    """One flag."""

    name: str
    kind: str  # the absl flag type: string, integer, float, bool or list
    help: str


GROUPS: dict[str, list[Flag]] = {
    "Data": [
        Flag("dataset", "string", "digits, or any TFDS image-classification dataset prepared under --data_dir"),
        Flag("data_dir", "string", "folder of prepared TFDS datasets"),
        Flag("shift", "string", "how the world changes after deployment: rotation, contrast_noise or classes"),
        Flag(
            "pretrain_samples",
            "integer",
            "samples that the deployed model is trained on (with --shift=classes, those of its classes)",
        ),
        Flag("samples", "integer", "new samples that the server retrains on"),
        Flag("validation_samples", "integer", "samples that choose the best epoch; in rounds they are test images"),
    ],
    "Model and training": [
        Flag("model", "string", ", ".join(MODELS)),
        Flag("optimizer", "string", "adam, or sgd with Nesterov momentum 0.9 and weight decay 1e-4"),
        Flag("schedule", "string", "of the learning rate: tenth or fifth (after each third), cosine or constant"),
        Flag("learning_rate", "float", "at the start of each training; methods multiply it"),
        Flag("pretrain_epochs", "integer", "epochs that the deployed model was trained for"),
        Flag("epochs", "integer", "epochs of each training of an update"),
        Flag("batch_size", "integer", "samples per step"),
        Flag("devices", "integer", "devices that every batch is split over"),
    ],
    "Methods": [
        Flag(
            "methods",
            "list",
            "which to compare: full, partial, low_rank, subspace, random_mask, magnitude_mask; in rounds: fu, fu_last, "
            "fu_fresh, dpu, dpu_no_restart, gcpu, lcpu, rpu, pruning, pruning_gradual, iterative, magnitude",
        ),
        Flag("seeds", "integer", "how many seeds; each has its own deployed model, samples and order"),
    ],
    "Rounds": [
        Flag("rounds", "integer", "how many rounds; the training set is cumulative"),
        Flag("initial_samples", "integer", "samples of the first round"),
        Flag("step_samples", "integer", "samples that each later round adds"),
        Flag("ratio", "float", "updating ratio: the share of all kernels' weights that is sent, above 0 and at most 1"),
        Flag("bits", "integer", "of each sent weight's delta, from 2 to 16"),
        Flag("aux", "integer", "bits of the deltas of biases, norms and statistics: 4, 8, 16, or 0 to send none"),
        Flag("sparse_rate", "float", "multiplies the learning rate of trainings that move the sent weights only"),
        Flag("keep_moments", "bool", "the sparse training goes on with the full one's optimizer state"),
    ],
}


def define() -> None:
    """Defines every flag; called once by the entry point, so that notebooks can import experiments without flags."""
    flags.DEFINE_string("experiment", "quickstart", f"which experiment to run: {', '.join(EXPERIMENTS)}")
    flags.DEFINE_string("workdir", None, "folder for results; default runs/EXPERIMENT; a second start there continues")
    for group in GROUPS.values():
        for flag in group:
            getattr(flags, f"DEFINE_{flag.kind}")(flag.name, None, flag.help)


def configure(config: type[ConfigT], experiment: str) -> ConfigT:
    """An experiment's settings: its defaults, and every flag that was given.

    Args:
      config: the experiment's dataclass.
      experiment: its name, for the message.

    Returns:
      An instance.

    Raises:
      Error: a flag was given that this experiment does not read.
    """
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for flag in (flag for group in GROUPS.values() for flag in group):
        value = flags.FLAGS[flag.name].value
        if value is None:
            continue
        if flag.name not in names:
            expected = ", ".join(f"--{name}" for name in names)
            raise Error(f"--{flag.name}: {experiment} does not read it; it takes {expected}")
        given[flag.name] = tuple(value) if flag.kind == "list" else value
    return config(**given)


def help_text() -> str:
    """What --help prints: how to start, the experiments, and every flag in its group."""
    lines = ["updcomp: the smallest update that turns the deployed model into the new one.", ""]
    lines += ["  python run.py [--experiment=NAME] [--workdir=FOLDER] [--flagfile=PRESET] [flags]", "", "Experiments:"]
    lines += [_entry(name, text) for name, text in EXPERIMENTS.items()]
    general = [("--experiment", "which one; default quickstart"), ("--workdir", "results; default runs/EXPERIMENT")]
    general.append(("--flagfile", "a file with one flag per line, such as those in experiments/presets"))
    lines += ["", "General:", *(_entry(name, text) for name, text in general)]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(_entry(f"--{flag.name}", flag.help) for flag in group)]
    return "\n".join(
        [*lines, "", "A flag that an experiment does not read is an error, and the message lists those it does."]
    )


def _entry(name: str, text: str) -> str:
    return textwrap.fill(text, 110, initial_indent=f"  {name:<22}", subsequent_indent=" " * 24)

"""What people read of rounds: the table of means over all rounds, and accuracy over rounds."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import report
from experiments.results import Row
from updcomp.edge import files

REFERENCE = "fu"  # full updating: every other method is measured against it
PUBLISHED = {  # the authors' README: mean accuracy over all rounds minus full updating, in points
    ("mnist", "mlp", "ratio=0.005"): {"dpu": -0.17, "gcpu": -0.72, "rpu": -4.04, "pruning": -1.45},
    ("cifar10", "vgg", "ratio=0.01"): {"dpu": 0.33, "gcpu": -1.51, "rpu": -11.35, "pruning": -4.35},
    ("cifar100", "resnet56", "ratio=0.1"): {"dpu": -0.42, "gcpu": -3.87, "rpu": -7.78, "pruning": -2.35},
}
HEAD = ("method", "rounds", "accuracy %", "to fu", "trained, to fu", "published", "sent", "bytes", "uncoded", "train s")


LEGEND = """Means over rounds, ± standard deviation over seeds, on test samples that chose nothing. *accuracy* is that
of what the device holds, which only changes for a model that is better on validation data; *to fu* its difference to
full updating, in points; *trained* compares what training gave in each round, sent or not. *bytes* are all files
together; *uncoded* the same updates as int32 positions and float32 values.
"""


class Line(NamedTuple):
    """One method over its rounds; arrays have one entry a seed, percentages and points."""

    method: str
    rounds: int  # that all its seeds have; all that follows is of these
    accuracy: np.ndarray  # mean over rounds of the model that the device holds
    difference: (
        np.ndarray
    )  # of that to full updating of the same seed and rounds; without entries where that is missing
    trained_difference: np.ndarray  # the same of the models that training gave, sent or not
    published: float | None
    sent: float  # rounds that sent something, mean over seeds
    update_bytes: float  # all files together, mean over seeds
    plain_bytes: float  # the same updates as int32 positions and float32 values
    train_seconds: float  # all rounds together, mean over seeds


def summarise(rows: Iterable[Row]) -> list[Line]:
    """One line per method, in the order in which they first come."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.method].append(row)
    reference = {(row.seed, row.round): row for row in groups.get(REFERENCE, [])}
    return [_line(method, group, reference) for method, group in groups.items()]


def _line(method: str, rows: list[Row], reference: dict[tuple[int, int], Row]) -> Line:
    seeds = sorted({row.seed for row in rows})
    of_seed = ({row.round for row in rows if row.seed == seed} for seed in seeds)
    common = set.intersection(*of_seed)  # where one seed has gone further, its further rounds would bend the spread
    rows = [row for row in rows if row.round in common]

    def means(value: Callable[[Row], float], rows: list[Row]) -> np.ndarray:
        groups = ([value(row) for row in rows if row.seed == seed] for seed in seeds)
        return np.array([np.mean(group) for group in groups if group])

    def total(value: Callable[[Row], float]) -> float:
        return sum(map(value, rows)) / len(seeds)

    paired = [row for row in rows if (row.seed, row.round) in reference]
    return Line(
        method,
        len(common),
        100 * means(lambda row: row.accuracy, rows),
        100 * means(lambda row: row.accuracy - reference[row.seed, row.round].accuracy, paired),
        100 * means(lambda row: row.trained_accuracy - reference[row.seed, row.round].trained_accuracy, paired),
        PUBLISHED.get((rows[0].dataset, rows[0].model, rows[0].setting.split()[0]), {}).get(method),
        total(lambda row: row.sent),
        total(lambda row: row.update_bytes),
        total(lambda row: row.plain_bytes),
        total(lambda row: row.train_seconds),
    )


def table(lines: Sequence[Line]) -> str:
    """The lines as a Markdown table: means over rounds, ± standard deviation where there are several seeds."""
    body = [
        (
            line.method,
            str(line.rounds),
            _with_spread(line.accuracy, ".2f"),
            _with_spread(line.difference, "+.2f"),
            _with_spread(line.trained_difference, "+.2f"),
            "-" if line.published is None else f"{line.published:+.2f}",
            f"{line.sent:.0f}",
            f"{line.update_bytes:,.0f}",
            f"{line.plain_bytes:,.0f}",
            f"{line.train_seconds:,.0f}",
        )
        for line in lines
    ]
    return report.markdown(HEAD, body, left=(0,))


def _with_spread(values: np.ndarray, form: str) -> str:
    if not len(values):
        return "-"
    return f"{values.mean():{form}}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def plot(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """Accuracy over rounds, one line a method with its spread over seeds, and the difference to full updating.

    Args:
      rows: of the results.
      path: the `.png` to write.
      title: what was compared.
    """
    reference = {(row.seed, row.round): row.accuracy for row in rows if row.method == REFERENCE}
    with report.figure(path, panels=2) as (accuracy, difference):
        for method in dict.fromkeys(row.method for row in rows):
            own = [row for row in rows if row.method == method]
            _curve(accuracy, {(row.seed, row.round): row.accuracy for row in own}, method)
            paired = {(row.seed, row.round): row for row in own if (row.seed, row.round) in reference}
            _curve(difference, {key: row.accuracy - reference[key] for key, row in paired.items()}, method)
        accuracy.set(ylabel="test accuracy on the device, %", title=title)
        difference.set(xlabel="round", ylabel="difference to full updating, points")
        accuracy.legend(loc="lower right", ncols=2)


def _curve(axes: Any, values: dict[tuple[int, int], float], label: str) -> None:
    rounds = sorted({number for _, number in values})
    if not rounds:
        return
    groups = [[100 * value for (_, number), value in values.items() if number == wanted] for wanted in rounds]
    mean, spread = np.array([(np.mean(group), np.std(group, ddof=len(group) > 1)) for group in groups]).T
    (line,) = axes.plot(rounds, mean, marker=".", linewidth=1.5, label=label)
    axes.fill_between(rounds, mean - spread, mean + spread, color=line.get_color(), alpha=0.2, linewidth=0)


def write(workdir: Path, rows: Sequence[Row], *, command: str) -> str:
    """Writes `report.md` and `accuracy_over_rounds.png` and returns the table.

    Args:
      workdir: the experiment's folder.
      rows: of the results.
      command: that made them.

    Returns:
      The table.
    """
    settings = [row.setting for row in rows if row.setting != "raw"] or ["raw"]
    title = f"{rows[0].dataset}, {rows[0].model}, {settings[0]}"
    plot(rows, workdir / "accuracy_over_rounds.png", title=title)
    shown = table(summarise(rows))
    picture = "![Accuracy over rounds](accuracy_over_rounds.png)"
    text = f"# {title}\n\n    {command}\n\n{shown}\n\n{picture}\n\n{LEGEND}"
    files.write_bytes(workdir / "report.md", text.encode())
    return shown

"""What people read of rounds: the table of means over all rounds, and accuracy over rounds."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import report
from experiments.report import Picture, Report, Table
from experiments.results import Identity, Row
from experiments.specs import describe
from updcomp.methods import METHODS

REFERENCE = "fu"  # full updating: every other method is measured against it
# The authors' README: mean accuracy over all rounds minus full updating, in points; by dataset, model and ratio.
PUBLISHED: dict[tuple[str, str, float], dict[str, float]] = {
    ("mnist", "mlp", 0.005): {"dpu": -0.17, "gcpu": -0.72, "rpu": -4.04, "pruning": -1.45},
    ("cifar10", "vgg", 0.01): {"dpu": 0.33, "gcpu": -1.51, "rpu": -11.35, "pruning": -4.35},
    ("cifar100", "resnet56", 0.1): {"dpu": -0.42, "gcpu": -3.87, "rpu": -7.78, "pruning": -2.35},
}
HEAD = (
    "method",
    "rounds",
    "accuracy %",
    "to full updating",
    "trained, to the same",
    "published",
    "sent",
    "bytes",
    "as index and value",
    "train s",
)
LEGEND = (
    "Means over rounds, ± standard deviation over seeds, on test samples that chose nothing. Accuracy is that of what "
    "the device holds, which only changes for a model that is better on validation data; next to it its difference to "
    "full updating (fu), in points; trained compares what training gave in each round, sent or not. Sent counts the "
    "rounds that sent something, bytes are all files together, as index and value the numbers that they send as "
    "float32, with an int32 position for each weight of a mask. Training excludes compilation."
)


def label(identity: Identity) -> str:
    """What tables and plots call a row: a variant by its name, any other method with its setting."""
    if identity.method not in METHODS:
        return identity.method
    return f"{identity.method} {describe(identity.setting)}"


class Line(NamedTuple):
    """One method over its rounds; arrays have one entry a seed, percentages and points."""

    method: str
    rounds: int  # that all its seeds have; all that follows is of these
    accuracy: np.ndarray  # mean over rounds of the model that the device holds
    difference: np.ndarray  # of that to full updating of the same seed and rounds; empty where that is missing
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
        groups[label(row.identity)].append(row)
    reference = {_when(row): row for row in groups.get(REFERENCE, [])}
    return [_line(method, group, reference) for method, group in groups.items()]


def _when(row: Row) -> tuple[int, int]:
    return row.identity.seed, row.identity.round


def _line(method: str, rows: list[Row], reference: dict[tuple[int, int], Row]) -> Line:
    seeds = sorted({row.identity.seed for row in rows})
    of_seed = ({row.identity.round for row in rows if row.identity.seed == seed} for seed in seeds)
    common = set.intersection(*of_seed)  # where one seed has gone further, its further rounds would bend the spread
    rows = [row for row in rows if row.identity.round in common]

    def means(value: Callable[[Row], float], rows: list[Row]) -> np.ndarray:
        groups = ([value(row) for row in rows if row.identity.seed == seed] for seed in seeds)
        return np.array([100 * np.mean(group) for group in groups if group])

    def to_reference(metric: str) -> np.ndarray:
        paired = [row for row in rows if _when(row) in reference]
        return means(lambda row: row.metrics[metric] - reference[_when(row)].metrics[metric], paired)

    def total(metric: str) -> float:
        return float(sum(row.metrics[metric] for row in rows)) / len(seeds)

    identity = rows[0].identity
    ratio = identity.setting.get("ratio")
    published = PUBLISHED.get((identity.dataset, identity.model, ratio), {}) if isinstance(ratio, float) else {}
    return Line(
        method,
        len(common),
        means(lambda row: row.metrics["accuracy"], rows),
        to_reference("accuracy"),
        to_reference("trained_accuracy"),
        published.get(method),
        total("sent"),
        total("update_bytes"),
        total("plain_bytes"),
        total("train_seconds"),
    )


def table(lines: Sequence[Line]) -> Table:
    """The lines as a table: means over rounds, ± standard deviation where there are several seeds."""
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
    return Table(HEAD, body, left=(0,))


def _with_spread(values: np.ndarray, form: str) -> str:
    if not len(values):
        return "-"
    return f"{values.mean():{form}}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def draw(panels: Any, rows: Sequence[Row], *, title: str) -> None:
    """Accuracy over rounds, one line a method with its spread over seeds, and the difference to full updating.

    Args:
      panels: two of matplotlib's axes.
      rows: of the results.
      title: what was compared.
    """
    accuracy, difference = panels
    reference = {_when(row): row.metrics["accuracy"] for row in rows if row.identity.method == REFERENCE}
    for method in dict.fromkeys(label(row.identity) for row in rows):
        own = {_when(row): row.metrics["accuracy"] for row in rows if label(row.identity) == method}
        _curve(accuracy, own, method)
        _curve(difference, {when: own[when] - reference[when] for when in own.keys() & reference.keys()}, method)
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


def draw_bytes(panels: Any, lines: Sequence[Line], *, title: str) -> None:
    """The mean difference to full updating over all rounds against the bytes of all their files (log axis).

    Args:
      panels: one of matplotlib's axes.
      lines: of the table; those without the reference's rounds, or that sent nothing, are left out.
      title: what was compared.
    """
    (axes,) = panels
    compared = [line for line in lines if len(line.difference) and line.sent]
    for line in compared:
        spread = line.difference.std(ddof=1) if len(line.difference) > 1 else 0.0
        axes.errorbar(line.update_bytes, line.difference.mean(), spread, marker="o", capsize=2, label=line.method)
    axes.set(xscale="log", xlabel="bytes of all files", ylabel="mean difference to full updating, points", title=title)
    if compared:
        axes.legend(loc="best")


def write(workdir: Path, rows: Sequence[Row], *, command: str) -> str:
    """Writes the report and its plot; see `report.write`.

    Args:
      workdir: the experiment's folder.
      rows: of the results.
      command: that makes them.

    Returns:
      The table.
    """
    identity = rows[0].identity
    settings = {describe(r.identity.setting) for r in rows if r.identity.setting and r.identity.method not in METHODS}
    title = ", ".join([identity.dataset, identity.model, *(settings if len(settings) == 1 else ())])
    lines = summarise(rows)
    pictures = [
        Picture("accuracy_over_rounds", lambda panels: draw(panels, rows, title=title), panels=2),
        Picture("difference_vs_bytes", lambda panels: draw_bytes(panels, lines, title=title)),
    ]
    return report.write(workdir, Report(title, command, [table(lines)], pictures, LEGEND))

"""What people read of results: the table by bytes, the one sentence, the plot."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.results import Row
from updcomp.edge import files

KEPT = 0.95  # the share of the full update's gain, on the validation set, that the conclusion asks for


class Summary(NamedTuple):
    """One method at one setting, over seeds."""

    method: str
    setting: str
    update_bytes: float  # mean file size
    accuracy: float  # mean
    spread: float  # standard deviation of the accuracy over seeds
    kept: float  # share of the full update's gain over the deployed model
    validation_gain: float  # mean gain of the accuracy on the validation set; what the conclusion chooses by
    train_seconds: float  # mean
    seeds: int


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """One summary per method and setting, smallest update first."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.method, row.setting].append(row)
    return sorted((_summary(group) for group in groups.values()), key=lambda summary: summary.update_bytes)


def _summary(rows: list[Row]) -> Summary:
    accuracies = [row.accuracy for row in rows]
    gains = sum(
        row.full_update_accuracy - row.deployed_accuracy for row in rows if row.full_update_accuracy is not None
    )
    kept = sum(row.accuracy - row.deployed_accuracy for row in rows) / gains if gains > 0 else math.nan
    return Summary(
        rows[0].method,
        rows[0].setting,
        float(np.mean([row.update_bytes for row in rows])),
        float(np.mean(accuracies)),
        float(np.std(accuracies, ddof=1)) if len(rows) > 1 else 0.0,
        kept,
        float(np.mean([row.validation_accuracy - row.deployed_validation_accuracy for row in rows])),
        float(np.mean([row.train_seconds for row in rows])),
        len(rows),
    )


def _with_spread(summary: Summary) -> str:
    return f"{summary.accuracy:.3f}" + (f" ± {summary.spread:.3f}" if summary.seeds > 1 else "")


def table(summaries: Sequence[Summary]) -> str:
    """The summaries as a Markdown table that is as legible in a terminal."""
    head = ("bytes", "method", "setting", "accuracy", "of the full gain", "training s")
    body = [
        (
            f"{summary.update_bytes:,.0f}",
            summary.method,
            summary.setting,
            _with_spread(summary),
            "-" if math.isnan(summary.kept) else f"{100 * summary.kept:.0f} %",
            f"{summary.train_seconds:.1f}",
        )
        for summary in summaries
    ]
    return markdown(head, body, left=(1, 2))


def markdown(head: Sequence[str], body: Sequence[Sequence[str]], *, left: Sequence[int]) -> str:
    """A Markdown table that is as legible in a terminal.

    Args:
      head: the column names.
      body: the cells, row by row.
      left: the columns that align left; the others align right.

    Returns:
      Its lines.
    """
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(aligned)} |"

    rule = "|".join(f":{'-' * (width + 1)}" if i in left else f"{'-' * (width + 1)}:" for i, width in enumerate(widths))
    return "\n".join([line(head), f"|{rule}|", *map(line, body)])


@contextlib.contextmanager
def figure(path: Path, *, panels: int = 1) -> Iterator[list[Any]]:
    """Panels to draw in, one below the other; written whole as a `.png` at the end.

    Args:
      path: the file.
      panels: how many, with one x axis.

    Yields:
      Matplotlib's axes, one a panel.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, grid = pyplot.subplots(
        panels, figsize=(8, 5 if panels == 1 else 8), sharex=True, squeeze=False, layout="constrained"
    )
    for axes in grid[:, 0]:
        axes.grid(alpha=0.3)
    yield list(grid[:, 0])
    partial = path.with_name(f".{path.name}")
    drawn.savefig(partial, dpi=150, format="png")
    pyplot.close(drawn)
    partial.replace(path)


def conclusion(rows: Sequence[Row], summaries: Sequence[Summary]) -> str:
    """One sentence: how many bytes instead of how many keep how much of the full update's gain.

    The smallest update is named that keeps `KEPT` of the gain on the validation set; the figures are the test set's.
    """
    full = next(
        summary for summary in summaries if (summary.method, summary.setting) == (rows[0].method, rows[0].setting)
    )
    deployed = float(np.mean([row.deployed_accuracy for row in rows]))
    if full.validation_gain <= 0:
        return "The full update gains nothing on the validation set, so there is no gain to keep with fewer bytes."
    enough = KEPT * full.validation_gain
    best = next((summary for summary in summaries if summary.validation_gain >= enough), full)
    return (
        f"{best.update_bytes:,.0f} bytes instead of {full.update_bytes:,.0f} "
        f"({full.update_bytes / best.update_bytes:,.0f} times fewer) "
        f"keep {100 * best.kept:.0f} % of the full update's gain: "
        f"accuracy {_with_spread(best)} with {best.method} ({best.setting}), "
        f"{_with_spread(full)} with the full update, {deployed:.3f} without any. "
        f"(The smallest update that keeps {100 * KEPT:.0f} % of the gain on the validation set.)"
    )


def plot(rows: Sequence[Row], summaries: Sequence[Summary], path: Path, *, title: str) -> None:
    """Accuracy against bytes (log axis), one line a method with its spread, the full and no update marked.

    Args:
      rows: of the results; the first is the raw full update.
      summaries: of the rows.
      path: the `.png` to write.
      title: what was compared.
    """
    by_method: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        by_method[summary.method].append(summary)
    full = float(np.mean([row.full_update_accuracy for row in rows if row.full_update_accuracy is not None]))
    deployed = float(np.mean([row.deployed_accuracy for row in rows]))
    with figure(path) as (axes,):
        for marker, (method, points) in zip("osD^vPX*", sorted(by_method.items()), strict=False):
            sizes, accuracies, spreads = zip(*((p.update_bytes, p.accuracy, p.spread) for p in points), strict=True)
            style = {"marker": marker, "markersize": 5, "linewidth": 1.5, "capsize": 2}
            axes.errorbar(sizes, accuracies, spreads, label=method, **style)
        for level, name in ((full, "full update"), (deployed, "no update")):
            axes.axhline(level, color="gray", linestyle="--", linewidth=1)
            axes.annotate(
                f"{name} {level:.3f}",
                (0.005, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                color="gray",
            )
        axes.set(xscale="log", xlabel="update size (bytes of the file)", ylabel="test accuracy on the device")
        axes.set_title(title)
        axes.legend(loc="center right")


def write(workdir: Path, rows: Sequence[Row], *, command: str, title: str) -> str:
    """Writes `report.md` and `accuracy_vs_bytes.png` and returns what the terminal shows.

    Args:
      workdir: the experiment's folder.
      rows: of the results; the first is the raw full update.
      command: that made them.
      title: what was compared.

    Returns:
      The table and the conclusion.
    """
    summaries = summarise(rows)
    plot(rows, summaries, workdir / "accuracy_vs_bytes.png", title=title)
    shown = f"{table(summaries)}\n\n{conclusion(rows, summaries)}"
    seeds = len({row.seed for row in rows})
    text = f"# {title}\n\n    {command}\n\n{shown}\n\n![Accuracy against bytes](accuracy_vs_bytes.png)\n\n"
    text += f"Seeds: {seeds}; with several, means ± standard deviation. Bytes are file sizes; accuracy is that of the "
    text += "model that the device wrote, on test samples that chose nothing.\n"
    files.write_bytes(workdir / "report.md", text.encode())
    return shown

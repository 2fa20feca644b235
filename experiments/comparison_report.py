"""What people read of a comparison: the table by bytes, the one sentence, the plot."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import report
from experiments.report import Picture, Report, Table
from experiments.results import Row
from experiments.settings import REFERENCE
from experiments.specs import describe
from experiments.worlds import Score

KEPT = 0.95  # the share of the full update's gain, on the validation set, that the conclusion asks for


class Summary(NamedTuple):
    """One method at one setting, over seeds."""

    method: str
    setting: str
    update_bytes: float  # mean file size
    score: float  # mean
    spread: float | None  # standard deviation of the score over seeds; None with one seed
    kept: float  # share of the full update's gain over the deployed model; NaN where that gains nothing
    validation_gain: float  # mean gain on the validation set; what the conclusion chooses by
    train_seconds: float  # mean
    sent: int  # seeds whose update was worth sending
    seeds: int


def summarise(rows: Sequence[Row], score: Score) -> list[Summary]:
    """One summary per method and setting, smallest update first."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.identity.method, describe(row.identity.setting)].append(row)
    summaries = (_summary(*names, group, score) for names, group in groups.items())
    return sorted(summaries, key=lambda summary: summary.update_bytes)


def _summary(method: str, setting: str, rows: list[Row], score: Score) -> Summary:
    name = score.name

    def all_of(metric: str) -> np.ndarray:
        return np.array([row.metrics[metric] for row in rows], float)  # None becomes NaN

    after, deployed, full = all_of(name), all_of(f"deployed_{name}"), all_of(f"full_update_{name}")
    known = ~np.isnan(full)
    gains = score.sign * np.sum(full[known] - deployed[known])
    kept = score.sign * np.sum(after[known] - deployed[known]) / gains if gains > 0 else math.nan
    gained = score.sign * (all_of(f"validation_{name}") - all_of(f"deployed_validation_{name}"))
    return Summary(
        method,
        setting,
        float(all_of("update_bytes").mean()),
        float(after.mean()),
        float(after.std(ddof=1)) if len(rows) > 1 else None,
        float(kept),
        float(gained.mean()),
        float(all_of("train_seconds").mean()),
        int(all_of("sent").sum()),
        len(rows),
    )


def table(summaries: Sequence[Summary], score: Score) -> Table:
    """The summaries as a table."""
    head = ("bytes", "method", "setting", score.label, "of the full gain", "sent", "training s")
    body = [
        (
            f"{summary.update_bytes:,.0f}",
            summary.method,
            summary.setting,
            score.shown(summary.score, summary.spread),
            "-" if math.isnan(summary.kept) else f"{100 * summary.kept:.0f} %",
            f"{summary.sent}/{summary.seeds}",
            f"{summary.train_seconds:.1f}",
        )
        for summary in summaries
    ]
    return Table(head, body, left=(1, 2))


def conclusion(rows: Sequence[Row], summaries: Sequence[Summary], score: Score) -> str:
    """One sentence: how many bytes instead of how many keep how much of the full update's gain.

    The smallest update is named that keeps `KEPT` of the gain on the validation set; the figures are the test set's.
    """
    reference = (REFERENCE[0], describe(REFERENCE[1]))
    full = next(summary for summary in summaries if (summary.method, summary.setting) == reference)
    deployed = float(np.mean([row.metrics[f"deployed_{score.name}"] for row in rows]))
    if full.validation_gain <= 0:
        return "The full update gains nothing on the validation set, so there is no gain to keep with fewer bytes."
    enough = KEPT * full.validation_gain
    best = next((summary for summary in summaries if summary.validation_gain >= enough), full)
    if best.update_bytes >= full.update_bytes:
        said = (
            f"No smaller update keeps {100 * KEPT:.0f} % of the full update's gain on the validation set: {score.label}"
        )
        return f"{said} {score.shown(full.score, full.spread)} with the full update, {score.shown(deployed)} without."
    kept = "-" if math.isnan(best.kept) else f"{100 * best.kept:.0f} %"
    return (
        f"{best.update_bytes:,.0f} bytes instead of {full.update_bytes:,.0f} "
        f"({full.update_bytes / best.update_bytes:,.0f} times fewer) keep {kept} of the full update's gain: "
        f"{score.label} {score.shown(best.score, best.spread)} with {best.method} ({best.setting}), "
        f"{score.shown(full.score, full.spread)} with the full update, {score.shown(deployed)} without any. "
        f"(The smallest update that keeps {100 * KEPT:.0f} % of the gain on the validation set.)"
    )


def draw(panels: Any, rows: Sequence[Row], summaries: Sequence[Summary], score: Score, *, title: str) -> None:
    """The score against bytes (log axis), one line a method with its spread, the full and no update marked.

    Args:
      panels: one of matplotlib's axes.
      rows: of the results.
      summaries: of the rows.
      score: what the rows have.
      title: what was compared.
    """
    (axes,) = panels
    by_method: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        by_method[summary.method].append(summary)
    for number, (method, points) in enumerate(sorted(by_method.items())):
        sizes, scores, spreads = zip(*((p.update_bytes, p.score, p.spread or 0.0) for p in points), strict=True)
        style = {"marker": "osD^vPX*"[number % 8], "markersize": 5, "linewidth": 1.5, "capsize": 2}
        axes.errorbar(sizes, scores, spreads, label=method, **style)
    for kind, name in (("full_update", "full update"), ("deployed", "no update")):
        levels = [row.metrics[f"{kind}_{score.name}"] for row in rows]
        level = float(np.mean([value for value in levels if value is not None]))
        report.level(axes, level, f"{name} {score.shown(level)}")
    axes.set(xscale="log", xlabel="update size (bytes of the file)", ylabel=f"test {score.label} on the device")
    axes.set_title(textwrap.fill(title, 72))
    axes.legend(loc="center right")


def write(workdir: Path, rows: Sequence[Row], score: Score, *, command: str, title: str) -> str:
    """Writes the report and its plot; see `report.write`.

    Args:
      workdir: the experiment's folder.
      rows: of the results, the reference among them.
      score: what the rows have.
      command: that makes them.
      title: of the world.

    Returns:
      The table and the conclusion.
    """
    summaries = summarise(rows, score)
    title = f"{title}: {score.label} against update size"
    legend = (
        f"Seeds: {len({row.identity.seed for row in rows})}; with several, means ± standard deviation. Bytes are file "
        f"sizes; {score.label} is that of the model that the device wrote, on test samples that chose nothing. Sent "
        "counts the seeds whose update was better on the validation set than what the device held; the others sent an "
        "empty one. Training excludes compilation."
    )
    said = conclusion(rows, summaries, score)
    picture = Picture(f"{score.name}_vs_bytes", lambda panels: draw(panels, rows, summaries, score, title=title))
    return report.write(workdir, Report(title, command, [table(summaries, score), said], [picture], legend))

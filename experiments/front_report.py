"""What people read of fronts: the points, the bytes that reach a score, mean savings, the plot."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import front_figures, report
from experiments.front_curves import BASELINE, FLOAT, KINDS, OWN, PEER, TUNING, Curve, key_of
from experiments.front_figures import Line
from experiments.report import Picture, Report, Table
from experiments.results import Row
from experiments.settings import REFERENCE
from experiments.specs import describe
from experiments.worlds import Score

AGAINST = ("random_mask", "LoRA-XS")  # what mean savings are told against
_SHARES = (0.9, 0.95, 0.98)  # of the full update's gain
_COMMON = 0.05  # of that gain: scores that two curves must have in common for a mean saving


class Told(NamedTuple):
    """What a report is made of."""

    curves: Sequence[Curve]  # with the cells that were measured
    trials: Sequence[int]  # settings that were tried, of each curve that was tuned
    rows: Sequence[Row]
    score: Score
    reach: Sequence[float]  # scores; none: those at `_SHARES`
    seeds: int  # how many measure
    tune_epochs: int
    epochs: int

    @property
    def measured(self) -> list[Row]:
        """The rows of the seeds that measure."""
        return [row for row in self.rows if TUNING < row.identity.seed <= TUNING + self.seeds]

    @property
    def full(self) -> list[Row]:
        """Those of the raw full update."""
        return [row for row in self.measured if key_of(row) == REFERENCE]

    def mean(self, metric: str) -> float:
        """Of the raw full update's rows."""
        return float(np.mean([row.metrics[metric] for row in self.full]))

    @property
    def gain(self) -> float:
        """Of the raw full update over the deployed model, in the score's own direction."""
        return self.mean(self.score.name) - self.mean(f"deployed_{self.score.name}")

    def scores(self) -> list[float]:
        """Those that a table gives the bytes to."""
        if self.reach or not self.score.sign * self.gain > 0:
            return list(self.reach)
        return [self.mean(f"deployed_{self.score.name}") + share * self.gain for share in _SHARES]


class Point(NamedTuple):
    """A setting on the seeds that measure; arrays have one entry a seed, in their order."""

    setting: str
    sizes: np.ndarray  # bytes of the file
    scores: np.ndarray  # on the test data
    validation: float  # mean score on the validation data, by which points are kept or dropped
    sent: int  # seeds whose update was worth sending
    train_seconds: float  # mean


Points = Mapping[str, list[Point]]  # curve -> its points, smallest update first


def points(told: Told) -> Points:
    """Every curve's settings that all seeds have measured."""
    found: dict[str, list[Point]] = {}
    for curve in told.curves:
        for cell in curve.cells:
            rows = [row for row in told.measured if key_of(row) == (cell.method, cell.setting)]
            if len(rows) == told.seeds:
                ordered = sorted(rows, key=lambda row: row.identity.seed)
                found.setdefault(curve.name, []).append(_point(describe(cell.setting), ordered, told.score.name))
    return {name: sorted(own, key=lambda point: point.sizes.mean()) for name, own in found.items()}


def _point(setting: str, rows: Sequence[Row], score: str) -> Point:
    def all_of(metric: str) -> np.ndarray:
        return np.array([row.metrics[metric] for row in rows], float)

    return Point(
        setting,
        all_of("update_bytes"),
        all_of(score),
        float(all_of(f"validation_{score}").mean()),
        int(all_of("sent").sum()),
        float(all_of("train_seconds").mean()),
    )


def lines(own: Sequence[Point], score: Score) -> list[Line]:
    """A curve's line on each seed: the points that are a front on the validation data."""
    kept = [own[i] for i in _kept(own, score)]
    seeds = range(len(own[0].sizes))
    return [
        Line(np.array([p.sizes[i] for p in kept]), score.sign * np.array([p.scores[i] for p in kept])) for i in seeds
    ]


def _kept(own: Sequence[Point], score: Score) -> list[int]:
    """A front by the validation data, of the points that every seed has sent: an empty update's bytes are no size."""
    known = [score.sign * p.validation if p.sent == len(p.sizes) else math.nan for p in own]
    return front_figures.front([p.sizes.mean() for p in own], known)


def points_table(told: Told, found: Points) -> Table:
    """All points; those that are a front of all curves on the validation data have a star."""
    every = sorted(((name, p) for name, own in found.items() for p in own), key=lambda pair: pair[1].sizes.mean())
    stars = set(_kept([p for _, p in every], told.score))
    start = told.mean(f"deployed_{told.score.name}")
    gains = told.score.sign * told.gain > 0
    drawn = {(name, own[i].setting) for name, own in found.items() for i in _kept(own, told.score)}
    body = [
        (
            "*" if i in stars else "+" if (name, point.setting) in drawn else "",
            f"{point.sizes.mean():,.0f}",
            name,
            point.setting,
            told.score.shown(float(point.scores.mean()), _spread(point.scores)),
            f"{100 * (point.scores.mean() - start) / told.gain:.0f} %" if gains else "-",
            f"{point.sent}/{len(point.sizes)}",
            f"{point.train_seconds:.1f}",
        )
        for i, (name, point) in enumerate(every)
    ]
    head = ("front", "bytes", "curve", "setting", told.score.label, "of the full gain", "sent", "training s")
    return Table(head, body, left=(0, 2, 3))


def _spread(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def reach_table(told: Told, own: Mapping[str, list[Line]]) -> Table:
    """Bytes that reach each score, by curve, and mean savings against two of them."""
    wanted, kinds = told.scores(), {curve.name: curve.kind for curve in told.curves}
    against = [name for name in AGAINST if name in own]
    body = []
    for name in sorted(own, key=lambda name: (KINDS.index(kinds[name]), name)):
        reached = [_shown(own[name], told.score.sign * score) for score in wanted]
        least = _COMMON * abs(told.gain)
        savings = [front_figures.mean_saving_over_seeds(own[name], own[other], least=least) for other in against]
        body.append((name, kinds[name], *reached, *("-" if math.isnan(s) else f"{100 * s:+.0f} %" for s in savings)))
    head = ("curve", "kind", *(f"bytes at {told.score.shown(score)}" for score in wanted))
    return Table((*head, *(f"saves against {name}" for name in against)), body, left=(0, 1))


def _bytes(own: Sequence[Line], score: float) -> tuple[float, float]:
    return front_figures.over_seeds([line.bytes_to_reach(score) for line in own])


def _shown(own: Sequence[Line], score: float) -> str:
    mean, spread = _bytes(own, score)
    if math.isnan(mean):
        return "-"
    return f"{_bound(own, score)}{mean:,.0f}" + ("" if math.isnan(spread) else f" ± {spread:,.0f}")


def _bound(own: Sequence[Line], score: float) -> str:
    return "at most " if any(line.starts_above(score) for line in own) else ""


def conclusion(told: Told, own: Mapping[str, list[Line]]) -> str:
    """How many times fewer bytes our best curve takes than the best of each other kind, at every score."""
    if not told.score.sign * told.gain > 0:
        return "The full update gains nothing, so there is nothing that bytes could buy."
    if all(curve.kind != OWN for curve in told.curves):
        return ""
    compared = [kind for kind in KINDS if kind != OWN and any(curve.kind == kind for curve in told.curves)]
    said = []
    for score in told.scores():
        at = told.score.sign * score
        best = {kind: _best(told, own, kind, at) for kind in KINDS}
        ours = best[OWN]
        first = "not reached by any line of our own on every seed"
        if ours is not None:
            first = f"{_bound(own[ours[0]], at)}{ours[1]:,.0f} bytes ({ours[0]})"
        others = [f"{_compared(own, ours, best[kind], at)} {kind}" for kind in compared]
        said.append(f"{told.score.label} {told.score.shown(score)}: {'; '.join([first, *others])}.")
    return " ".join(said)


def _best(told: Told, own: Mapping[str, list[Line]], kind: str, score: float) -> tuple[str, float] | None:
    sizes = {
        curve.name: _bytes(own[curve.name], score)[0]
        for curve in told.curves
        if curve.kind == kind and curve.name in own
    }
    known = {name: size for name, size in sizes.items() if not math.isnan(size)}
    return min(known.items(), key=lambda pair: pair[1]) if known else None


def _compared(
    own: Mapping[str, list[Line]], ours: tuple[str, float] | None, best: tuple[str, float] | None, at: float
) -> str:
    if best is None:
        return "not reached by any"
    bound = _bound(own[best[0]], at)
    if ours is None or bound or _bound(own[ours[0]], at):
        return f"{bound}{best[1]:,.0f} bytes with {best[0]}, the best"
    return f"{best[1] / ours[1]:.2f} times as many with {best[0]}, the best"


def draw(panels: Any, told: Told, found: Points, *, title: str) -> None:
    """The score against bytes (log axis), one line a curve: ours thick, the peers' dashed, float32 dotted.

    Args:
      panels: one of matplotlib's axes.
      told: what is reported.
      found: of its rows.
      title: what was compared.
    """
    (axes,) = panels
    kinds = {curve.name: curve.kind for curve in told.curves}
    styles = {OWN: ("-", 2.5), BASELINE: ("-", 1.0), FLOAT: (":", 1.0), PEER: ("--", 1.0)}
    for number, (name, own) in enumerate(sorted(found.items(), key=lambda pair: KINDS.index(kinds[pair[0]]))):
        if not (kept := [own[i] for i in _kept(own, told.score)]):
            continue
        dashes, width = styles[kinds[name]]
        sizes, scores = [p.sizes.mean() for p in kept], [p.scores.mean() for p in kept]
        style = {"color": f"C{number % 10}", "linestyle": dashes, "linewidth": width, "capsize": 2}
        marker = {"marker": "osD^vPX*<>"[number // 10 % 10], "markersize": 4}
        axes.errorbar(sizes, scores, [_spread(p.scores) or 0.0 for p in kept], label=name, **style, **marker)
    for text, metric in (("full update", told.score.name), ("no update", f"deployed_{told.score.name}")):
        level = told.mean(metric)
        report.level(axes, level, f"{text} {told.score.shown(level)}")
    axes.set(
        xscale="log" if axes.has_data() else "linear",
        xlabel="update size (bytes of the file)",
        ylabel=f"test {told.score.label} on the device",
    )
    axes.set_title(textwrap.fill(title, 72))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", ncols=2, fontsize="small")


def write(workdir: Path, told: Told, *, command: str, title: str) -> str:
    """Writes the report and its plot; see `report.write`.

    Args:
      workdir: the experiment's folder.
      told: what is reported.
      command: that makes it.
      title: of the world.

    Returns:
      The tables and what they come to.
    """
    found = points(told)
    own = {name: lines(of, told.score) for name, of in found.items()}
    trials = [row for row in told.rows if row.identity.seed == TUNING]
    seconds = sum(row.metrics["train_seconds"] + row.metrics["compile_seconds"] for row in trials)
    each = " or ".join(str(count) for count in sorted(set(told.trials)))
    cost = (
        f"Tuning: {sum(told.trials):,} short trainings, {each} of each curve (epochs: {told.tune_epochs} in place of "
        f"{told.epochs}); with all others of this folder they took {seconds / 60:,.0f} minutes."
    )
    legend = (
        f"Settings were chosen on the validation data of one seed; the figures are of others ({told.seeds}): means ± "
        "standard deviation where there are several. fit_budget chooses by itself, on each seed's validation data. "
        f"Bytes are file sizes; {told.score.label} is that of the model that the device wrote, on test samples that "
        "chose no setting. Sent counts the seeds whose update was better on the validation data than what the device "
        "held; a line has only points that all seeds sent, and of these such as no smaller one matches on the "
        "validation data. Between points, bytes are interpolated in their logarithm, on each seed by itself, to where "
        "it first has the score; - is a score that not every seed reaches. Savings are means over all scores that both "
        "curves reach (Bjontegaard), where these are at least a twentieth of the full gain. By the validation data, a "
        "star is on the front of all curves, a plus on that of its own; lines have both. Training excludes compilation."
    )
    title = f"{title}: the {told.score.label} that bytes buy"
    picture = Picture(f"{told.score.name}_front", lambda panels: draw(panels, told, found, title=title))
    parts: list[Table | str] = [points_table(told, found), reach_table(told, own), conclusion(told, own), cost]
    return report.write(workdir, Report(title, command, parts, [picture], legend))

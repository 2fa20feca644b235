"""What people read of training some neurons: the table, accuracy against memory, and what the rows show or do not."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special  # type: ignore[import-untyped]

from experiments import neurons_arms, report
from experiments.neurons_arms import CLASSIFIER, EVERYTHING, FULL, UNFIT, Arm
from experiments.report import Picture, Report, Table
from experiments.results import Row
from updcomp.methods.selections import SELECTIONS

KEPT = 0.95  # the share of the full gain, on the validation data, that the comparison of bytes asks for
CONFIDENCE = 0.95
HEAD = (
    "trained",
    "budget",
    "rate",
    "accuracy %",
    "of the full gain",
    "weights",
    "backward MFLOP",
    "peak MB",
    "ms a step",
    "choosing",
    "compiled",
    "bytes",
)
LEGEND = (
    "Means over seeds, ± standard deviation with several. Everything is the full update, raw: every leaf trains, and "
    "statistics move. Full are all neurons: the kernels and biases of all layers; budgets and percentages in brackets "
    "are shares of what these take. Accuracy is that of the model that the device wrote, on test samples that chose "
    "nothing. The rate multiplies the learning rate: of those tried on seed 0, the best one on its validation data; "
    "the same data say whether the full gain is that of everything or of full. Weights that train at a time, FLOPs of "
    "the backward pass of a batch and the peak memory of a step, beside the model and the data, are the most of any "
    "epoch, as the compiler reports them. Choosing is the time that choosing neurons takes, as a share of that of the "
    "steps; compiled counts shapes of chosen neurons. Trainings are timed one after another, so what else the machine "
    "does counts; bench_neurons times them in turn. Bytes are those of the update's file. Confidence intervals are "
    "Student's, of the means of each seed."
)


def table(found: Sequence[Arm], full: Arm) -> Table:
    """One line for each way to train, after one for the deployed model."""
    deployed = ("deployed", "-", "-", _percent(full.all_of("deployed_accuracy")), *("-" for _ in HEAD[4:]))
    return Table(HEAD, [deployed, *(_line(arm, full) for arm in _in_order(found))], left=(0, 1))


def _in_order(found: Sequence[Arm]) -> list[Arm]:
    """Those without a budget first, then the selections under each budget, then the other methods."""
    unlimited = [EVERYTHING, FULL, CLASSIFIER]
    names = list(SELECTIONS)

    def place(arm: Arm) -> tuple[Any, ...]:
        if arm.key in unlimited:
            return 0, "", unlimited.index(arm.key), 0
        if arm.method != "neurons":
            return 2, arm.method, arm.mean("update_bytes"), 0
        currency = next(name for name in arm.setting if name != "selection")
        return 1, currency, float(arm.setting[currency] or 0), names.index(arm.name)

    return sorted(found, key=place)


def _line(arm: Arm, full: Arm) -> tuple[str, ...]:
    def cost(metric: str, share: str, unit: float, form: str) -> str:
        value = arm.mean(metric)
        return "-" if math.isnan(value) else f"{value / unit:{form}} ({100 * arm.mean(share):.1f} %)"

    return (
        arm.name,
        f"{arm.budget} ({arm.failed})" if arm.failed else arm.budget,
        f"{neurons_arms.rate_of(arm.rows[0]):g}",
        _percent(arm.all_of("accuracy")),
        _known(100 * neurons_arms.kept(arm, full), ".0f", " %"),
        cost("weights", "weights_share", 1, ",.0f"),
        cost("backward_flops", "flops_share", 1e6, ",.1f"),
        cost("peak_bytes", "memory_share", 1e6, ",.2f"),
        _known(1e3 * arm.mean("step_seconds"), ".2f"),
        _known(100 * arm.mean("choosing_share"), ".1f", " %"),
        _known(arm.mean("compiled"), ".1f"),
        f"{arm.mean('update_bytes'):,.0f}",
    )


def _known(value: float, form: str, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{form}}{unit}"


def _percent(values: np.ndarray) -> str:
    spread = f" ± {100 * values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.2f}{spread}"


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    low: float  # NaN where one value tells nothing of the spread
    high: float

    def __str__(self) -> str:
        """As it stands in sentences."""
        if math.isnan(self.low):
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} ({100 * CONFIDENCE:.0f} % CI {self.low:+.2f} to {self.high:+.2f})"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with Student's confidence interval.

    >>> str(interval([1.0, 2.0, 3.0]))
    '+2.00 (95 % CI -0.48 to +4.48)'
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def differences(found: Sequence[Arm], one: str, other: str) -> dict[str, dict[int, float]]:
    """One selection minus another, in points of test accuracy.

    Args:
      found: all that was trained.
      one: a selection.
      other: the one that it is compared with.

    Returns:
      Budget -> seed -> difference, of the budgets and seeds that both have.
    """
    pairs: dict[str, dict[int, float]] = {}
    trained = [arm for arm in found if arm.failed != UNFIT]
    firsts, seconds = (
        {arm.budget: arm.by_seed("accuracy") for arm in trained if arm.name == name} for name in (one, other)
    )
    for budget in (budget for budget in firsts if budget in seconds):
        first, second = firsts[budget], seconds[budget]
        if both := {seed: 100 * (first[seed] - second[seed]) for seed in first if seed in second}:
            pairs[budget] = both
    return pairs


def compared(found: Sequence[Arm], one: str = "velocity", other: str = "random") -> str:
    """Whether one selection is better than another, said whichever way it falls; nothing where they were not trained.

    Seeds are what is independent: budgets of one seed share its deployed model and data, so their mean counts once.
    """
    pairs = differences(found, one, other)
    if not pairs:
        return ""
    seeds = sorted(set.intersection(*(set(own) for own in pairs.values())))
    budgets = f"{len(pairs)} budget{'s' if len(pairs) > 1 else ''}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    whole = interval([float(np.mean([own[seed] for own in pairs.values()])) for seed in seeds]) if seeds else None
    by_budget = "; ".join(f"{budget}: {interval(list(own.values()))}" for budget, own in pairs.items())
    details = f"By budget, {one} minus {other} in points: {by_budget}."
    if whole is None or math.isnan(whole.low):
        shown = f"{whole} points, but " if whole else ""
        few = "fewer than two seeds have all budgets, so no difference is shown"
        return f"{one.capitalize()} minus {other}: {shown}{few}. {details}"
    if whole.low > 0 or whole.high < 0:
        better = "better" if whole.mean > 0 else "worse"
        said = f"{one.capitalize()} is {better} than {other} by {abs(whole.mean):.2f} points"
    else:
        said = f"No difference between {one} and {other} is shown: {whole.mean:+.2f} points"
    chance = f"{100 * CONFIDENCE:.0f} % CI {whole.low:+.2f} to {whole.high:+.2f}"
    return f"{said} ({chance}; mean of {budgets}). {details}"


def depth(found: Sequence[Arm], full: Arm) -> str:
    """At which share of memory, FLOPs and time the selection "depth" keeps how much of the full gain."""
    neurons = next(arm for arm in found if arm.key == FULL)
    said = []
    for arm in _in_order(found):
        if not {"memory", "flops"} <= arm.setting.keys():
            continue
        if arm.failed:
            said.append(f"{arm.name.capitalize()} under {arm.budget}: {arm.failed}.")
            continue
        shares = [
            f"{_known(100 * arm.mean('memory_share'), '.0f', ' %')} of the peak memory",
            f"{_known(100 * arm.mean('flops_share'), '.0f', ' %')} of the backward FLOPs",
            f"{_known(100 * arm.mean('step_seconds') / neurons.mean('step_seconds'), '.0f', ' %')} of the step time",
        ]
        kept = _known(100 * neurons_arms.kept(arm, full), ".0f", " %")
        said.append(
            f"{arm.name.capitalize()} under {arm.budget} keeps {kept} of the full gain (accuracy "
            f"{_percent(arm.all_of('accuracy'))} %, {full.name} {_percent(full.all_of('accuracy'))} %) at {shares[0]}, "
            f"{shares[1]} and {shares[2]} of training all neurons."
        )
    return " ".join(said)


def smallest(found: Sequence[Arm], full: Arm) -> str:
    """The smallest update of each method that keeps `KEPT` of the full gain on the validation data."""
    methods: Mapping[str, list[Arm]] = defaultdict(list)
    for arm in found:
        if arm.key != EVERYTHING:
            methods[arm.method].append(arm)
    said = []
    for method, own in methods.items():
        enough = [arm for arm in own if neurons_arms.kept(arm, full, validation=True) >= KEPT]
        if not enough:
            said.append(f"{method} none")
            continue
        best = min(enough, key=lambda arm: arm.mean("update_bytes"))
        setting = f"{best.name}, {best.budget}".removesuffix(", -") if method == "neurons" else best.budget
        accuracy = _percent(best.all_of("accuracy"))
        said.append(f"{method} {best.mean('update_bytes'):,.0f} bytes ({setting}; accuracy {accuracy} %)")
    raw = next(arm for arm in found if arm.key == EVERYTHING)
    return (
        f"Smallest update that keeps {100 * KEPT:.0f} % of the full gain on the validation data: {'; '.join(said)}. "
        f"Everything raw is {raw.mean('update_bytes'):,.0f} bytes."
    )


def draw(panels: Any, found: Sequence[Arm], full: Arm, *, title: str) -> None:
    """Accuracy against the peak memory (log axis), one line a selection; the deployed model and everything are levels.

    Args:
      panels: one of matplotlib's axes.
      found: all that was trained.
      full: the reference.
      title: what was trained.
    """
    (axes,) = panels
    lines: dict[str, list[Arm]] = defaultdict(list)
    for arm in _in_order(found):
        if not math.isnan(arm.mean("peak_bytes")):
            lines[arm.name].append(arm)
    for number, (name, own) in enumerate(lines.items()):
        own.sort(key=lambda arm: arm.mean("peak_bytes"))
        accuracies = [100 * arm.all_of("accuracy") for arm in own]
        spreads = [values.std(ddof=1) if len(values) > 1 else 0.0 for values in accuracies]
        style = {"marker": "*osD^vPX<>"[number % 10], "markersize": 6, "linewidth": 1.5, "capsize": 2}
        places = [arm.mean("peak_bytes") / 1e6 for arm in own]
        axes.errorbar(places, [values.mean() for values in accuracies], spreads, label=name, **style)
    everything = next(arm for arm in found if arm.key == EVERYTHING)
    for name, values in (("everything", everything.all_of("accuracy")), ("deployed", full.all_of("deployed_accuracy"))):
        level = 100 * float(values.mean())
        report.level(axes, level, f"{name} {level:.1f}")
    axes.set(
        xscale="log", xlabel="peak memory of a step (MB, by the compiler)", ylabel="test accuracy on the device, %"
    )
    axes.set_title(textwrap.fill(title, 72))
    axes.legend(loc="best", ncols=2)


def write(workdir: Path, rows: Sequence[Row], *, command: str, title: str) -> str:
    """Writes the report and its plot; see `report.write`.

    Args:
      workdir: the experiment's folder.
      rows: of the results, both full trainings among them.
      command: that makes them.
      title: of the world.

    Returns:
      The table and the sentences below it.
    """
    found = neurons_arms.arms(rows)
    full = neurons_arms.reference(found)
    title = f"{title}: training some neurons"
    sentences = (compared(found), depth(found, full), smallest(found, full))
    picture = Picture("accuracy_vs_memory", lambda panels: draw(panels, found, full, title=title))
    return report.write(workdir, Report(title, command, [table(found, full), *sentences], [picture], LEGEND))

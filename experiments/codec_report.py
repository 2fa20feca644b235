"""What people read of the codec's benchmark: tables, and a plot of sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import report
from updcomp.edge import files

Figures = Mapping[str, Any]


def write(workdir: Path, figures: Figures) -> None:
    """Writes `report.md` and the plot `sizes.png`."""
    parts = ["# The codec beside others", f"Load at the start: {figures['load']:.1f}."]
    for name, case in figures["cases"].items():
        parts += _case(name, case)
    for name, found in figures.get("lossy", {}).items():
        parts += [f"## {name}, lossy", *(_table("way", rows) for rows in found.values())]
    if figures.get("growth"):
        parts += ["## How time and memory grow", _table("", {str(i): row for i, row in enumerate(figures["growth"])})]
    parts.append("\n".join(f"- {note}" for note in figures["notes"]))
    files.write_bytes(workdir / "report.md", ("\n\n".join(filter(None, parts)) + "\n").encode())
    if figures["cases"]:
        files.write_bytes(workdir / "sizes.png", report.figure(lambda axes: _draw(axes[0], figures["cases"]), 1)[0])


def _case(name: str, case: Figures) -> list[str]:
    rows = dict(sorted(case["rows"].items(), key=lambda item: float(item[1]["bytes"])))
    bounds = {what: {"bytes": size} for what, size in (case["entropy"] | case["ablation"]).items()}
    return [
        f"## {name}: {case['about']} ({case['megabytes']:.1f} MB)",
        _table("way", rows),
        _table("what bounds it, and what contexts buy", bounds),
    ]


def _table(first: str, rows: Mapping[str, Figures]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    body = [[name, *(_shown(row.get(column)) for column in columns)] for name, row in rows.items()]
    return report.Table([first, *columns], body, left=(0,)).markdown()


def _shown(value: float | None) -> str:
    """A figure with four digits, large ones whole.

    >>> _shown(1234567.0), _shown(0.98765), _shown(None)
    ('1,234,567', '0.9877', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def _draw(axes: Any, cases: Mapping[str, Figures]) -> None:
    ways: Sequence[str] = list(dict.fromkeys(way for case in cases.values() for way in case["rows"]))
    for way in ways:
        there = {name: case["rows"] for name, case in cases.items() if way in case["rows"]}
        ratios = [rows[way]["bytes"] / rows["updcomp"]["bytes"] for rows in there.values()]
        is_own = way == "updcomp"
        axes.plot(list(there), ratios, "_" if is_own else "o", markersize=24 if is_own else 5, label=way)
    axes.set_yscale("log")
    axes.set_ylabel("bytes, by those of updcomp")
    axes.set_xlabel("case")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))

"""What people read of results, whatever the experiment: a table, a plot, and both in `report.md` and `report.html`."""

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from updcomp.edge import files

_STYLE = (
    "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em;line-height:1.4}"
    "table{border-collapse:collapse}th,td{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:right}"
    "th.left,td.left{text-align:left}pre{background:#eee;padding:.8em;white-space:pre-wrap}svg{max-width:100%;height:auto}"
)


class Table(NamedTuple):
    """A table of text."""

    head: Sequence[str]  # the column names
    body: Sequence[Sequence[str]]  # the cells, row by row
    left: Sequence[int]  # the columns that align left; the others align right

    def markdown(self) -> str:
        """As Markdown that is as legible in a terminal."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.body, strict=True)]

        def line(cells: Sequence[str]) -> str:
            padded = zip(cells, widths, strict=True)
            aligned = (c.ljust(width) if i in self.left else c.rjust(width) for i, (c, width) in enumerate(padded))
            return f"| {' | '.join(aligned)} |"

        rules = (f":{'-' * (w + 1)}" if i in self.left else f"{'-' * (w + 1)}:" for i, w in enumerate(widths))
        return "\n".join([line(self.head), f"|{'|'.join(rules)}|", *map(line, self.body)])

    def html(self) -> str:
        """As an HTML table."""

        def line(cells: Sequence[str], tag: str) -> str:
            sides = (' class="left"' if i in self.left else "" for i in range(len(cells)))
            shown = (f"<{tag}{side}>{html.escape(c)}</{tag}>" for side, c in zip(sides, cells, strict=True))
            return f"<tr>{''.join(shown)}</tr>"

        rows = "\n".join(line(cells, "td") for cells in self.body)
        return f"<table>\n<thead>{line(self.head, 'th')}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


class Picture(NamedTuple):
    """A plot."""

    name: str  # of its file, without the suffix
    draw: Callable[[Any], None]  # on its panels, a list of matplotlib's axes
    panels: int = 1  # one below the other, with one x axis


class Report(NamedTuple):
    """What a report says."""

    title: str
    command: str  # that makes all its rows
    parts: Sequence[Table | str]  # tables and paragraphs, which the terminal shows as well
    pictures: Sequence[Picture]
    legend: str  # one paragraph: what the columns are


def write(workdir: Path, report: Report) -> str:
    """Writes `report.md` with its plots as `.png`, and `report.html`, one file that has the plots in itself.

    Args:
      workdir: the experiment's folder.
      report: what they say.

    Returns:
      What the terminal shows: the tables and paragraphs.
    """
    figures = {picture.name: figure(picture.draw, picture.panels) for picture in report.pictures}
    for name, (png, _) in figures.items():
        files.write_bytes(workdir / f"{name}.png", png)
    shown = "\n\n".join(part.markdown() if isinstance(part, Table) else part for part in report.parts if part)
    links = [f"![{name.replace('_', ' ')}]({name}.png)" for name in figures]
    text = "\n\n".join([f"# {report.title}", f"    {report.command}", shown, *links, report.legend])
    files.write_bytes(workdir / "report.md", f"{text}\n".encode())
    title, command, legend = (html.escape(text) for text in (report.title, report.command, report.legend))
    parts = [part.html() if isinstance(part, Table) else f"<p>{html.escape(part)}</p>" for part in report.parts if part]
    drawn = [svg for _, svg in figures.values()]
    body = [f"<h1>{title}</h1>", f"<pre>{command}</pre>", *parts, *drawn, f"<p>{legend}</p>"]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    page = "\n".join(["<!DOCTYPE html>", f'<html lang="en"><head>{head}</head><body>', *body, "</body></html>"])
    files.write_bytes(workdir / "report.html", f"{page}\n".encode())
    return shown


def level(axes: Any, value: float, text: str) -> None:
    """Marks a level across one of matplotlib's axes: a gray dashed line, and what it is above it.

    Args:
      axes: of a plot.
      value: on the y axis.
      text: what it is.
    """
    axes.axhline(value, color="gray", linestyle="--", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate(text, (0.005, value), color="gray", **place)


def figure(draw: Callable[[Any], None], panels: int) -> tuple[bytes, str]:
    """A plot as the bytes of a `.png` and as an SVG element, the same for the same rows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # without pyplot, which would open a display

    # Text stays text, so that a page can be searched; the salt makes the names of its parts the same every time.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "updcomp"}):
        figure = Figure(figsize=(8, 5 if panels == 1 else 8), layout="constrained")
        grid = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
        for axes in grid:
            axes.grid(alpha=0.3)
        draw(list(grid))
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, dpi=150, format="png")
        figure.savefig(svg, format="svg", metadata={"Date": None})
    text = svg.getvalue()
    return png.getvalue(), text[text.index("<svg") :]

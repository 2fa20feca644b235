"""What the pictures of the pages are drawn with.

Letters become outlines and the ground is light, so that a picture looks the same everywhere, in the dark as well.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

FOLDER = Path(__file__).parent / "pictures"
INK, SOFT, GROUND = "#1f2937", "#6b7280", "#fbfbf9"
HELD, SENT, KNOWN, MOVED = "#d6dae1", "#e8833a", "#5b8fc7", "#f5cfae"
COLOURS = (HELD, SENT, KNOWN, MOVED)  # of cells: as deployed, sent, derived by the device, changed

plt.rcParams.update(
    {
        "svg.fonttype": "path",
        "svg.hashsalt": "updcomp",  # the same file each time
        "font.size": 11,
        "text.color": INK,
        "mathtext.fontset": "dejavusans",
    }
)

PICTURES: list[Callable[[], None]] = []  # each writes one


def picture(width: float, height: float) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Registers a function that draws on axes of so many units, an inch for two."""

    def register(draw: Callable[[Any], None]) -> Callable[[Any], None]:
        def write() -> None:
            figure = plt.figure(figsize=(width / 2, height / 2), facecolor=GROUND)
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_xlim(0, width)
            axes.set_ylim(0, height)
            axes.axis("off")
            draw(axes)
            figure.savefig(FOLDER / f"{draw.__name__}.svg", facecolor=GROUND, metadata={"Date": None})
            plt.close(figure)

        PICTURES.append(write)
        return draw

    return register


def grid(axes: Any, x: float, y: float, cells: np.ndarray, size: float = 0.3, label: str = "", under: str = "") -> None:
    """A matrix whose cells have numbers of `COLOURS`, its upper left corner at (x, y)."""
    rows, columns = cells.shape
    for i in range(rows):
        for j in range(columns):
            corner = (x + j * size, y - (i + 1) * size)
            axes.add_patch(Rectangle(corner, size, size, facecolor=COLOURS[cells[i, j]], edgecolor=GROUND, linewidth=1))
    middle = x + columns * size / 2
    axes.text(middle, y + 0.15, label, ha="center", va="bottom", fontsize=13)
    axes.text(middle, y - rows * size - 0.15, under, ha="center", va="top", fontsize=10, color=SOFT)


def box(axes: Any, x: float, y: float, width: float, height: float, text: str, colour: str = HELD) -> None:
    """A rounded box around (x, y) with text."""
    style = "round,pad=0,rounding_size=0.15"
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor="none", alpha=0.55)
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], text: str = "", bend: float = 0.0) -> None:
    """An arrow with text above its middle."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=SOFT, connectionstyle=style, shrinkA=2)
    )
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    axes.text(x, y + 0.12, text, ha="center", va="bottom", fontsize=9, color=SOFT)


def sign(axes: Any, x: float, y: float, text: str) -> None:
    """A large + or = between matrices."""
    axes.text(x, y, text, ha="center", va="center", fontsize=17)


def legend(axes: Any, x: float, y: float, colours: Sequence[int] = (0, 1)) -> None:
    """What the colours mean."""
    names = ("as deployed", "travels", "derived by the device", "changed")
    for colour in colours:
        axes.add_patch(Rectangle((x, y - 0.12), 0.28, 0.28, facecolor=COLOURS[colour], edgecolor="none"))
        axes.text(x + 0.42, y, names[colour], ha="left", va="center", fontsize=9, color=SOFT)
        x += 0.9 + 0.17 * len(names[colour])


def zeros(rows: int, columns: int) -> np.ndarray:
    """Cells as deployed."""
    return np.zeros((rows, columns), int)


def drawn(rows: int, columns: int, count: int, seed: int = 3) -> np.ndarray:
    """Cells of which some travel."""
    cells = np.zeros(rows * columns, int)
    cells[np.random.default_rng(seed).choice(len(cells), count, replace=False)] = 1
    return cells.reshape(rows, columns)

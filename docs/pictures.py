"""Draws the pictures of the pages: `python docs/pictures.py` writes `docs/pictures/*.svg`."""

from typing import Any

import drawing
import matplotlib.pyplot as plt
import numpy as np
from drawing import GROUND, HELD, INK, KNOWN, SENT, SOFT, arrow, box, drawn, grid, legend, picture, sign, zeros
from matplotlib.patches import FancyArrowPatch, Rectangle


@picture(16, 5.4)
def flow(axes: Any) -> None:
    """How an update comes about and what becomes of it."""
    axes.add_patch(Rectangle((0.3, 1.1), 9.6, 4.0, facecolor="none", edgecolor=HELD, linewidth=1.5))
    axes.add_patch(Rectangle((11.7, 1.1), 4.0, 4.0, facecolor="none", edgecolor=HELD, linewidth=1.5))
    axes.text(0.5, 4.8, "server", color=SOFT, va="center")
    axes.text(11.9, 4.8, "device, NumPy alone", color=SOFT, va="center")
    box(axes, 1.7, 3.7, 2.2, 1.1, "training\nof what is sent")
    box(axes, 5.1, 3.7, 2.4, 1.1, "packet\nintegers per leaf", SENT)
    box(axes, 8.5, 3.7, 2.2, 1.1, "container\nentropy coder")
    box(axes, 13.7, 3.7, 3.2, 1.1, "verify, decode,\nold + packet = new")
    box(axes, 5.1, 1.85, 2.4, 0.9, "deployed model", KNOWN)
    box(axes, 13.7, 1.85, 3.7, 0.9, "the same deployed model", KNOWN)
    arrow(axes, (2.8, 3.7), (3.9, 3.7))
    arrow(axes, (6.3, 3.7), (7.4, 3.7))
    axes.add_patch(
        FancyArrowPatch((9.6, 3.7), (12.1, 3.7), arrowstyle="-|>", mutation_scale=20, color=SENT, linewidth=3)
    )
    axes.text(10.8, 3.95, "update", ha="center", va="bottom", fontsize=10, color=INK)
    for end in ((1.9, 3.1), (8.3, 3.1)):
        arrow(axes, (3.9 if end[0] < 5 else 6.3, 1.9), end)
    arrow(axes, (13.7, 2.3), (13.7, 3.15))
    axes.text(
        8,
        0.55,
        "Both sides derive positions, bases and probabilities from the deployed weights: no bytes.",
        ha="center",
        color=SOFT,
        fontsize=10,
    )


@picture(12, 4.2)
def full(axes: Any) -> None:
    """Every weight travels."""
    grid(axes, 1, 3.4, zeros(8, 6), label="$W$")
    sign(axes, 3.6, 2.2, "+")
    grid(axes, 4.4, 3.4, zeros(8, 6) + 1, label="$s\\,Q$")
    sign(axes, 7.0, 2.2, "=")
    grid(axes, 7.8, 3.4, zeros(8, 6) + 3, label="$W_{new}$")
    legend(axes, 2.2, 0.4, (0, 1, 3))


@picture(16, 4.6)
def partial(axes: Any) -> None:
    """The two trainings of deep partial updating."""
    scores = np.random.default_rng(5).exponential(size=(8, 6))
    mask = (scores > np.sort(scores.ravel())[-8]).astype(int)
    y = 3.6
    grid(axes, 0.6, y, zeros(8, 6), label="$w^0$", under="deployed")
    grid(axes, 4.2, y, zeros(8, 6) + 3, label="$w^f$", under="trained in full")
    for i, j in np.ndindex(8, 6):
        shade = plt.get_cmap("Oranges")(0.05 + 0.9 * min(1, scores[i, j] / 3))
        axes.add_patch(Rectangle((7.8 + j * 0.3, y - (i + 1) * 0.3), 0.3, 0.3, facecolor=shade, edgecolor=GROUND))
    axes.text(8.7, y + 0.15, "$c$", ha="center", va="bottom", fontsize=13)
    axes.text(8.7, y - 2.55, "contributions", ha="center", va="top", fontsize=10, color=SOFT)
    grid(axes, 11.4, y, mask, label="$m\\,w^f + (1-m)\\,w^0$", under="largest kept,\nrest rewound")
    for x in (2.55, 6.15, 9.75):
        arrow(axes, (x, 2.4), (x + 1.5, 2.4))
    arrow(axes, (13.35, 2.4), (14.6, 2.4))
    axes.text(14.7, 2.4, "train\nthese\nalone", va="center", fontsize=10)


@picture(14, 4.2)
def low_rank(axes: Any) -> None:
    """Two factors."""
    grid(axes, 0.8, 3.4, zeros(8, 6), label="$W$", under="")
    sign(axes, 3.3, 2.2, "+")
    grid(axes, 4.0, 3.4, zeros(8, 2) + 1, label="$U$")
    grid(axes, 5.0, 2.5, zeros(2, 6) + 1, label="$V^\\top$")
    sign(axes, 7.6, 2.2, "=")
    grid(axes, 8.5, 3.4, zeros(8, 6) + 3, label="$W_{new}$")
    axes.text(10.7, 2.2, "every weight moves,\nfew numbers travel", va="center", fontsize=10, color=SOFT)
    legend(axes, 2.2, 0.4, (0, 1, 3))


@picture(16, 4.2)
def subspace(axes: Any) -> None:
    """Coefficients in a basis that the device derives."""
    grid(axes, 0.8, 3.4, zeros(8, 6), label="$W$")
    sign(axes, 3.3, 2.2, "+")
    grid(axes, 4.0, 3.4, zeros(8, 3) + 2, label="$A$")
    grid(axes, 5.3, 2.65, zeros(3, 3) + 1, label="$C$")
    grid(axes, 6.6, 2.65, zeros(3, 6) + 2, label="$B^\\top$")
    sign(axes, 9.0, 2.2, "=")
    grid(axes, 9.8, 3.4, zeros(8, 6) + 3, label="$W_{new}$")
    axes.text(12.0, 2.2, "$A$ and $B$: leading directions\nof $W$, in integers", va="center", fontsize=10, color=SOFT)
    legend(axes, 1.6, 0.4, (0, 1, 2, 3))


@picture(14, 4.6)
def masks(axes: Any) -> None:
    """Positions that both sides know."""
    weights = np.abs(np.random.default_rng(8).normal(size=(8, 6)))
    grid(axes, 1.6, 3.6, drawn(8, 6, 10), label="random_mask", under="drawn from a seed of two bytes")
    for i, j in np.ndindex(8, 6):
        shade = plt.get_cmap("Greys")(0.08 + 0.6 * min(1, weights[i, j] / 2.5))
        axes.add_patch(Rectangle((6.6 + j * 0.3, 3.6 - (i + 1) * 0.3), 0.3, 0.3, facecolor=shade, edgecolor=GROUND))
    axes.text(7.5, 3.75, "$|W|$", ha="center", va="bottom", fontsize=13)
    arrow(axes, (8.6, 2.4), (9.9, 2.4))
    largest = (weights > np.sort(weights.ravel())[-11]).astype(int)
    grid(axes, 10.1, 3.6, largest, label="magnitude_mask", under="the largest deployed weights")
    legend(axes, 4.4, 0.3)


@picture(14, 5.0)
def neurons(axes: Any) -> None:
    """Chosen columns of three layers."""
    chosen = (zeros(6, 5), zeros(6, 6), zeros(6, 4))
    chosen[1][:, [1, 4]] = 1
    chosen[2][:, [0, 1, 3]] = 1
    for x, cells, name in zip((1.0, 5.0, 9.4), chosen, ("layer 0", "layer 1", "layer 2"), strict=True):
        grid(axes, x, 4.2, cells, label=name)
    for start, end in ((2.7, 4.8), (7.0, 9.2), (10.8, 12.4)):
        arrow(axes, (start, 3.3), (end, 3.3), "outputs" if start < 9 else "loss")
    for start, end in ((12.4, 10.8), (9.2, 7.0)):
        axes.add_patch(FancyArrowPatch((start, 1.9), (end, 1.9), arrowstyle="-|>", mutation_scale=12, color=SENT))
    axes.text(9.7, 1.5, "gradient", ha="center", va="top", fontsize=10, color=INK)
    axes.plot([4.2, 4.2], [1.2, 4.5], color=SENT, linestyle="--", linewidth=1)
    axes.text(4.0, 1.5, "no gradient below,\nnothing kept", ha="right", va="top", fontsize=10, color=SOFT)
    legend(axes, 4.4, 0.35)


@picture(14, 5.0)
def by_path(axes: Any) -> None:
    """Rules over the paths of leaves."""
    rows = [
        ("embedding/kernel", ".*embedding.*", "None: stays as deployed", HELD),
        ("blocks/0/attention/query/kernel", ".*attention.*kernel", "low_rank(rank=4)", SENT),
        ("blocks/0/mlp/up/kernel", ".*kernel", "subspace(rank=16)", KNOWN),
        ("blocks/0/norm/scale", "no rule", "stays as deployed", HELD),
        ("head/bias", ".*bias", "full(bits=8, aux=4)", SENT),
    ]
    for x, title in ((0.5, "leaf"), (6.0, "first rule that matches"), (10.2, "method")):
        axes.text(x, 4.6, title, color=SOFT, fontsize=10)
    for row, (leaf, rule, method, colour) in enumerate(rows):
        y = 3.95 - 0.8 * row
        axes.add_patch(Rectangle((0.3, y - 0.28), 13.4, 0.6, facecolor=colour, alpha=0.35, edgecolor="none"))
        for x, text in ((0.5, leaf), (6.0, rule), (10.2, method)):
            axes.text(x, y, text, va="center", fontsize=10, family="monospace" if x < 10 else None)


@picture(14, 5.4)
def quantisation(axes: Any) -> None:
    """The staircase of 3 bits."""
    x = np.linspace(-5, 5, 1001)
    inner = axes.figure.add_axes((0.1, 0.2, 0.5, 0.72), facecolor=GROUND)
    inner.plot(x, np.clip(np.round(x), -3, 3), color=SENT, linewidth=2, label="forwards: clip(round(x / s), -L, L) s")
    inner.plot(x, x, color=KNOWN, linewidth=1.5, linestyle="--", label="backwards: the slope of this line, 1")
    inner.set_xlabel("x / s")
    inner.set_xticks(range(-4, 5))
    inner.set_yticks(range(-3, 4))
    inner.set_ylim(-4, 4)
    inner.spines[["top", "right"]].set_visible(False)
    axes.text(8.9, 3.6, "forwards", color=SENT, fontsize=12, weight="bold")
    axes.text(8.9, 3.0, "the value that the device\nwill read: 3 bits, L = 3", fontsize=10, va="center")
    axes.text(8.9, 1.9, "backwards", color=KNOWN, fontsize=12, weight="bold")
    axes.text(8.9, 1.3, "the gradient passes\nas if nothing were rounded", fontsize=10, va="center")


@picture(14, 5.4)
def selection(axes: Any) -> None:
    """Counting at bounds."""
    rng = np.random.default_rng(1)
    inner = axes.figure.add_axes((0.05, 0.2, 0.48, 0.7), facecolor=GROUND)
    scores = rng.normal(size=4000)
    counts, edges, bars = inner.hist(scores, bins=60, color=HELD)
    threshold = np.sort(scores)[-400]
    for edge, bar in zip(edges, bars, strict=False):
        bar.set_facecolor(SENT if edge >= threshold else HELD)
    inner.axvline(threshold, color=INK, linewidth=1.2)
    inner.text(threshold + 0.08, counts.max() * 0.75, "threshold: the\nk-th largest", fontsize=10)
    inner.set_yticks([])
    inner.set_xlabel("score")
    inner.spines[["top", "right", "left"]].set_visible(False)
    lines = [
        "pass 1   t = 10......   count",
        "pass 2   t = 1011....   count",
        "pass 3   t = 101101..   count",
        "...",
        "pass 16  t is exact",
    ]
    axes.text(8.6, 4.3, "two bits of the threshold a pass,", fontsize=10, color=SOFT)
    axes.text(8.6, 3.85, "each a sum over leaves and shards:", fontsize=10, color=SOFT)
    for row, line in enumerate(lines):
        axes.text(8.6, 3.2 - 0.5 * row, line, fontsize=10, family="monospace")


@picture(16, 4.8)
def rounds(axes: Any) -> None:
    """A chain of updates with a restart."""
    for x, text in ((1.7, "first model"), (5.2, "round 1"), (8.7, "round 2"), (12.2, "round 3")):
        box(axes, x, 2.9, 2.2, 0.9, text, KNOWN if x < 2 else HELD)
    for start, size in ((2.8, "update"), (6.3, "update")):
        arrow(axes, (start, 2.9), (start + 1.3, 2.9), size)
    arrow(axes, (9.8, 2.9), (11.1, 2.9), "")
    axes.text(10.45, 3.02, "not sent:\nno better", ha="center", va="bottom", fontsize=9, color=SOFT)
    axes.add_patch(
        FancyArrowPatch(
            (1.7, 3.4),
            (14.9, 3.4),
            arrowstyle="-|>",
            mutation_scale=14,
            color=SENT,
            linewidth=2,
            connectionstyle="arc3,rad=-0.13",
        )
    )
    axes.text(8.3, 4.45, "restart: the data have more than doubled", ha="center", fontsize=10)
    box(axes, 14.9, 2.9, 1.8, 0.9, "round 4", SENT)
    for x, share in ((5.2, 0.25), (8.7, 0.45), (12.2, 0.6), (14.9, 0.85)):
        axes.add_patch(Rectangle((x - 0.9, 1.2), 1.8, 0.35, facecolor="none", edgecolor=HELD))
        axes.add_patch(Rectangle((x - 0.9, 1.2), 1.8 * share, 0.35, facecolor=KNOWN, edgecolor="none"))
    axes.text(3.6, 1.37, "data so far", va="center", ha="right", fontsize=10, color=SOFT)
    axes.text(
        8, 0.45, "The device keeps its first model, so a restart costs no bytes.", ha="center", fontsize=10, color=SOFT
    )


@picture(16, 4.4)
def container(axes: Any) -> None:
    """The parts of an update file."""
    parts = [
        ("updc\nversion\nflags", 1.3, HELD),
        ("fingerprint\nof the base\n16 bytes", 2.2, KNOWN),
        ("fingerprint\nof the result\n16 bytes", 2.2, KNOWN),
        ("seed,\nnumber\nof blocks", 1.5, HELD),
        ("block headers:\nkind, leaf, step,\nsize", 2.5, SENT),
        ("raw\nsection", 1.3, SENT),
        ("extra\nbits", 1.1, SENT),
        ("coded section:\nall integers, rANS", 2.6, SENT),
        ("CRC", 0.7, HELD),
    ]
    x = 0.3
    for text, width, colour in parts:
        axes.add_patch(Rectangle((x, 2.3), width, 1.4, facecolor=colour, alpha=0.55, edgecolor=GROUND, linewidth=2))
        axes.text(x + width / 2, 3.0, text, ha="center", va="center", fontsize=9)
        x += width
    axes.annotate("", (0.3, 2.05), (7.5, 2.05), arrowprops={"arrowstyle": "<->", "color": SOFT})
    axes.text(3.9, 1.85, "in any update: with the checksum 47 bytes", ha="center", va="top", fontsize=10, color=SOFT)
    axes.annotate("", (7.5, 2.05), (15.0, 2.05), arrowprops={"arrowstyle": "<->", "color": SENT})
    axes.text(11.2, 1.85, "what changes", ha="center", va="top", fontsize=10, color=SOFT)
    axes.text(
        8,
        0.7,
        "Costs of applying are known from the headers, before anything is decoded.",
        ha="center",
        fontsize=10,
        color=SOFT,
    )


@picture(16, 4.8)
def store(axes: Any) -> None:
    """How a version becomes current."""
    steps = [
        ("update", SENT),
        ("fits a version\nthat is kept?", HELD),
        ("apply,\na leaf at a time", HELD),
        ("fingerprint\nas promised?", HELD),
        ("health\ncheck", HELD),
        ("current", KNOWN),
    ]
    for i, (text, colour) in enumerate(steps):
        x = 1.5 + 2.6 * i
        box(axes, x, 3.5, 2.0, 1.1, text, colour)
        if i:
            arrow(axes, (x - 1.6, 3.5), (x - 1.0, 3.5))
    for i in (1, 3, 4):
        x = 1.5 + 2.6 * i
        arrow(axes, (x, 2.95), (x, 2.15))
    axes.add_patch(Rectangle((3.1, 1.2), 9.8, 0.9, facecolor=HELD, alpha=0.35, edgecolor="none"))
    axes.text(
        8,
        1.65,
        "refused: nothing was written, the model that was held stays current",
        ha="center",
        va="center",
        fontsize=10,
    )
    axes.text(
        8,
        0.55,
        "Killed at any moment, the store holds the version before or after, whole.",
        ha="center",
        fontsize=10,
        color=SOFT,
    )


if __name__ == "__main__":
    drawing.FOLDER.mkdir(exist_ok=True)
    for write in drawing.PICTURES:
        write()

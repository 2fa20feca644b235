"""What people read of the scale: a table, what it shows, what it says of larger models, and a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import report
from experiments.report import Picture, Report, Table
from experiments.scale_cells import RATIO
from experiments.scale_models import SIZES, WAYS

Cells = Mapping[str, dict[str, Any]]

HEAD = (
    "weights",
    "mesh",
    "select s",
    "kB exchanged",
    "MB a device",
    "step s",
    "MB exchanged",
    "gathered, leaves",
    "MB a device",
    "encode s",
    "apply s",
    "update MB",
    "host MB above the model",
    "kept MB",
    "process MB",
)
LEGEND = (
    "The mesh is a number of devices that the model is split over; data8 are 8 devices that leaves, optimizer state "
    "and batches are split over. Select: the 1 % largest of float32 scores like the kernels, exactly; the same ones on "
    "every mesh. Step: the last training of partial (masked, 8 bits straight-through) of "
    f"{' / of '.join(WAYS)}; - where the machine has too little memory. Exchanged is what a device receives, by the "
    "compiled program; gathered is the largest array that an all-gather of the step gives, in multiples of the largest "
    "leaf. MB a device are arguments and temporaries, by the compiler. Encode: a sparse update of 1 % of the kernels "
    "whose blocks are made from the devices' arrays one at a time; applying it checks both fingerprints. Host MB above "
    "the model are the most that was resident beside what the devices held before; kept is what of it stays. Virtual "
    "devices share the cores of one CPU, and their memory is that of the process: seconds are upper "
    "bounds, and in brackets are those of a core."
)
_PASSES = "16 passes of 2 bits, 1 count of ties, 16 passes for their cut"


class Beyond(NamedTuple):
    """A model that no machine here holds."""

    name: str
    weights: float
    leaves: int
    largest: int  # weights of its largest leaf
    devices: int


# Shapes of public models of the Llama family: 32 blocks of width 4,096 and 80 of 8,192, 9 leaves a block.
_BLOCKS_8B, _BLOCKS_70B = 32, 80
BEYOND = (
    Beyond("8 B", 8.03e9, 9 * _BLOCKS_8B + 3, 128_256 * 4_096, 64),
    Beyond("70 B", 70.6e9, 9 * _BLOCKS_70B + 3, 128_256 * 8_192, 256),
)


def write(workdir: Path, cells: Cells, *, command: str) -> str:
    """Writes the report.

    Args:
      workdir: the experiment's folder.
      cells: "size mesh" -> figures.
      command: that measured them.

    Returns:
      What the terminal shows.
    """
    ordered = sorted(
        cells, key=lambda name: (list(SIZES).index(name.split()[0]), "data" in name, cells[name]["devices"])
    )
    table = Table(HEAD, [_line(name, cells[name]) for name in ordered], left=(0, 1))
    largest = cells[max(cells, key=lambda name: (cells[name]["weights"], cells[name]["devices"], "data" not in name))]
    said = [_shown(cells), *(_projected(model, largest) for model in BEYOND)]
    title = "Training, selecting and encoding on many devices"
    picture = Picture("scale", lambda panels: _draw(panels, cells), panels=2)
    return report.write(workdir, Report(title, command, [table, *said], [picture], LEGEND))


def _line(name: str, cell: dict[str, Any]) -> tuple[str, ...]:
    size, mesh = name.split()
    select, encode, ways = cell["select"], cell["encode"], [cell["train"][way] for way in WAYS]

    def each(form: str, value: Any) -> str:
        return " / ".join("-" if way is None else f"{value(way):{form}}" for way in ways)

    return (
        size,
        mesh,
        f"{select['seconds']:.2f} ({select['core_seconds']:.2f})",
        f"{_sum(select) / 1e3:.0f}",
        f"{_held(select) / 1e6:.1f}",
        each(".1f", lambda way: way["seconds"]),
        each(".1f", lambda way: _sum(way) / 1e6),
        each(".2f", lambda way: way["gathered_leaves"]),
        each(".0f", lambda way: _held(way) / 1e6),
        f"{encode['seconds']:.1f} ({encode['core_seconds']:.1f})",
        f"{encode['apply_seconds']:.1f} ({encode['apply_core_seconds']:.1f})",
        f"{encode['bytes'] / 1e6:.2f}",
        _megabytes(encode["rise_bytes"]),
        _megabytes(encode["kept_bytes"]),
        f"{cell['process_bytes'] / 1e6:.0f}",
    )


def _sum(figures: dict[str, Any]) -> int:
    return sum(figures["exchanged"].values())


def _held(figures: dict[str, Any]) -> int:
    return int(figures["argument_bytes"] + figures["temporary_bytes"])


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"


def _on_one_mesh(cells: Cells) -> tuple[str, list[dict[str, Any]]]:
    """The mesh with most sizes, and of these with most devices; and its figures by size."""
    meshes = [name.split()[1] for name in cells]
    mesh = max(meshes, key=lambda mesh: (meshes.count(mesh), "data" not in mesh, int(mesh.removeprefix("data"))))
    same = [cell for name, cell in cells.items() if name.split()[1] == mesh]
    return mesh, sorted(same, key=lambda cell: cell["weights"])


def _shown(cells: Cells) -> str:
    """What the figures say of growth, in one paragraph."""
    mesh, same = _on_one_mesh(cells)
    weights = [cell["weights"] for cell in same]
    said = [f"On mesh {mesh}, with {', '.join(f'{count:,}' for count in weights)} weights:"]
    for what in ("select", "encode"):
        each = ", ".join(f"{1e9 * cell[what]['core_seconds'] / cell['weights']:.1f}" for cell in same)
        said.append(f"{what} takes {each} ns of a core for each weight;")
    received = " and ".join(dict.fromkeys(f"{_sum(cell['select']):,}" for cell in same))
    said.append(f"selecting exchanges {received} B a device.")
    gathered = [way["gathered_leaves"] for cell in cells.values() for way in cell["train"].values() if way]
    uneven = [way["split"] for cell in cells.values() for way in (*cell["train"].values(), cell["select"]) if way]
    said.append(f"No step gathers more than {max(gathered):.2f} of the largest leaf.")
    said.append(f"No device holds more than {max(uneven):.3f} of its even share of the state, or of the mask.")
    return " ".join(said)


def _projected(model: Beyond, cell: dict[str, Any]) -> str:
    """What a larger model takes, from what was measured; the formula beside each figure."""
    weights, share = model.weights, model.weights / model.devices / 1e9
    select, encode = cell["select"], cell["encode"]
    received = _sum(select) / cell["kernel_leaves"] / cell["devices"]
    selecting = _held(select) * cell["devices"] / cell["kernels"]
    host = max(0, (encode["rise_bytes"] or 0) - 8 * encode["sent"]) / cell["largest_leaf"]
    rate = cell["weights"] / encode["core_seconds"]
    held = {"bf16 weights": 2, "float32 that train": 4, "the best epoch's": 4, "Adam's moments": 8, "the mask": 1}
    parts = [f"{what} {count} W/D = {count * share:.2f}" for what, count in held.items()]
    return (
        f"Projected for W = {model.name} weights in {model.leaves} leaves on D = {model.devices} devices, in GB a "
        f"device: {', '.join(parts)}; together {sum(held.values()) * share:.2f}, beside a step's temporaries. "
        f"Selecting holds {selecting:.1f} W/D = {selecting * share:.2f} and exchanges {received:.0f} B x leaves x D = "
        f"{received * model.leaves * model.devices / 1e6:.1f} MB a device ({_PASSES}), whatever W. "
        f"Host: {host:.1f} B x {model.largest:,} weights of the largest leaf = {host * model.largest / 1e9:.1f} GB, "
        f"and 8 B x {RATIO} W = {8 * RATIO * weights / 1e9:.2f} GB of symbols. "
        f"Encoding: W / ({rate / 1e6:.1f} M weights/s of a core) = {weights / rate:,.0f} s."
    )


def _draw(panels: list[Any], cells: Cells) -> None:
    """Above, seconds against weights; below, bytes of a device."""
    mesh, same = _on_one_mesh(cells)
    weights = [cell["weights"] for cell in same]
    quarter = next(iter(WAYS))
    trained = [cell for cell in same if cell["train"][quarter]]
    above, below = panels
    steps = [cell["train"][quarter] for cell in trained]
    at = [cell["weights"] for cell in trained]
    encoding = [cell["encode"]["core_seconds"] for cell in same]
    above.plot(weights, [cell["select"]["core_seconds"] for cell in same], marker="o", label="select")
    above.plot(at, [way["seconds"] for way in steps], marker="o", label=f"a step, {quarter}; seconds of the clock")
    above.plot(weights, encoding, marker="o", label="encode")
    above.plot(weights, [encoding[0] * size / weights[0] for size in weights], ":", c="gray", label="linear")
    below.plot(weights, [_held(cell["select"]) for cell in same], marker="o", label="held while selecting")
    below.plot(at, [_held(way) for way in steps], marker="o", label=f"held in a step, {quarter}")
    below.plot(weights, [_sum(cell["select"]) for cell in same], marker="o", label="received while selecting")
    below.plot(weights, [2 * cell["largest_leaf"] for cell in same], ":", c="gray", label="the largest leaf, bf16")
    above.set(ylabel=f"seconds of a core, mesh {mesh}")
    below.set(xlabel="weights", ylabel="bytes of a device")
    for panel in panels:
        panel.set(xscale="log", yscale="log")
        panel.legend(fontsize="small")

"""Inputs in a folder for each target: few, small, and between them every edge that was found."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.fuzz import coverage, target

FOLDER = Path(__file__).parent / "corpus"
MOST_FILES = 60
_CRASH = "crash-"
_MOST_CUTS = 30  # tried on an input of the corpus


def read(folder: Path) -> list[bytes]:
    """The inputs in a folder, in the order of their names; none where there is no folder."""
    return [path.read_bytes() for path in sorted(folder.glob("*"))]


def write(folder: Path, inputs: Iterable[bytes]) -> None:
    """Makes a folder hold these inputs and those that once showed a defect."""
    names = {name_of(data): data for data in inputs}
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*"):
        if path.name not in names and not path.name.startswith(_CRASH):
            path.unlink()
    for name, data in names.items():
        (folder / name).write_bytes(data)


def keep_crash(folder: Path, data: bytes) -> Path:
    """Writes an input that shows a defect; it stays as a test when that is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_CRASH}{name_of(data)}"
    path.write_bytes(data)
    return path


def name_of(data: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(data).hexdigest()[:12]


def smallest(tested: target.Target, inputs: Iterable[bytes]) -> tuple[list[bytes], set[coverage.Edge]]:
    """A few inputs that take every edge, each trimmed.

    Args:
      tested: the target.
      inputs: any.

    Returns:
      (at most `MOST_FILES` inputs, those that add most first; the edges that all inputs take).
    """
    edges: dict[bytes, set[coverage.Edge]] = {}
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        seen = target.watch(tested, data)
        if not seen.finding:
            edges[data] = seen.trace.edges
    every: set[coverage.Edge] = set().union(*edges.values())
    left, chosen = set(every), []
    while left and len(chosen) < MOST_FILES:
        best = max(edges, key=lambda data: (len(edges[data] & left), -len(data)))
        needed = edges[best] & left

        def takes(data: bytes, needed: set[coverage.Edge] = needed) -> bool:
            seen = target.watch(tested, data)
            return not seen.finding and needed <= seen.trace.edges

        repaired = tested.repair(best) == best
        chosen.append(trimmed(best, takes, tested.repair if repaired else bytes, _MOST_CUTS))
        left -= needed
    return chosen, every


def trimmed(
    data: bytes, holds: Callable[[bytes], bool], repair: Callable[[bytes], bytes], most: int | None = None
) -> bytes:
    """A shorter input of which something still holds: pieces are cut out, larger ones first.

    Args:
      data: an input of which it holds.
      holds: whether it does.
      repair: makes checksums right after a cut.
      most: cuts to try.

    Returns:
      The shorter input, or the same.
    """
    size, smallest_piece, tries = max(len(data) // 2, 1), max(len(data) // 128, 1), 0
    while size >= smallest_piece and (most is None or tries < most):
        start = 0
        while start < len(data):
            shorter = repair(data[:start] + data[start + size :])
            tries += 1
            if len(shorter) < len(data) and holds(shorter):
                data = shorter
            else:
                start += size
        size //= 2
    return data

"""What devices exchange in a compiled function, read from its optimised program."""

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_EXCHANGE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d*)(?:e\d\w*)?\[([\d,]*)\]")
_LOOP = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_TRIPS = re.compile(r"known_trip_count\D*(\d+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|true_computation=%?([\w.-]+), false_computation=%?([\w.-]+))"
)
_CALLED = re.compile(r"(?:to_apply|calls)=%?([\w.-]+)")


class Exchange(NamedTuple):
    """What each device receives in one run of a program."""

    bytes: dict[str, int]  # by kind; of a branch the larger one counts, of a loop without a known count one turn
    gathered: int  # numbers of the largest array that an all-gather gives
    unknown_loops: int  # loops that exchange something and whose count is not known

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.bytes.values())


def exchanged(program: str) -> Exchange:
    r"""What a program exchanges.

    Args:
      program: the text of an optimised module for one of several devices, as `compiled.as_text()` gives it.

    Returns:
      `Exchange`; the bytes are those of the results, which for a reduce-scatter is what a device keeps.

    >>> exchanged("ENTRY %main (x: f32[2]) -> f32[8] {\n  %y = f32[8]{0} all-gather(%x), dimensions={0}\n}")
    Exchange(bytes={'all-gather': 32}, gathered=8, unknown_loops=0)
    """
    computations, entry = _computations(program)
    gathered, unknown = 0, set[str]()
    known: dict[str, Counter[str]] = {}

    def count(name: str) -> Counter[str]:
        nonlocal gathered
        if name in known:
            return known[name]
        total = Counter[str]()
        for line in computations.get(name, ()):
            if found := _EXCHANGE.search(line):
                sizes = _arrays(found[1])
                sizes = sizes[len(sizes) // 2 :] if found[3] else sizes  # a start gives its operands as well
                total[found[2]] += sum(bits * size // 8 for bits, size in sizes)
                if found[2] == "all-gather":
                    gathered = max(gathered, *(size for _, size in sizes))
            elif loop := _LOOP.search(line):
                turn = count(loop[1]) + count(loop[2])
                trips = _TRIPS.search(line)
                if turn and not trips:
                    unknown.add(line)
                total.update({kind: size * int(trips[1] if trips else 1) for kind, size in turn.items()})
            elif branches := _BRANCHES.search(line):
                names = (branches[1] or f"{branches[2]},{branches[3]}").replace("%", "").split(",")
                total.update(max((count(branch.strip()) for branch in names), key=lambda c: sum(c.values())))
            elif called := _CALLED.search(line):
                total.update(count(called[1]))
        known[name] = total
        return total

    return Exchange(dict(count(entry)), gathered, len(unknown))


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the one that a run begins with."""
    found: dict[str, list[str]] = {}
    entry, lines = "", list[str]()
    for line in program.splitlines():
        if header := _HEADER.match(line):
            lines = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    return found, entry


def _arrays(text: str) -> list[tuple[int, int]]:
    """(bits of a number, numbers) of each array in the text of a type."""
    return [(_bits(name), math.prod(int(n) for n in shape.split(",") if n)) for name, shape in _ARRAY.findall(text)]


def _bits(name: str) -> int:
    return _BITS[name] if name in _BITS else int(re.sub(r"\D", "", name))

"""Exact updates beside what else sends the difference of two models: bytes, speed both ways, memory, their bounds.

The cases are trained or made by `codec_cases`, and kept in the working folder. Everything is verified bit for bit.
"""

import dataclasses
import functools
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import codec_cases, codec_entropy, codec_peers
from experiments.config import Settings, anything, at_least, setting
from experiments.results import write_figures
from updcomp import api
from updcomp.wire import container, fingerprint
from updcomp.wire.errors import Error

Model = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """What is measured."""

    data_dir: str | None = setting(None, "folder of prepared TFDS datasets", later=anything)
    cases: str = setting(",".join(codec_cases.CASES), "of " + ", ".join(codec_cases.CASES))
    repeats: int = setting(3, "how often each time is taken, the median counting")
    large_bytes: int = setting(
        1_000_000_000, "of the largest model on which time and memory are measured; 0: none", check=at_least(0)
    )


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Measures every case, and writes `bench_codec.json` and `report.md`.

    Args:
      config: what and how often.
      workdir: where the cases and figures go.

    Returns:
      Case -> way -> figures; and notes.

    Raises:
      Error: there is no such case.
    """
    names = [name for name in config.cases.split(",") if name]
    if unknown := set(names) - codec_cases.CASES.keys():
        raise Error(f"--cases: expected some of {', '.join(codec_cases.CASES)}, found {sorted(unknown)[0]!r}")
    peers, notes = codec_peers.peers()
    figures: dict[str, Any] = {"notes": notes, "load": os.getloadavg()[0], "cases": {}}
    for case in codec_cases.cases(names, workdir, config.data_dir):
        pairs = list(case.pairs)
        rows = {"updcomp": _ours(pairs, config.repeats)}
        for name, peer in peers.items():
            if sum(leaf.nbytes for leaf in pairs[0][0].values()) <= peer.most_bytes:
                rows[name] = _theirs(peer, pairs, config.repeats)
        figures["cases"][case.name] = {
            "about": case.about,
            "megabytes": sum(leaf.nbytes for old, _ in pairs for leaf in old.values()) / 1e6,
            "rows": rows,
            "entropy": codec_entropy.of(pairs),
            "ablation": codec_entropy.ablation(pairs[0]),
        }
        _show(case.name, figures["cases"][case.name])
    if config.large_bytes:
        figures["growth"] = growth(config.large_bytes)
    for note in notes:
        print(note)
    write_figures(workdir, "bench_codec", figures)
    (workdir / "report.md").write_text(report(figures))
    return figures


def _seconds(action: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """(what it gives, median seconds)."""
    times, value = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        value = action()
        times.append(time.perf_counter() - start)
    return value, statistics.median(times)


def _ours(pairs: list[tuple[Model, Model]], repeats: int) -> dict[str, float]:
    """Both fingerprints included."""
    size = encoding = applying = hashing = 0.0
    for old, new in pairs:
        update, seconds = _seconds(functools.partial(_encode, old, new), repeats)
        encoding += seconds
        made, seconds = _seconds(functools.partial(container.apply_update, update, old), repeats)
        applying += seconds
        _verify(codec_peers.flat(made), codec_peers.flat(new))
        hashing += _seconds(functools.partial(fingerprint.of, old), repeats)[1]
        size += len(update)
    return _row(pairs, size, encoding, applying) | {"times two fingerprints": applying / (2 * hashing)}


def _encode(old: Model, new: Model) -> bytes:
    return api.encode(api.diff(old, new), old)


def _theirs(peer: codec_peers.Peer, pairs: list[tuple[Model, Model]], repeats: int) -> dict[str, float]:
    size = encoding = applying = 0.0
    for old, new in ((codec_peers.flat(a), codec_peers.flat(b)) for a, b in pairs):
        made, seconds = _seconds(functools.partial(peer.encode, old, new), 1)
        encoding += seconds
        back, seconds = _seconds(functools.partial(peer.decode, made, old), repeats)
        applying += seconds
        _verify(back, new)
        size += codec_peers.size_of(made)
    return _row(pairs, size, encoding, applying)


def _row(pairs: list[tuple[Model, Model]], size: float, encoding: float, applying: float) -> dict[str, float]:
    megabytes = sum(leaf.nbytes for old, _ in pairs for leaf in old.values()) / 1e6
    return {"bytes": size, "encode MB/s": megabytes / encoding, "apply MB/s": megabytes / applying}


def _verify(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        if one.tobytes() != other.tobytes():
            raise Error("peer: expected the new model, found another")


def growth(largest: int) -> list[dict[str, float]]:
    """Time, and the most memory beside the two models, of case C several times over, up to so many bytes."""
    found, scale = [], 1
    while True:
        old, new = codec_cases.one_step(scale)
        megabytes = sum(leaf.nbytes for leaf in old.values()) / 1e6
        figures: dict[str, float] = {"megabytes": megabytes, "largest leaf": max(x.nbytes for x in old.values()) / 1e6}
        start = time.perf_counter()
        update = api.encode(api.diff(old, new), old)
        encoded = time.perf_counter()
        container.apply_update(update, old)
        figures |= {"encode s": encoded - start, "apply s": time.perf_counter() - encoded, "bytes": len(update)}
        if megabytes < 200:
            figures |= _peaks(old, new, update)
        found.append(figures)
        print(figures, flush=True)
        scale *= 5
        if megabytes * 5e6 > largest:
            return found


def _peaks(old: Model, new: Model, update: bytes) -> dict[str, float]:
    """MiB beside both models."""
    tracemalloc.start()
    try:
        api.encode(api.diff(old, new), old)
        encoding = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        made = container.apply_update(update, old)
        applying = tracemalloc.get_traced_memory()[1] - sum(leaf.nbytes for leaf in made.values())
    finally:
        tracemalloc.stop()
    return {"encode MiB": encoding / 2**20, "apply MiB": applying / 2**20}


def _show(name: str, case: dict[str, Any]) -> None:
    print(f"\n{name}: {case['about']}, {case['megabytes']:.1f} MB")
    for way, row in case["rows"].items():
        print(f"{row['bytes']:14,.0f}  {row['encode MB/s']:8.1f}  {row['apply MB/s']:8.1f}  {way}")
    for what, value in (case["entropy"] | case["ablation"]).items():
        print(f"{value:14,.0f}  {what}")
    sys.stdout.flush()


def report(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["# Exact updates beside others", "", f"Load at the start: {figures['load']:.1f}.", ""]
    for name, case in figures["cases"].items():
        lines += [f"## {name}: {case['about']} ({case['megabytes']:.1f} MB)", ""]
        lines += ["| way | bytes | encode MB/s | apply MB/s |", "|---|---|---|---|"]
        for way, row in sorted(case["rows"].items(), key=lambda item: item[1]["bytes"]):
            lines.append(f"| {way} | {row['bytes']:,.0f} | {row['encode MB/s']:.1f} | {row['apply MB/s']:.1f} |")
        lines += ["", "| what bounds it, and what contexts buy | bytes |", "|---|---|"]
        lines += [f"| {what} | {value:,.0f} |" for what, value in (case["entropy"] | case["ablation"]).items()] + [""]
    if "growth" in figures:
        columns = list(figures["growth"][0])
        lines += ["## How time and memory grow", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += [
            "| " + " | ".join(f"{row.get(one, float('nan')):,.1f}" for one in columns) + " |"
            for row in figures["growth"]
        ]
    return "\n".join([*lines, "", *(f"- {note}" for note in figures["notes"])]) + "\n"

"""Updates beside what else sends the difference of two models: bytes, speed both ways, memory, their bounds.

The cases are trained or made by `codec_cases`, and kept in the working folder. Exact updates are verified bit for bit;
lossy ones are compared at equal accuracy and at equal errors.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from experiments import (
    codec_cases,
    codec_entropy,
    codec_growth,
    codec_images,
    codec_lossy,
    codec_nncodec,
    codec_peers,
    codec_report,
)
from experiments.config import Settings, anything, at_least, setting
from experiments.results import write_figures
from updcomp import api
from updcomp.wire import container, fingerprint
from updcomp.wire.errors import Error

Model = dict[str, np.ndarray]

_LOSSY = ("A", "B", "As", "Bs", "E")
_JUDGES = {"A": "A", "B": "B", "As": "A", "Bs": "B"}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """What is measured."""

    data_dir: str | None = setting(None, "folder of prepared TFDS datasets", later=anything)
    cases: str = setting(",".join(codec_cases.CASES), "of " + ", ".join(codec_cases.CASES))
    repeats: int = setting(3, "how often each time is taken, the median counting")
    large_bytes: int = setting(
        1_000_000_000, "of the largest model on which time and memory are measured; 0: none", check=at_least(0)
    )
    lossy: str = setting(",".join(_LOSSY), f"cases of lossy updates, of {', '.join(_LOSSY)}")
    nncodec_python: str | None = setting(None, "interpreter of an environment with nncodec", later=anything)


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
    exact, lossy = _named("cases", config.cases, codec_cases.CASES), _named("lossy", config.lossy, _LOSSY)
    peers, notes = codec_peers.peers()
    figures: dict[str, Any] = {"notes": notes, "load": os.getloadavg()[0], "cases": {}, "lossy": {}}
    for case in codec_cases.cases(exact, workdir, config.data_dir):
        figures["cases"][case.name] = _exact(case, peers, config.repeats)
        _show(case.name, figures["cases"][case.name])
    ways = codec_lossy.ways(_zstandard())
    if config.nncodec_python:
        ways |= codec_nncodec.ways(config.nncodec_python)
    for case in codec_cases.cases(lossy, workdir, config.data_dir):
        figures["lossy"][case.name] = found = _lossy(case, ways, config.data_dir)
        for what, rows in found.items():
            _tell(f"{case.name}, {what}", rows)
    if config.large_bytes:
        figures["growth"] = codec_growth.growth(config.large_bytes)
    for note in notes:
        print(note)
    write_figures(workdir, "bench_codec", figures)
    codec_report.write(workdir, figures)
    return figures


def _named(flag: str, text: str, known: Collection[str]) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise Error(f"--{flag}: expected some of {', '.join(known)}, found {unknown[0]!r}")
    return names


def _zstandard() -> Any | None:
    return importlib.import_module("zstandard") if importlib.util.find_spec("zstandard") else None


def _exact(case: codec_cases.Case, peers: dict[str, codec_peers.Peer], repeats: int) -> dict[str, Any]:
    pairs = list(case.pairs)
    megabytes = _megabytes(pairs)
    rows = {"updcomp": _ours(pairs, repeats)}
    for name, peer in peers.items():
        if megabytes * 1e6 <= peer.most_bytes:
            rows[name] = _theirs(peer, pairs, repeats)
    return {
        "about": case.about,
        "megabytes": megabytes,
        "rows": rows,
        "entropy": codec_entropy.own(pairs) | codec_entropy.of(pairs),
        "ablation": codec_entropy.ablation(pairs[0]),
    }


def _lossy(case: codec_cases.Case, ways: dict[str, codec_lossy.Way], data_dir: str | None) -> dict[str, Any]:
    pair = (case.models[0], case.models[1])
    ways = {name: codec_lossy.remembered(way) for name, way in ways.items()}
    if case.name not in _JUDGES:
        return {"at equal relative error": codec_lossy.at_equal_relative_error(pair, ways)}
    right = codec_lossy.at_equal_accuracy(pair, codec_images.judge(_JUDGES[case.name], data_dir), ways)
    error = next(iter(right.values()))["largest error"]
    return {"at equal accuracy": right, "at equal error": codec_lossy.at_equal_error(pair, error, ways)}


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
    megabytes = _megabytes(pairs)
    return {"bytes": size, "encode MB/s": megabytes / encoding, "apply MB/s": megabytes / applying}


def _megabytes(pairs: list[tuple[Model, Model]]) -> float:
    return sum(leaf.nbytes for old, _ in pairs for leaf in old.values()) / 1e6


def _verify(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        if one.tobytes() != other.tobytes():
            raise Error("peer: expected the new model, found another")


def _show(name: str, case: dict[str, Any]) -> None:
    print(f"\n{name}: {case['about']}, {case['megabytes']:.1f} MB")
    for way, row in case["rows"].items():
        print(f"{row['bytes']:14,.0f}  {row['encode MB/s']:8.1f}  {row['apply MB/s']:8.1f}  {way}")
    for what, value in (case["entropy"] | case["ablation"]).items():
        print(f"{value:14,.0f}  {what}")
    sys.stdout.flush()


def _tell(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}")
    for way, row in rows.items():
        print(f"{way}: {', '.join(f'{what} {value:,.6g}' for what, value in row.items())}", flush=True)

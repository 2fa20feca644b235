"""Fuzzes, and keeps what was found: `python -m tests.fuzz --target=all --minutes=10`.

It begins with the corpus, so that runs add up. Every target prints a line; a defect prints its traceback, is trimmed
and kept beside the corpus, where the suite fails until it is gone.
"""

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz import corpus, guided, loop, target, targets


def main() -> int:
    """Runs the targets one after another; 1 if one has a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=["all", *targets.TARGETS], default="all")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=corpus.FOLDER, help="folder of a folder for each target")
    parser.add_argument("--engine", choices=["atheris", "own"], default="atheris" if guided.installed() else "own")
    options = parser.parse_args()
    names = list(targets.TARGETS) if options.target == "all" else [options.target]
    found = [_fuzz(name, options) for name in names]
    return int(any(found))


def _fuzz(name: str, options: argparse.Namespace) -> bool:
    """Fuzzes a target and prints what came of it; whether there is a finding."""
    tested, folder = targets.TARGETS[name], options.corpus / name
    seconds, inputs, again = 60 * options.minutes, corpus.read(folder), []
    count = 0
    if options.engine == "atheris":
        begin = [tested.repair(data) for data in [*tested.seeds(), *inputs]]
        count, found = guided.explore(name, begin, seconds=seconds, seed=options.seed)
        seconds, again = 0.0, [data for part in found.values() for data in part]
    # The loop says of all inputs what they take, whoever found them.
    again += [tested.repair(data) for data in inputs]
    report = loop.fuzz(tested, [*inputs, *again], seconds=seconds, seed=options.seed)
    chosen, edges = corpus.smallest(tested, report.pool)
    corpus.write(folder, chosen)
    for kind, (data, finding) in report.findings.items():
        _keep(tested, folder, kind, data, finding)
    for twin, other in report.twins[:3]:
        print(f"  the same update twice:\n    {twin.hex()}\n    {other.hex()}")
    print(
        f"{name}: {report.inputs + count} inputs, {len(edges)} edges, {len(chosen)} files of "
        f"{sum(map(len, chosen))} bytes, {len(report.findings)} findings, {len(report.twins)} twins; most "
        f"{report.lines} lines, {report.memory / 2**20:.1f} MiB, {_seconds(tested, report.pool + again):.2f} s; "
        f"{dict(report.outcomes)}",
        flush=True,
    )
    return bool(report.findings)


def _keep(tested: target.Target, folder: Path, kind: str, data: bytes, finding: target.Finding) -> None:
    """Trims an input that shows a defect, keeps it, and prints what it shows."""

    def shows(shorter: bytes) -> bool:
        found = (target.watch(tested, shorter).finding, target.memory_of(tested, shorter)[1])
        return any(one is not None and one.kind == kind for one in found)

    path = corpus.keep_crash(folder, corpus.trimmed(data, shows, tested.repair))
    print(f"  FINDING {kind}: {path}\n{finding.text}", flush=True)


def _seconds(tested: target.Target, inputs: list[bytes]) -> float:
    """The CPU time of the slowest input, unwatched."""
    slowest = 0.0
    for data in inputs:
        start = time.process_time()
        target.judge(tested, data)
        slowest = max(slowest, time.process_time() - start)
    return slowest


if __name__ == "__main__":
    sys.exit(main())

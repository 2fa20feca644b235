"""The same with atheris, which is faster; `updcomp` is instrumented as it is imported, so this is a process of its own.

For the same reason nothing of the project is imported at the top of this file.

    python -m tests.fuzz.guided NAME SECONDS SEED FOLDER

FOLDER/inputs holds inputs before and after, FOLDER/findings what showed a defect, FOLDER/twins and FOLDER/worst inputs
that the loop looks at again.
"""

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_RECORDS = 8  # of the slowest inputs
_TWINS = 50
_PARTS = ("inputs", "findings", "twins", "worst")


def installed() -> bool:
    """Whether atheris can be imported."""
    return importlib.util.find_spec("atheris") is not None


def explore(name: str, inputs: list[bytes], *, seconds: float, seed: int) -> tuple[int, dict[str, list[bytes]]]:
    """Runs a process of atheris.

    Args:
      name: the target's.
      inputs: to begin with.
      seconds: for how long.
      seed: of libFuzzer.

    Returns:
      (number of inputs that were run, the files of each folder).
    """
    from tests.fuzz import corpus, readers

    with tempfile.TemporaryDirectory(prefix="updcomp-fuzz-", dir=readers.folder()) as folder:
        for part in _PARTS:
            (Path(folder) / part).mkdir()
        for data in inputs:
            (Path(folder) / "inputs" / corpus.name_of(data)).write_bytes(data)
        # libFuzzer ends the process without what it would do at its end.
        environment = os.environ | {readers.FOLDER: folder}
        command = [sys.executable, "-m", "tests.fuzz.guided", name, str(seconds), str(seed), folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        output = done.stdout.decode(errors="replace")
        told = [line for line in output.splitlines() if "number_of_executed_units" in line]
        if not told:
            raise RuntimeError(f"atheris ended with status {done.returncode}:\n{output[-3000:]}")
        # libFuzzer's own files are those of inputs that took too long or ended the process.
        found = {part: corpus.read(Path(folder) / part) for part in _PARTS}
        return int(told[-1].split()[-1]), found


def main(name: str, seconds: str, seed: str, folder: str) -> None:
    """Fuzzes in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["updcomp.wire", "updcomp.edge"]):
        from tests.fuzz import mutation, target, targets
    tested, session = targets.TARGETS[name], _Session(Path(folder))
    tested.prepare()
    seeds = tested.seeds()

    def one(data: bytes) -> None:
        session.judge(tested, data)

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.randrange(4) == 0:
            changed = atheris.Mutate(data, most)
            return tested.repair(changed)[:most] if rng.randrange(16) else changed
        return target.child(tested, data, rng, seeds)[:most]

    flags = [
        *(f"-max_total_time={float(seconds):.0f}", f"-seed={int(seed) + 1}", f"-max_len={mutation.MOST}"),
        *("-print_final_stats=1", "-verbosity=0", "-timeout=60", "-rss_limit_mb=4096", "-len_control=0"),
        f"-artifact_prefix={folder}/findings/",
    ]
    atheris.Setup([sys.argv[0], *flags, f"{folder}/inputs"], one, custom_mutator=change)
    atheris.Fuzz()


class _Session:
    """Writes down what the loop looks at again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kinds: set[str] = set()
        self._contents: dict[Any, bytes] = {}
        self._twins = 0
        self._slowest = 0.0

    def judge(self, tested: Any, data: bytes) -> None:
        """Runs an input."""
        from tests.fuzz import target

        start = time.process_time()
        outcome, finding = target.judge(tested, data)
        taken = time.process_time() - start
        if finding and finding.kind not in self._kinds:
            self._kinds.add(finding.kind)
            self._keep("findings", data)
        if taken > 1.2 * self._slowest:
            self._slowest = taken
            self._keep("worst", data)
        if outcome == "accepted" and tested.content and self._twins < _TWINS:
            twin = self._contents.setdefault(hash(tested.content(data)), data)
            if twin != data:
                self._twins += 1
                self._keep("twins", twin)
                self._keep("twins", data)

    def _keep(self, part: str, data: bytes) -> None:
        from tests.fuzz import corpus

        (self._folder / part / corpus.name_of(data)).write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:])

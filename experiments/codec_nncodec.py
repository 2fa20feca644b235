"""NNCodec (ISO/IEC 15938-17, DeepCABAC) as a way to send lossy updates, in an environment of its own.

It needs an older NumPy and its own torch, so that a process with that interpreter codes: `nncodec_worker.py`.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from experiments import codec_lossy
from updcomp.wire import dtypes
from updcomp.wire.errors import Error

Weights = dict[str, np.ndarray]

_WORKER = Path(__file__).with_name("nncodec_worker.py")
_PER_OCTAVE = 4  # its steps are 2^(qp / 4), about


def ways(python: str) -> dict[str, codec_lossy.Way]:
    """NNCodec with its two quantisations, by name.

    Args:
      python: interpreter of an environment in which `import nncodec` works.
    """
    return {"NNCodec": _way(python, dependent=False), "NNCodec, dependent quantisation": _way(python, dependent=True)}


def _way(python: str, *, dependent: bool) -> codec_lossy.Way:
    def code(old: Weights, new: Weights, step: float) -> codec_lossy.Made:
        held = {name: dtypes.hold(leaf) for name, leaf in old.items()}
        floats = {name: dtypes.to_floats(leaf) for name, leaf in held.items()}
        moved = {name: dtypes.to_floats(dtypes.hold(new[name])) - one for name, one in floats.items()}
        settings = [str(round(_PER_OCTAVE * np.log2(step))), str(int(dependent))]
        size, found = _in_its_process(python, {name: _turned(one) for name, one in moved.items()}, settings)
        model = {
            name: dtypes.round_floats(floats[name] + _turned(found[name]).reshape(leaf.shape), leaf.dtype)
            for name, leaf in held.items()
        }
        return codec_lossy.Made(size, model)

    return code


def _turned(kernel: np.ndarray) -> np.ndarray:
    """Kernels as it has them, fan-out first: (out, in, ...); the inverse as well for two axes or one."""
    return np.ascontiguousarray(kernel.T)


def _in_its_process(python: str, leaves: Weights, settings: list[str]) -> tuple[int, Weights]:
    """(bytes of the stream, what it gives back)."""
    with tempfile.TemporaryDirectory() as name:
        given, made = Path(name, "given.npz"), Path(name, "made.npz")
        np.savez(given, *leaves.values())
        ended = subprocess.run(
            [python, str(_WORKER), str(given), str(made), *settings], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise Error(f"--nncodec_python: {python} failed: {ended.stderr.strip()[-500:]}")
        with np.load(made) as found:
            return int(found["size"]), {leaf: found[f"arr_{i}"] for i, leaf in enumerate(leaves)}

"""Codes leaves by NNCodec, in an interpreter that has it and nothing of updcomp: GIVEN.npz MADE.npz QP DEPENDENT."""

import sys
import tempfile
from typing import Any

import numpy as np


def main(given: str, made: str, qp: str, dependent: str) -> None:
    """Writes the stream's size and the leaves that it gives back; all of them in the order that they were given in.

    Args:
      given: path of an `.npz` of float32 leaves, kernels as (out, in, ...).
      made: path of the `.npz` to write.
      qp: of all leaves.
      dependent: 1: dependent (trellis-coded) quantisation; 0: scalar.
    """
    from nncodec.nn import decode, encode

    with np.load(given) as found:
        leaves = {name: found[name] for name in found.files}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"qp": int(qp), "nonweight_qp": int(qp), "use_dq": dependent == "1", "results": folder}
        stream = encode(leaves, args={**settings, "verbose": False})
        back = decode(stream)
    arrays: dict[str, Any] = {name: back[name] for name in leaves}
    np.savez(made, size=len(stream), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])

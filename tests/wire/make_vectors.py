"""Writes the test vectors of format version 2 beside this file, `python -m tests.wire.make_vectors`.

Those of version 1 stay as they are: what was written once must be read for ever.
"""

import json
from pathlib import Path

import numpy as np

from tests.wire import samples
from updcomp.edge import files
from updcomp.wire import apply, basis, container, dtypes, fingerprint, inspection, views
from updcomp.wire.packet import Packet

FOLDER = Path(__file__).parent / "vectors"


def main() -> None:
    """Writes a model and an update of it with views, updates of every kind with metadata, and what they give."""
    base, packet, columns = samples.viewed_model(), samples.viewed_packet(), samples.viewed_columns()
    files.write_model(FOLDER / "views.safetensors", base)
    layers = base["layers/coefficients"]
    index, view = sorted(base).index("layers/coefficients"), views.of_words("stack in out")
    left, right = basis.of(layers, 2, seed=7, index=index, view=view)
    update = container.encode(packet, base)
    (FOLDER / "views.updc").write_bytes(update)
    expected = {
        "fingerprint": fingerprint.of(base).hex(),
        "basis": {"left": left.astype(int).tolist(), "right": right.astype(int).tolist()},
        "inspect": inspection.inspect(update),
        "new_leaves": _new_leaves(packet, base),
        "columns": {
            "update": container.encode(columns, base).hex(),
            "new_leaves": _new_leaves(columns, base),
        },
    }
    (FOLDER / "views.json").write_text(json.dumps(expected, indent=1) + "\n")

    base, found = samples.model(), {}
    for kind, packet in samples.packets().items():
        update = container.encode(packet, base, metadata=samples.METADATA)
        found[kind] = {"update": update.hex(), "new_leaves": _new_leaves(packet, base)}
    told = {"metadata": samples.METADATA, "updates": found}
    (FOLDER / "version2.json").write_text(json.dumps(told, indent=1) + "\n")


def _new_leaves(packet: Packet, base: dict[str, np.ndarray]) -> dict[str, str]:
    new = apply.apply(packet, base)
    return {name: dtypes.flat_bits(new[name]).tobytes().hex() for name in sorted(packet.blocks)}


if __name__ == "__main__":
    main()

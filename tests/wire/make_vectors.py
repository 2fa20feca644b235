"""Writes the test vectors of format version 4 beside this file, `python -m tests.wire.make_vectors`.

Those of versions 1 to 3 stay as they are: what was written once must be read for ever.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.wire import samples
from updcomp.wire import apply, container, dtypes, inspection
from updcomp.wire.packet import Packet

FOLDER = Path(__file__).parent / "vectors"


def main() -> None:
    """Writes updates of every model and kind, those of the first model with metadata, and what they give."""
    told: dict[str, Any] = {"metadata": samples.METADATA, "updates": {}}
    models = {
        "model": (samples.model(), samples.packets(), samples.METADATA),
        "viewed": (
            samples.viewed_model(),
            {"views": samples.viewed_packet(), "columns": samples.viewed_columns()},
            None,
        ),
        "exact": (samples.exact_model(), samples.exact_packets(), None),
        "mapped": (samples.mapped_model(), samples.mapped_packets(), None),
        "changing": (samples.model(), {"leaves": samples.restructured()}, None),
        "fitted": (samples.fitted_model(), {"fitted": samples.fitted_packet()}, None),
    }
    for name, (base, packets, metadata) in models.items():
        for kind, packet in packets.items():
            is_compact = kind in ("coefficients", "leaves")
            update = container.encode(packet, base, metadata=metadata, compact=is_compact)
            found = {"inspect": inspection.inspect(update), "update": update.hex(), "new": _new_leaves(packet, base)}
            told["updates"][f"{name}/{kind}"] = found
    (FOLDER / "version4.json").write_text(json.dumps(told, indent=1) + "\n")


def _new_leaves(packet: Packet, base: dict[str, np.ndarray]) -> dict[str, str]:
    """The bits of each; of a large one their SHA-256."""
    new, found = apply.apply(packet, base), {}
    for name in sorted(packet.blocks):
        data = dtypes.flat_bits(new[name]).tobytes()
        found[name] = data.hex() if len(data) < 4096 else hashlib.sha256(data).hexdigest()
    return found


if __name__ == "__main__":
    main()

"""Writes the test vectors of format version 2 beside this file, `python -m tests.wire.make_vectors`.

Those of version 1 stay as they are: what was written once must be read for ever.
"""

import json
from pathlib import Path

from tests.wire import samples
from updcomp.edge import files
from updcomp.wire import apply, basis, container, dtypes, fingerprint, inspection, views

FOLDER = Path(__file__).parent / "vectors"


def main() -> None:
    """Writes a base model, an update of it with views, and what is expected of them."""
    base, packet = samples.viewed_model(), samples.viewed_packet()
    files.write_model(FOLDER / "views.safetensors", base)
    layers = base["layers/coefficients"]
    left, right = basis.of(
        layers, 2, seed=7, index=sorted(base).index("layers/coefficients"), view=views.of_words("stack in out")
    )
    update = container.encode(packet, base)
    (FOLDER / "views.updc").write_bytes(update)
    new = apply.apply(packet, base)
    expected = {
        "fingerprint": fingerprint.of(base).hex(),
        "basis": {"left": left.astype(int).tolist(), "right": right.astype(int).tolist()},
        "inspect": inspection.inspect(update),
        "new_leaves": {name: dtypes.flat_bits(new[name]).tobytes().hex() for name in sorted(packet.blocks)},
    }
    (FOLDER / "views.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Writes the test vectors beside this file, `python -m tests.wire.make_vectors`: for a new format version only."""

import json
from pathlib import Path

from tests.wire import samples
from updcomp.edge import files
from updcomp.wire import apply, basis, container, dtypes, fingerprint, hashing, models, positions

FOLDER = Path(__file__).parent / "vectors"


def main() -> None:
    """Writes the base model, one update per kind, and what is expected of them."""
    FOLDER.mkdir(exist_ok=True)
    base = samples.model()
    kernel = base["dense/kernel"]
    left, right = basis.of(kernel, 3, seed=5, index=2)
    files.write_model(FOLDER / "base.safetensors", base)
    expected = {
        "fingerprint": fingerprint.of(base).hex(),
        "hashes": [hex(h) for h in hashing.hashes(hashing.stream_key(5, 2, 0), 0, 4).tolist()],
        "prior": {
            f"{s} {k} {signed}": models.prior(s, k, signed) for s in (0, 21, 50) for k in (5, 40) for signed in (0, 1)
        },
        "seeded": positions.seeded(5, 2, 240, 12).tolist(),
        "largest": positions.largest(kernel, 12).tolist(),
        "basis": {"left": left.astype(int).tolist(), "right": right.astype(int).tolist()},
        "updates": {},
    }
    for kind, packet in samples.packets().items():
        update = container.encode(packet, base)
        (FOLDER / f"{kind}.updc").write_bytes(update)
        new = apply.apply(packet, base)
        bits = {name: dtypes.flat_bits(new[name]).tobytes().hex() for name in sorted(packet.blocks)}
        expected["updates"][kind] = {"inspect": container.inspect(update), "new_leaves": bits}
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()

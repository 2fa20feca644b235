"""Models that prove themselves whole, and updates between them."""

import hashlib
import os

import numpy as np

from updcomp.edge import files, state, store
from updcomp.wire import container, header, metadata, packet
from updcomp.wire.kinds.raw import Raw


def model(seed=0, size=64):
    """A model in which one leaf says what the other must hold."""
    weights = np.random.default_rng(seed).standard_normal(size, np.float32)
    return {"sha256": np.frombuffer(hashlib.sha256(weights).digest(), np.uint8), "weights": weights}


def is_whole(found):
    return (
        set(found) == {"sha256", "weights"} and hashlib.sha256(found["weights"]).digest() == found["sha256"].tobytes()
    )


def update(old, new):
    """The update of an old model, or of the one with a seed, to a new one."""
    old, new = (model(one) if isinstance(one, int) else one for one in (old, new))
    return container.encode(packet.Packet({name: Raw(leaf) for name, leaf in new.items()}), old)


def make(folder, seed=0, size=64, metadata=None, **options):
    """A store whose first version is the model with a seed, made from a file beside it."""
    source = folder.with_name(f"{folder.name}-first.safetensors")
    files.write_model(source, model(seed, size), metadata)
    opened = store.Store(folder, **options)
    opened.initialise(source)
    return opened


def seed_of(found, among=range(100)):
    """Which of the models it is."""
    return next(
        seed for seed in among if np.array_equal(model(seed, len(found["weights"]))["weights"], found["weights"])
    )


def listing(folder):
    """The paths of all files below a folder."""
    return sorted(
        os.path.relpath(os.path.join(place, name), folder) for place, _, names in os.walk(folder) for name in names
    )


def expected_listing(numbers):
    """What a store that keeps these versions consists of."""
    suffixes = {
        number: ("json", "safetensors") if number == 1 else ("json", "safetensors", "upd") for number in numbers
    }
    return sorted(["lock", "state", *(f"versions/{n:08d}.{one}" for n, ones in suffixes.items() for one in ones)])


def identity(update: bytes) -> str:
    """By which a store knows an update of these models, which have no metadata."""
    base, result = (one.hex() for one in header.fingerprints(update))
    none = metadata.fingerprint({}).hex()
    return state.identity((base, none), (result, none))

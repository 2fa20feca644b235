"""What is fuzzed, by name; a new kind of block has a target as soon as the samples have a packet of it."""

import functools

from tests.fuzz import readers, stores, texts, updates
from tests.fuzz.target import Target
from updcomp.wire import versions

_UPDATE = Target(updates.apply, updates.seeds, updates.with_prints, updates.edit, content=updates.content)

TARGETS: dict[str, Target] = {
    "header": _UPDATE._replace(run=updates.parse_header, repair=updates.with_checksum, content=None),
    "container": _UPDATE,
    **{
        kind: _UPDATE._replace(seeds=functools.partial(updates.seeds, kind))
        for kind in (known.name for known in versions.NEWEST.kinds.values())
    },
    "safetensors": Target(
        readers.read_safetensors,
        readers.safetensors_seeds,
        readers.repair_safetensors,
        readers.edit_safetensors,
        texts.WORDS,
    ),
    "npz": Target(
        readers.read_npz,
        readers.npz_seeds,
        readers.repair_npz,
        readers.edit_npz,
        readers.NPZ_WORDS,
    ),
    "store": Target(stores.use, stores.seeds, stores.repair, stores.edit, texts.WORDS),
}

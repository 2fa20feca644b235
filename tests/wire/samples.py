"""A small model of every dtype and packets of every kind, the same in every run."""

import numpy as np

from updcomp.wire import costs, decoding, dtypes, hashing, header, packet, views
from updcomp.wire.increments import round_step
from updcomp.wire.kind import Block
from updcomp.wire.kinds.coefficients import Coefficients
from updcomp.wire.kinds.columns import Columns
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.factors import Factors
from updcomp.wire.kinds.half import Half
from updcomp.wire.kinds.magnitude import Magnitude
from updcomp.wire.kinds.mapped import Mapped
from updcomp.wire.kinds.raw import Raw
from updcomp.wire.kinds.seeded import Seeded
from updcomp.wire.kinds.sparse import Sparse
from updcomp.wire.structure import Structure

STEP = round_step(0.01)
FINE = round_step(1e-9)  # of integers of 28 fractional bits

# Of a model file before and after: a text changes, one goes, one stays; characters of every way of escaping.
METADATA = ({"a": "1", "gone": "x", "z": "stays"}, {"a": 'é "\\/\n\x01\x7f 😀', "z": "stays"})


def as_matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a kernel: every axis but the last is flattened.

    >>> as_matrix_shape((3, 3, 16, 32)), as_matrix_shape((10,)), as_matrix_shape(())
    ((144, 32), (1, 10), (1, 1))
    """
    fan_out = shape[-1] if shape else 1
    fan_in = 1
    for axis in shape[:-1]:
        fan_in *= axis
    return fan_in, fan_out


def costs_of(update: bytes, base: dict[str, np.ndarray]) -> list[costs.Cost]:
    """What each block of an update takes."""
    return decoding.known_costs(header.parse(update), dtypes.specs(base))


def bits(count: int, stream: int, width: int = 64) -> np.ndarray:
    """Random unsigned integers below 2^width that do not depend on NumPy's generators."""
    return hashing.hashes(hashing.stream_key(0, stream, 0), 0, count) >> np.uint64(64 - width)


def integers(shape: tuple[int, ...], stream: int, scale: int = 3) -> np.ndarray:
    """int32 of a roughly two-sided geometric distribution."""
    count = int(np.prod(shape))
    uniform = (bits(count, stream, 20).astype(np.float64) + 0.5) / 2**20
    values = np.trunc(np.log(uniform) / np.log(1 - 1 / (scale + 1)))
    return np.where(bits(count, stream + 1, 1) > 0, values, -values).astype(np.int32).reshape(shape)


def floats(shape: tuple[int, ...], stream: int) -> np.ndarray:
    """float64 in (-1, 1), sums of uniforms."""
    count = int(np.prod(shape))
    parts = [bits(count, 100 * stream + i, 16).astype(np.float64) / 2**15 - 1 for i in range(3)]
    return (sum(parts) / 3).reshape(shape)


def model() -> dict[str, np.ndarray]:
    """Leaves of every dtype, 0-d and empty ones too; 'dense/kernel' is the one that blocks are tested on."""
    base = {
        "dense/kernel": floats((24, 10), 1).astype(np.float32),
        "dense/bias": floats((10,), 2).astype(np.float32),
        "conv": floats((3, 3, 2, 4), 3).astype(np.float16),
        "scale": (floats((6,), 4).astype(np.float32).view(np.uint32) >> 16).astype("<u2").view(dtypes.BFLOAT16),
        "quantised": bits(12, 5, 8).astype(np.uint8).view([("float8_e4m3fn", "|u1")]),
        "double": floats((5, 3), 6),
        "step": np.array(7, np.int64),
        "seen": bits(9, 7, 1).astype(bool),
        "wave": (floats((4,), 8) + 1j * floats((4,), 9)).astype(np.complex64),
        "empty": np.zeros((0, 3), np.float32),
        "special": np.float32([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, 3e38, 1.0]),
    }
    return base | {f"more/{i:02d}": np.full(2, i, np.uint16) for i in range(20)}


def packets() -> dict[str, packet.Packet]:
    """One packet per kind, and one of all together."""
    base = model()
    kernel = base["dense/kernel"]
    places = np.unique(bits(30, 20, 7).astype(np.int64))
    kinds = {
        "raw": {"dense/bias": Raw(kernel[0] * 2), "more/19": Raw(np.uint16([1, 2]))},
        "exact": {
            "dense/kernel": Exact(np.where(bits(240, 21, 1).reshape(24, 10) == 0, kernel * 1.001, kernel)),
            "quantised": Exact(base["quantised"][::-1].copy()),
            "seen": Exact(~base["seen"]),
            "wave": Exact(base["wave"] * 2),
            "step": Exact(np.array(8, np.int64)),
        },
        "changes": {
            "dense/kernel": Exact(np.where(bits(240, 22, 4).reshape(24, 10) == 0, kernel * 1.001, kernel)),
        },
        "half": {"dense/bias": Half(kernel[1].astype(np.float16)), "scale": Half(np.ones(6, np.float16))},
        "dense": {
            "dense/kernel": Dense(
                integers((24, 10), 30) * (1 + np.arange(24) // 6 * 4)[:, None].astype(np.int32), STEP
            ),
            "conv": Dense(integers((3, 3, 2, 4), 32), STEP),
            "scale": Dense(integers((6,), 34), STEP),
            "special": Dense(np.int32([1, 1, 0, 0, -1, 1, 2**31 - 1, -5]), round_step(1e30)),
        },
        "sparse": {"dense/kernel": Sparse(places, integers(places.shape, 36) | 1, STEP)},
        "columns": {
            "dense/kernel": columns_of((24, 10), None, 52),
            "conv": columns_of((3, 3, 2, 4), None, 54),
            "scale": columns_of((6,), None, 56),
        },
        "seeded": {"dense/kernel": Seeded(integers((40,), 38), STEP)},
        "magnitude": {
            "dense/kernel": Magnitude(integers((40,), 40), STEP),
            "conv": Magnitude(integers((9,), 42), STEP),
        },
        "factors": {"dense/kernel": Factors(integers((24, 2), 44), integers((10, 2), 46), STEP)},
        "coefficients": {
            "dense/kernel": Coefficients(integers((5, 5), 48), 5, STEP),
            "double": Coefficients(integers((4, 3), 50), 4, STEP),
        },
        "mapped": {
            "conv": Mapped("grouped", integers((6,), 58), STEP, rank=2),
            "dense/kernel": Mapped("grouped", integers((6,), 58), STEP, rank=2),
            "double": Mapped("waves", integers((5,), 60), FINE),
            "scale": Mapped("levels", integers((7,), 62), STEP, width=6),
        },
    }
    together = {name: block for blocks in kinds.values() for name, block in blocks.items()}
    together["more/07"] = Exact(np.uint16([0, 65535]))
    return {name: packet.Packet(blocks, seed=5) for name, blocks in kinds.items()} | {
        "together": packet.Packet(together, seed=2**32 - 1)
    }


def columns_of(shape: tuple[int, ...], view: views.View | None, stream: int) -> Columns:
    """A block of every second column of a leaf of this shape."""
    stack, fan_in, fan_out = views.shape_of(shape, views.resolve(view, len(shape)))
    places = np.arange(0, stack * fan_out, 2)
    values = integers((fan_in, len(places)), stream)
    values[:1] |= 1  # a column of zeros is not sent
    return Columns(places, values, STEP, view)


VIEWS = {
    "attention": ((8, 2, 4), "in out out"),
    "convolution": ((4, 2, 3, 3), "out in in in"),
    "depthwise": ((3, 3, 6), "in in stack"),
    "layers": ((3, 6, 4), "stack in out"),
    "norms": ((3, 5), "stack out"),
}


def blocks_of(shape: tuple[int, ...], view: views.View | None, stream: int, rank: int = 2) -> dict[str, Block]:
    """A block of each kind that has a view, for a leaf of this shape."""
    stack, fan_in, fan_out = views.shape_of(shape, views.resolve(view, len(shape)))
    low = min(rank, fan_in, fan_out)
    left, right = integers((stack * fan_in, low), stream), integers((stack * fan_out, low), stream + 2)
    values = integers((stack * min(rank, fan_in), min(rank, fan_out)), stream + 4, 900)
    return {
        "coefficients": Coefficients(values, rank, STEP, view),
        "columns": columns_of(shape, view, stream + 8),
        "dense": Dense(integers(shape, stream + 6), STEP, view),
        "factors": Factors(left, right, STEP, view),
    }


def viewed_model() -> dict[str, np.ndarray]:
    """Kernels whose last axis is not their fan-out, three copies of each, and others."""
    base = {}
    for stream, (name, (shape, _)) in enumerate(VIEWS.items()):
        leaf = floats(shape, 100 + stream).astype(np.float16 if name == "layers" else np.float32)
        base |= {f"{name}/{kind}": leaf * (1 + i) for i, kind in enumerate(("coefficients", "dense", "factors"))}
    bfloat16 = (base["attention/dense"].view(np.uint32) >> 16).astype("<u2").view(dtypes.BFLOAT16)
    return base | {
        "attention/dense": bfloat16,
        "bias": floats((5,), 110).astype(np.float32),
        "scale": np.array(0.5),
        "sparse": floats((6, 4), 111).astype(np.float32),
    }


def viewed_packet() -> packet.Packet:
    """Three kinds that have a view with each of the views, blocks with the default one, and one without."""
    blocks = {
        f"{name}/{kind}": block
        for stream, (name, (shape, words)) in enumerate(VIEWS.items())
        for kind, block in blocks_of(shape, views.of_words(words), 200 + 10 * stream).items()
        if kind != "columns"
    }
    plain = {
        "bias": Dense(np.int32([1, 0, -2, 0, 3]), STEP),
        "scale": Dense(np.array(3, np.int32), STEP),
        "sparse": Sparse(np.array([2, 9]), np.int32([4, -1]), STEP),
    }
    return packet.Packet(blocks | plain, seed=7)


def viewed_columns() -> packet.Packet:
    """Columns with each of the views."""
    blocks: dict[str, Block] = {
        f"{name}/dense": columns_of(shape, views.of_words(words), 300 + 10 * stream)
        for stream, (name, (shape, words)) in enumerate(VIEWS.items())
    }
    return packet.Packet(blocks, seed=7)


def exact_model() -> dict[str, np.ndarray]:
    """Leaves for every way of coding an exact block, in pieces and not."""
    kernel = floats((40, 60), 120).astype(np.float32)
    large = floats((160, 160), 121).astype(np.float32)
    bfloat16 = (large.view(np.uint32) >> 16).astype("<u2").view(dtypes.BFLOAT16)
    return {
        "few": kernel,
        "few of bfloat16": (kernel.view(np.uint32) >> 16).astype("<u2").view(dtypes.BFLOAT16),
        "few of bytes": bits(300, 122, 8).astype(np.uint8),
        "few of double": kernel[:20].astype(np.float64),
        "many": kernel[:25].copy(),
        "many of bfloat16": bfloat16[:20].copy(),
        "many of float16": kernel[:25].astype(np.float16),
        "many of bytes": bits(4200, 123, 8).astype(np.uint8).reshape(70, 60),
        "in pieces": bfloat16,
        "whole in pieces": large[:40, :120].astype(np.float16),
        "wave": (floats((90,), 124) + 1j * floats((90,), 125)).astype(np.complex64),
    }


def exact_packets() -> dict[str, packet.Packet]:
    """Few weights of some leaves change, all of others; by little, or by many units in the last place."""
    base, blocks = exact_model(), {}
    for stream, (name, leaf) in enumerate(base.items()):
        patterns = dtypes.flat_bits(leaf)
        share = 12 if name == "in pieces" else 1 if name.startswith(("many", "whole")) else 40
        chosen = bits(leaf.size * (2 if leaf.dtype.kind == "c" else 1), 400 + stream, 16) % np.uint64(share) == 0
        if name in ("few", "few of double", "many"):
            moved = leaf + (floats(leaf.shape, 130 + stream) * 0.01 * (1 + np.arange(len(leaf)) % 5)[:, None])
            new = np.where(chosen.reshape(leaf.shape), moved.astype(leaf.dtype), leaf)
        else:
            shift = integers((len(patterns),), 500 + 2 * stream, 1) | 1
            new = dtypes.from_bits(np.where(chosen, patterns + shift.astype(patterns.dtype), patterns), leaf)
        blocks[name] = Exact(new)
    small = {name: block for name, block in blocks.items() if base[name].nbytes < 1 << 14 and "pieces" not in name}
    return {
        "small": packet.Packet(small),
        "pieces": packet.Packet({name: block for name, block in blocks.items() if name not in small}),
    }


def restructured() -> packet.Packet:
    """Leaves come, go, and take another shape; one comes as zeros, and one that stays changes."""
    base = model()
    added = {
        "conv": dtypes.Spec((3, 3, 2, 5), np.dtype("<f4")),
        "extra/kernel": dtypes.Spec((6, 7), np.dtype("<f4")),
        "extra/scale": dtypes.Spec((7,), dtypes.BFLOAT16),
        "extra/wave": dtypes.Spec((2,), np.dtype("<c8")),
    }
    blocks = {
        "conv": Dense(integers((3, 3, 2, 5), 600), STEP),
        "dense/bias": Exact(base["dense/bias"] * 2),
        "extra/kernel": Exact(floats((6, 7), 602).astype(np.float32)),
        "extra/scale": Raw(
            (floats((7,), 603).astype(np.float32).view(np.uint32) >> 16).astype("<u2").view(dtypes.BFLOAT16)
        ),
    }
    return packet.Packet(blocks, structure=Structure(added, ("double", "wave")))


def fitted_model() -> dict[str, np.ndarray]:
    """Matrices that are large enough to be fitted."""
    kernel = floats((64, 70), 140).astype(np.float32)
    return {
        "columns": kernel,
        "fitted": kernel * 2,
        "few": kernel[:, ::-1].copy(),
        "rows": -kernel,
        "turned": kernel.T.copy(),
    }


def fitted_packet() -> packet.Packet:
    """Integers of low rank, of nearly low rank, of rows that move less and less, of no structure, of some columns."""
    noise = integers((64, 70), 600, 1)
    low = sum(np.outer(integers((64,), 602 + i, 4), integers((70,), 612 + i, 2)) for i in range(0, 4, 2))
    rows = np.maximum(1, 12 - np.arange(64) // 4)[:, None]
    columns = (9 * low + noise)[:, :66] | (np.arange(64) == 0)[:, None]  # a column of zeros is not sent
    place = np.arange(64 * 70)
    crowded = np.flatnonzero((bits(64 * 70, 620, 3) == 0) & (place % 3 == 0) & (place % 700 < 210))
    return packet.Packet(
        {
            "columns": Columns(np.arange(2, 68), columns.astype(np.int32), STEP),
            "few": Dense(noise * (noise > 2), STEP),
            "fitted": Dense((low + noise).astype(np.int32), STEP),
            "rows": Sparse(crowded, integers(crowded.shape, 622, 1) | 1, STEP),
            "turned": Dense((noise * rows // 4).T.astype(np.int32), STEP, views.of_words("out in")),
        },
        seed=9,
    )


MAPS: dict[str, list[tuple[int, int, float]]] = {  # (length, rank, step) for a leaf (6, 4)
    "factors": [(20, 1, STEP)],
    "half": [(8, 1, STEP)],
    "scaled": [(4 + 3, 1, STEP)],
    "mixed": [(6, 2, STEP)],
    "grouped": [(6, 4, STEP)],
    "waves": [(5, 1, FINE)],
    "tied": [(3, 2, FINE)],
    "coefficients": [(4, 1, FINE), (20, 1, FINE)],
    "places": [(9, 1, STEP)],
    "levels": [(25, 1, STEP)],
    "rotated": [(33, 1, STEP)],
    "spread": [(7, 1, STEP)],
}


def mapped_model() -> dict[str, np.ndarray]:
    """A kernel for every map, some of them stacked, and one that is rotated in two blocks."""
    base = {}
    for stream, name in enumerate(MAPS):
        base[name] = floats((6, 4), 700 + stream).astype(np.float32)
        base[f"{name}/stack"] = floats((4, 2, 6), 720 + stream).astype(np.float16)
    return base | {"long": floats((5, 900), 740).astype(np.float32)}


def mapped_packets() -> dict[str, packet.Packet]:
    """Every map, coded and plain, of one matrix and of two whose axes lie otherwise; leaves that share a vector."""
    coded, stacked = {}, {}
    for stream, (name, cases) in enumerate(MAPS.items()):
        length, rank, step = cases[-1]
        coded[name] = Mapped(name, integers((length,), 750 + 2 * stream), step, rank)
        length, rank, step = cases[0]
        twice = length if name in ("mixed", "grouped", "tied", "places", "spread") else 2 * length
        twice = {"levels": 49, "rotated": 65}.get(name, twice)
        values = integers((twice,), 780 + 2 * stream) | 1
        stacked[f"{name}/stack"] = Mapped(name, values, step, rank, 8, views.of_words("out stack in"))
    coded["long"] = Mapped("spread", integers((40,), 810), STEP)
    shared = integers((8,), 812)
    tied: dict[str, Block] = {
        name: Mapped(name, shared, step, 2) for name, step in (("grouped", STEP), ("mixed", STEP), ("tied", FINE))
    }
    tied["places"] = Mapped("places", shared, STEP, width=32)
    tied["spread"] = Mapped("spread", integers((3,), 814), STEP)
    return {
        "maps": packet.Packet(coded, seed=9),
        "stacked maps": packet.Packet(stacked, seed=3),
        "shared maps": packet.Packet(tied, seed=4),
    }


def suites() -> list[tuple[dict[str, np.ndarray], list[packet.Packet]]]:
    """Each model with its packets."""
    return [
        (model(), list(packets().values())),
        (viewed_model(), [viewed_packet(), viewed_columns()]),
        (exact_model(), list(exact_packets().values())),
        (model(), [restructured()]),
        (fitted_model(), [fitted_packet()]),
        (mapped_model(), list(mapped_packets().values())),
    ]

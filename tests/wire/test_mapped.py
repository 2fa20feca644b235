"""Mapped blocks: every map against closed forms, its cost against FORMAT.md, and what is refused."""

import math
import tracemalloc

import numpy as np
import pytest

from tests.wire import samples, twin_maps
from updcomp.wire import apply, container, dtypes, errors, header, kind, packet, rotations, versions, views
from updcomp.wire.kinds.mapped import KIND, Mapped, sizes_of
from updcomp.wire.mapping import Site
from updcomp.wire.maps import MAPS

SHAPE = (6, 4)


def test_every_map_has_its_rows():
    """A new map fails here until `samples.MAPS` has a vector of it, and the tables below its cost."""
    assert MAPS.keys() == samples.MAPS.keys() == {name for name, *_ in COSTS}
    assert sorted(found.number for found in MAPS.values()) == list(range(len(MAPS)))


def base():
    return {"w": samples.floats(SHAPE, 900).astype(np.float64)}


def changed(name, values, rank=1, step=2.0**-20, seed=9):
    block = Mapped(name, np.asarray(values, np.int32), step, rank)
    old = base()
    return (apply.apply(packet.Packet({"w": block}, seed), old)["w"] - old["w"]) / step


@pytest.mark.parametrize("name", [name for name in MAPS if name not in ("levels", "rotated")])
def test_both_factors_are_linear_in_their_values(name):
    for length, rank, _ in samples.MAPS[name]:
        z = sizes_of(SHAPE, views.last_axis_out(2), length, rank)
        left = MAPS[name].left_length(z)
        one, other = samples.integers((length,), 910), samples.integers((length,), 912)
        one[:left] = other[:left]
        twice = 2 * one - other
        parts = [changed(name, values, rank, 2.0**-24) for values in (one, other, twice)]
        np.testing.assert_allclose(parts[2], 2 * parts[0] - parts[1], rtol=1e-9, atol=1e-6 * np.abs(parts[2]).max())


def test_a_rotation_keeps_lengths_and_has_an_inverse():
    for size in (5, 64, 5000):
        padded = rotations.padded(size)
        constants = (np.where(np.arange(padded) % 3 == 0, -1.0, 1.0), *rotations.hadamard(size))
        x = samples.floats((padded,), 920)
        there = rotations.back(x, constants, padded)
        block = len(constants[1]) * len(constants[2])
        assert block == min(padded, 4096)
        np.testing.assert_allclose(np.sum(there**2), block * np.sum(x**2))
        np.testing.assert_allclose(rotations.forth(there, constants), block * x)


def test_the_second_reader_rotates_as_it_is_specified():
    x = samples.integers((16,), 922).tolist()
    expected = [sum(-v if (i & j).bit_count() % 2 else v for i, v in enumerate(x)) for j in range(16)]
    assert twin_maps.walsh(x) == expected


@pytest.mark.parametrize("of", [1, 2, 7, 784, 65_537])
def test_cosines_are_cosines(of):
    turns = np.arange(of)
    for found, true in ((rotations.cosines, np.cos), (rotations.sines, np.sin)):
        assert np.abs(found(turns, of) - 2**14 * true(2 * np.pi * turns / of)).max() < 1
    assert [int(rotations.cosines(np.array([t]), of)[0]) for t in turns[:40]] == [
        twin_maps.cosine((t * 2**20 + of // 2) // of) for t in turns[:40].tolist()
    ]


def test_a_wave_is_one_spectral_coefficient():
    spectrum = np.abs(np.fft.fft2(changed("waves", [1], step=2.0**-40) * 2.0**-28))
    found = np.sort(spectrum.ravel())[::-1]
    assert found[0] > 10 * found[2]
    assert found[0] == pytest.approx(SHAPE[0] * SHAPE[1] / 2, rel=0.01) or found[0] == pytest.approx(24, rel=0.01)


def test_groups_are_of_equal_size():
    z = sizes_of(SHAPE, views.last_axis_out(2), 6, 4)
    constants = MAPS["grouped"].constants(Site(base()["w"], views.last_axis_out(2), 3, 0, z))
    for part, rows in zip(constants, SHAPE, strict=True):
        counts = np.bincount(part, minlength=3)
        assert counts.sum() == rows * 4
        assert counts.max() - counts.min() <= 1


def test_waves_of_everything_reach_everything():
    values = np.eye(24, dtype=np.int32)
    images = np.stack([changed("waves", row, step=2.0**-40).ravel() for row in values])
    assert np.linalg.matrix_rank(images, tol=1e-3 * np.abs(images).max()) >= 12  # half of them are mirrored ones


def test_leaves_that_share_a_vector_send_it_once():
    shared, other = samples.integers((1000,), 930), samples.integers((1000,), 932)
    old = {name: samples.floats(SHAPE, 934).astype(np.float32) for name in "abc"}

    def size(*vectors):
        blocks = {name: Mapped("grouped", v, samples.STEP, 2) for name, v in zip("abc", vectors, strict=True)}
        sent = packet.Packet(blocks, 1)
        update = container.encode(sent, old)
        assert all(np.array_equal(container.decode(update, old).blocks[k].values, v.values) for k, v in blocks.items())
        return len(update)

    once, twice = size(shared, shared.copy(), shared), size(shared, other, other)
    assert once < size(shared, other, shared) / 2.4
    assert once < twice < size(shared, other, shared)


def test_any_layout_in_memory_gives_the_same_bits():
    sent = samples.mapped_packets()["stacked maps"]
    plain, odd = samples.mapped_model(), {}
    for name, leaf in plain.items():
        wide = np.zeros((*leaf.shape[:-1], 2 * leaf.shape[-1]), leaf.dtype)
        wide[..., ::2] = leaf
        odd[name] = wide[..., ::2]
    new, other = apply.apply(sent, plain), apply.apply(sent, odd)
    assert all(new[name].tobytes() == np.ascontiguousarray(other[name]).tobytes() for name in plain)


BAD = [
    ({"map": "other"}, "map: expected one of factors"),
    ({"values": np.zeros(25, np.int32)}, "values: expected as many as 'places'"),
    ({"values": np.zeros((2, 2), np.int32)}, "axes of values"),
    ({"rank": 2}, "rank: expected 1, found 2"),
    ({"map": "mixed", "rank": 3}, "rank: expected a power of two"),
    ({"map": "mixed", "values": np.zeros(3, np.int32)}, "values: expected as many as 'mixed'"),
    ({"width": 33}, "width: expected 0 to 32 bits"),
    ({"width": 2}, "width: expected values that fit 2 bits"),
    ({"map": "coefficients", "values": np.zeros(5, np.int32)}, "values: expected as many as 'coefficients'"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_what_does_not_fit_is_refused(fields, message):
    block = Mapped("places", np.int32([3, -2, 5]), samples.STEP)._replace(**fields)
    with pytest.raises(errors.LeafError, match=message):
        container.encode(packet.Packet({"w": block}), base())


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3 << 9 | 12, "map: expected 0 to 11"),
        (3 << 9 | 1 << 4 | 8, "rank: expected none for 'places'"),
        (25 << 9 | 8, "values: expected as many as 'places'"),
        (1 << 40, "expected at most"),
        (3 << 9 | 11 << 4 | 3, "map: expected 0 to 11 and a rank"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(size, message):
    old = base()
    update = container.encode(packet.Packet({"w": Mapped("places", np.int32([3, -2, 5]), samples.STEP)}), old)
    parts = header.parse(update)
    damaged = header.pack(parts._replace(heads=[parts.heads[0]._replace(size=size)]))
    with pytest.raises(errors.CorruptUpdateError, match=message):
        container.apply_update(damaged, old)


def test_a_vector_that_was_never_sent_is_refused():
    old = {name: np.zeros(SHAPE, np.float32) for name in "ab"}
    block = Mapped("places", np.int32([3, -2, 5]), samples.STEP)
    parts = header.parse(container.encode(packet.Packet({"a": block, "b": block}), old))
    alone = header.pack(parts._replace(heads=parts.heads[1:], coded=b"", lanes=1))
    with pytest.raises(errors.Error):
        container.apply_update(alone, old)


def test_sums_beyond_2_to_the_53_are_refused():
    values = np.full(20, 2**31 - 1, np.int32)
    with pytest.raises(errors.LeafError, match="expected sums below 2"):
        changed("factors", values)


# (map, its length, rank, (d, x, q)) of two matrices of 24 times 10, by FORMAT.md's tables alone; P = 512.
S, F, G, N, P = 2, 24, 10, 480, 512
COSTS = [
    ("factors", S * 3 * (F + G), 1, (0, 0, 3)),
    ("half", S * G * 3, 1, (S * F * 3, 0, 3)),
    ("scaled", S * (5 + G), 1, (S * (F + G) * 5, 0, 5)),
    ("mixed", 6, 4, (3 * S * (F + G) * 4, 3 * S * (F + G) * 4, 4)),
    ("grouped", 6, 4, (4 * S * (F + G) * 4, 0, 4)),
    ("waves", S * 7, 1, (0, 0, 14)),
    ("tied", 9, 16, (9 * S * 16 * 10, 9 * S * 16 * 10 + S * F * 16 * 10, 10)),
    ("coefficients", S * 16 * 10, 1, (0, S * F * 16 * 10, 10)),
    ("places", 40, 1, (N, 0, 0)),
    ("levels", N + 1, 1, (0, 0, 0)),
    ("rotated", P + 1, 1, (P, 128 * P, 0)),
    ("spread", 40, 1, (2 * P, 256 * P // 2, 0)),
]


@pytest.mark.parametrize("words", ["stack in out", "stack out in"])
@pytest.mark.parametrize(("name", "length", "rank", "row"), COSTS, ids=[name for name, *_ in COSTS])
@pytest.mark.parametrize("plain", [0, 1])
def test_costs_are_those_of_the_specification(name, length, rank, row, words, plain):
    shape = (S, F, G) if words.endswith("in out") else (S, G, F)
    size = length << 9 | plain << 8 | (rank.bit_length() - 1) << 4 | MAPS[name].number
    view = views.number(views.of_words(words), 3)
    spec = dtypes.Spec(shape, np.dtype("<f4"))
    d, x, q = row
    segment = (0, 0)
    if not plain:
        chunks = [64 * 2**i for i in range(20)]
        chunks = [64, *chunks]
        sizes = []
        while sum(sizes) < length:
            sizes.append(min(max(64, sum(sizes)), length - sum(sizes)))
        operations = 2**17 + 2**13 + 24 * length + sum(2**13 * math.ceil(t / 8) + min(96 * t, 2**14) for t in sizes)
        segment = (operations, 56 * max(sizes))
    parts, w = [segment], 4 * N
    h = N + S * (F + G) * q if name == "waves" else 0
    operations, working = 2**17 + 24 * (d + h + length) + x // 8, 40 * (d + length)
    if q:
        operations += 12 * N + 256 * S + N * q // 8
        parts.append((0, 2 * w))  # both views are copied
        working += 32 * S * (F + G) * q
    else:
        operations += 12 * N
        working += 40 * max(N, length)
    if name in ("tied", "coefficients"):
        r = 16
        basis = S * (6 * r * F * G + 6 * r * r * (F + G)) // 8 + S * (6 * r * 2**15 + 96 * r * (F + G)) + 16 * N
        parts.append((basis, 8 * N))
    expected = (operations + sum(ops for ops, _ in parts), working + max(most for _, most in parts))
    assert KIND.cost(kind.Head(KIND, 0, 1.0, size, view), spec, 8) == expected


@pytest.mark.parametrize("name", MAPS)
def test_working_memory_is_what_was_said(name):
    shape = (256, 256)
    n, z = 1 << 16, sizes_of(shape, views.last_axis_out(2), 0)
    free = {"levels": n + 1, "rotated": n + 1, "places": n, "spread": n, "tied": 64, "mixed": 64, "grouped": 4096}
    length = free.get(name, {"scaled": 16 + 256, "waves": 64, "coefficients": 1024}.get(name, 16 * z.rows))
    length = 16 * 256 if name == "half" else length
    ranked = MAPS[name].is_ranked
    values = np.where(samples.bits(length, 940, 1) > 0, 1, -1).astype(np.int32)
    old = {"w": samples.floats(shape, 941).astype(np.float16)}
    block = Mapped(name, values, samples.MAPS[name][0][2], 16 if ranked else 1)
    update = container.encode(packet.Packet({"w": block}), old, budget=math.inf)
    (said,) = samples.costs_of(update, old)
    tracemalloc.start()
    try:
        new = container.apply_update(update, old, budget=math.inf)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - new["w"].nbytes < said.working_bytes + (8 << 20)


def test_versions_before_4_do_not_know_it():
    assert [number for number, version in versions.VERSIONS.items() if KIND.number in version.kinds] == [4]

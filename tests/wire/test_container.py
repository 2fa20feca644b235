import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import fuzz, samples
from updcomp.wire import (
    apply,
    basis,
    container,
    dtypes,
    errors,
    fingerprint,
    header,
    inspection,
    kind,
    packet,
    streams,
    versions,
    views,
)
from updcomp.wire.kinds import factors
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.raw import Raw
from updcomp.wire.kinds.sparse import Sparse


def same_field(x, y):
    if isinstance(x, np.ndarray):
        return (x.dtype, x.shape) == (y.dtype, y.shape) and x.tobytes() == y.tobytes()
    return x == y


def same(a, b):
    """Whether two blocks are equal field by field, dtypes included."""
    return type(a) is type(b) and all(same_field(x, y) for x, y in zip(a, b, strict=True))


def raw_instead(block):
    return Raw(block.new) if isinstance(block, Exact) else block


@pytest.mark.parametrize("kind", samples.packets())
def test_a_packet_returns_and_the_device_gets_the_servers_model(kind):
    base, sent = samples.model(), samples.packets()[kind]
    update = container.encode(sent, base)
    received = container.decode(update, base)
    assert received.seed == sent.seed
    assert received.blocks.keys() == sent.blocks.keys()
    for name, block in received.blocks.items():
        assert same(block, sent.blocks[name]) or same(block, raw_instead(sent.blocks[name]))
    new = container.apply_update(update, base)
    assert fingerprint.of(new) == fingerprint.of(apply.apply(sent, base))
    assert container.encode(received, base) == update


def test_a_packet_with_views_returns():
    base, sent = samples.viewed_model(), samples.viewed_packet()
    update = container.encode(sent, base)
    received = container.decode(update, base)
    assert received.blocks.keys() == sent.blocks.keys()
    for name, block in received.blocks.items():
        assert same(block, sent.blocks[name])
    assert fingerprint.of(container.apply_update(update, base)) == fingerprint.of(apply.apply(sent, base))
    assert container.encode(received, base) == update


@settings(derandomize=True)
@given(st.data(), st.lists(st.integers(1, 5), max_size=4), st.integers(1, 5))
def test_any_block_with_any_view_returns(data, lengths, rank):
    shape = tuple(lengths)
    words = data.draw(st.lists(st.sampled_from(["stack", "in", "out"]), min_size=len(shape), max_size=len(shape)))
    if words and set(words) == {"stack"}:
        words[0] = "out"
    view = views.of_words(" ".join(words))
    default = view == views.last_axis_out(len(shape))
    rank = min(rank, basis.max_rank(shape, view))
    for name, block in samples.blocks_of(shape, view, data.draw(st.integers(0, 99)), rank).items():
        base = {"w": samples.floats(shape, 1).astype(np.float32)}
        update = container.encode(packet.Packet({"w": block}), base)
        new = container.apply_update(update, base)
        assert fingerprint.of(new) == fingerprint.of(apply.apply(packet.Packet({"w": block}), base))
        for received in container.decode(update, base).blocks.values():
            assert same(received, block._replace(view=None) if default else block)
            assert inspection.inspect(update, base)["blocks"][0]["kind"] == name
            assert header.parse(update).has_views != default


def test_the_default_view_costs_nothing():
    base = samples.model()
    for sent in samples.packets().values():
        said = {
            name: block._replace(view=views.last_axis_out(base[name].ndim)) if hasattr(block, "view") else block
            for name, block in sent.blocks.items()
        }
        update = container.encode(sent._replace(blocks=said), base)
        assert update == container.encode(sent, base)
        assert not header.parse(update).has_views


def test_a_view_that_fits_the_kernel_codes_it_smaller():
    scales = 1 << samples.bits(64, 95, 3).astype(np.int32).reshape(8, 8)  # per column of fan-out
    values = samples.integers((64, 8, 8), 96) * scales
    base = {"w": np.zeros((64, 8, 8), np.float32)}
    sizes = [
        len(container.encode(packet.Packet({"w": Dense(values, samples.STEP, view)}), base))
        for view in (None, views.of_words("in out out"))
    ]
    assert sizes[1] < 0.95 * sizes[0]


def with_number(shape, number):
    """An update and its base, whose second dense block says this number of a view."""
    base = {"v": np.zeros((1, 1), np.float32), "w": np.zeros(shape, np.float32)}
    blocks = {name: Dense(np.full(leaf.shape, 100, np.int32), 1.0) for name, leaf in base.items()}
    parts = header.parse(container.encode(packet.Packet(blocks), base))
    (first, second) = parts.heads
    return header.pack(parts._replace(heads=[first._replace(view=2), second._replace(view=number)])), base


@pytest.mark.parametrize(("shape", "number"), [((2, 3, 4), 22), ((2, 3, 4), 26), ((5,), 1), ((5,), 2), ((), 0)])
def test_every_view_is_taken_the_default_one_too_beside_others(shape, number):
    update, base = with_number(shape, number)
    assert (container.apply_update(update, base)["w"] == 100).all()
    view = container.decode(update, base).blocks["w"].view
    assert (view or views.last_axis_out(len(shape))) == views.of_number(number, len(shape))
    assert inspection.inspect(update)["blocks"][1]["view"] == number
    assert inspection.inspect(update, base)["blocks"][1]["axes"] == views.words_of(
        views.of_number(number, len(shape)), len(shape)
    )


@pytest.mark.parametrize(
    ("shape", "number"), [((2, 3, 4), 0), ((2, 3, 4), 27), ((2, 3, 4), 3**60), ((5,), 0), ((5,), 3), ((), 1)]
)
def test_numbers_of_no_view_are_refused(shape, number):
    update, base = with_number(shape, number)
    for read in (container.decode, container.apply_update, inspection.inspect):
        with pytest.raises(errors.CorruptUpdateError, match=f"leaf 'w': view: expected .* found {number}"):
            read(update, base)


def test_an_empty_stack_is_read():
    """No writer writes it, since it changes nothing."""
    base = {"w": np.zeros((0, 3, 3), np.float32)}
    same_print, writer = fingerprint.of(base), streams.Writer()
    heads = [kind.Head(factors.KIND, 0, 1.0, 1, views.number(views.of_words("stack in out"), 3))]
    update = header.pack(header.Parts(versions.NEWEST, same_print, same_print, 0, heads, *writer.finish()))
    assert fingerprint.of(container.apply_update(update, base)) == same_print


def test_an_endless_view_is_refused():
    update, base = with_number((5,), 2**105)
    with pytest.raises(errors.CorruptUpdateError, match="at most 15 bytes"):
        container.apply_update(update, base)


@settings(derandomize=True)
@given(st.data())
def test_any_sparse_block_returns(data):
    size = data.draw(st.integers(1, 300))
    places = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
    magnitudes = st.integers(1, 2**31 - 1)
    values = np.array([data.draw(magnitudes) for _ in places], np.int32)
    base = {"w": np.zeros(size, np.float64)}
    sent = packet.Packet({"w": Sparse(places, values, 1.0)})
    received = container.decode(container.encode(sent, base), base)
    assert same(received.blocks["w"], sent.blocks["w"])


def test_blocks_and_sparse_entries_that_change_nothing_are_left_out():
    base = samples.model()
    kernel = base["dense/kernel"]
    sent = packet.Packet(
        {
            "dense/kernel": Sparse(np.array([3, 5, 8]), np.int32([1, 0, 2]), samples.STEP),
            "dense/bias": Dense(np.zeros(10, np.int32), samples.STEP),
            "conv": Exact(base["conv"]),
            "double": Raw(base["double"].copy()),
            "special": Dense(np.int32([1, 1, 1, 0, 0, 0, 0, 0]), samples.STEP),
            "empty": Dense(np.zeros((0, 3), np.int32), samples.STEP),
        }
    )
    received = container.decode(container.encode(sent, base), base).blocks
    assert received.keys() == {"dense/kernel"}
    assert received["dense/kernel"].positions.tolist() == [3, 8]
    assert fingerprint.of(container.apply_update(container.encode(packet.Packet({}), base), base)) == fingerprint.of(
        base
    )
    assert len(kernel) == 24


def test_an_exact_block_that_codes_larger_than_its_bits_is_sent_raw():
    rng = np.random.default_rng(0)
    base = {"w": rng.integers(0, 2**32, 400).astype(np.uint32)}
    update = container.encode(packet.Packet({"w": Exact(base["w"][::-1].copy())}), base)
    assert inspection.inspect(update)["kinds"] == {"raw": 1}
    assert len(update) <= 1600 + 64


def test_the_fixed_cost_is_at_most_64_bytes_and_4_per_sent_leaf():
    for leaves, step in ((1, 1), (40, 1), (40, 13), (1, 300)):
        base = {f"{i:05d}": np.zeros(4, np.float32) for i in range(leaves * step)}
        sent = {name: Dense(np.int32([1, 0, 0, 2]), samples.STEP) for name in sorted(base)[step - 1 :: step]}
        update = container.encode(packet.Packet(sent, seed=2**32 - 1), base)
        assert inspection.inspect(update)["bytes_by_part"]["header"] <= 64 + 4 * leaves


def test_strided_big_endian_and_ml_dtypes_models_are_the_same_model():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    base = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": samples.model()["scale"]}
    other = {"a": np.asfortranarray(base["a"]).astype(">f4"), "b": base["b"].view(ml_dtypes.bfloat16)}
    blocks = {"a": Dense(np.ones((3, 4), np.int32), 0.5), "b": Dense(np.ones(6, np.int32), 0.5)}
    update = container.encode(packet.Packet(blocks), other)
    assert update == container.encode(packet.Packet(blocks), base)
    assert fingerprint.of(container.apply_update(update, other)) == fingerprint.of(container.apply_update(update, base))


def test_inspect_needs_no_model_and_its_parts_add_up():
    update = container.encode(samples.packets()["together"], samples.model())
    found = inspection.inspect(update)
    assert found["format_version"] == versions.NEWEST.number
    assert found["bytes"] == len(update) == sum(found["bytes_by_part"].values())
    assert found["base"] == fingerprint.of(samples.model()).hex()
    assert found["result"] == fingerprint.of(apply.apply(samples.packets()["together"], samples.model())).hex()
    assert sum(found["kinds"].values()) == len(found["blocks"]) == len(samples.packets()["together"].blocks)
    assert found["seed"] == 2**32 - 1


@pytest.mark.parametrize("base", [samples.model(), samples.viewed_model()], ids=["default views", "views"])
def test_inspect_with_the_model_names_the_leaves(base):
    sent = samples.packets()["together"] if "conv" in base else samples.viewed_packet()
    update = container.encode(sent, base)
    told = json.loads(json.dumps(inspection.inspect(update, base)))
    plain = inspection.inspect(update)
    assert {name: told[name] for name in plain} | {"blocks": plain["blocks"]} == plain
    for block, alone in zip(told["blocks"], plain["blocks"], strict=True):
        leaf = dtypes.hold(base[block["leaf"]])
        assert (tuple(block["shape"]), block["dtype"]) == (leaf.shape, dtypes.name(leaf.dtype))
        assert sorted(base)[block["leaf_index"]] == block["leaf"]
        assert ("axes" in block) == ("view" in alone)
    if "conv" not in base:
        axes = {block["leaf"]: block.get("axes") for block in told["blocks"]}
        assert axes["convolution/factors"] == "out in in in"
        assert (axes["bias"], axes["scale"], axes["sparse"]) == ("out", "", None)
    with pytest.raises(errors.WrongBaseError, match="base model"):
        inspection.inspect(update, {})


def changed(base, **leaves):
    return {**base, **leaves}


def one_bit(leaf):
    flipped = leaf.copy()
    flipped.reshape(-1).view(np.uint8)[-1] ^= 1
    return flipped


@pytest.mark.parametrize(
    "wrong",
    [
        lambda base: changed(base, conv=one_bit(base["conv"])),
        lambda base: {("renamed" if name == "conv" else name): leaf for name, leaf in base.items()},
        lambda base: changed(base, conv=base["conv"].reshape(18, 4)),
        lambda base: changed(base, conv=base["conv"].view(np.uint16)),
        lambda base: {name: leaf for name, leaf in base.items() if name != "conv"},
        lambda base: {},
    ],
)
def test_a_wrong_base_is_refused(wrong):
    base = samples.model()
    update = container.encode(samples.packets()["dense"], base)
    for read in (container.decode, container.apply_update):
        with pytest.raises(errors.WrongBaseError, match=r"expected .* found .*apply the update to"):
            read(update, wrong(base))


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda u: b"", "not an update"),
        (lambda u: b"PK" + u, "not an update"),
        (lambda u: u[:4], "truncated"),
        (lambda u: u[:-1], "checksum.*truncated"),
        (lambda u: u + b"\0", "checksum"),
        (
            lambda u: fuzz.with_checksum(u[:4] + b"\x63" + u[5:-4]),
            f"format version: expected 1 to {versions.NEWEST.number}, found 99; install a newer",
        ),
        (
            lambda u: fuzz.with_checksum(u[:5] + b"\x80" + u[6:-4]),
            f"flags: expected none beyond {versions.NEWEST.flags}, found",
        ),
        (lambda u: fuzz.with_checksum(u[:38] + b"\x80\0" + u[39:-4]), "leading zeros"),
        (lambda u: fuzz.with_checksum(u[:38] + b"\xff\xff\xff\xff\x1f" + u[39:-4]), "seed"),
        (lambda u: fuzz.with_checksum(u[:39] + b"\xff\xff\xff\xff\x0f" + u[40:-4]), "blocks"),
        (
            lambda u: fuzz.with_checksum(u[:40] + b"\xf0" + u[41:-4]),
            f"block kind: expected 0 to {max(versions.NEWEST.kinds)}, found 15",
        ),
        (lambda u: fuzz.with_checksum(u[:40] + b"\x8f\xff\xff\xff\xff\x0f" + u[41:-4]), "leaf index"),
        (lambda u: fuzz.with_checksum(u[:22] + bytes(16) + u[38:-4]), "result: expected the model 0000"),
    ],
)
def test_damage_is_named(mutate, message):
    base = samples.model()
    update = container.encode(samples.packets()["coefficients"], base)
    with pytest.raises(errors.CorruptUpdateError, match=message):
        container.apply_update(mutate(update), base)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(errors.Error, match="seed"):
        container.encode(packet.Packet({}, seed), {})


def test_a_gap_of_many_leaves_takes_a_longer_header():
    base = {f"{i:04d}": np.zeros(1, np.float32) for i in range(1000)}
    sent = packet.Packet({name: Raw(np.ones(1, np.float32)) for name in ("0014", "0030", "0999")})
    update = container.encode(sent, base)
    assert [block["leaf_index"] for block in inspection.inspect(update)["blocks"]] == [14, 30, 999]
    assert container.decode(update, base).blocks.keys() == sent.blocks.keys()
    assert header.parse(update).raw == np.ones(3, np.float32).tobytes()

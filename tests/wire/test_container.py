import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire import fuzz, samples
from updcomp.wire import apply, container, errors, fingerprint, header, packet


def same(a, b):
    """Whether two blocks are equal field by field, dtypes included."""
    return type(a) is type(b) and all(
        np.asarray(x).dtype == np.asarray(y).dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(a, b, strict=True)
    )


def raw_instead(block):
    return packet.Raw(block.new) if isinstance(block, packet.Exact) else block


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


@given(st.data())
def test_any_sparse_block_returns(data):
    size = data.draw(st.integers(1, 300))
    places = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
    magnitudes = st.integers(1, 2**31 - 1)
    values = np.array([data.draw(magnitudes) for _ in places], np.int32)
    base = {"w": np.zeros(size, np.float64)}
    sent = packet.Packet({"w": packet.Sparse(places, values, 1.0)})
    received = container.decode(container.encode(sent, base), base)
    assert same(received.blocks["w"], sent.blocks["w"])


def test_blocks_and_sparse_entries_that_change_nothing_are_left_out():
    base = samples.model()
    kernel = base["dense/kernel"]
    sent = packet.Packet(
        {
            "dense/kernel": packet.Sparse(np.array([3, 5, 8]), np.int32([1, 0, 2]), samples.STEP),
            "dense/bias": packet.Dense(np.zeros(10, np.int32), samples.STEP),
            "conv": packet.Exact(base["conv"]),
            "double": packet.Raw(base["double"].copy()),
            "special": packet.Dense(np.int32([1, 1, 1, 0, 0, 0, 0, 0]), samples.STEP),
            "empty": packet.Dense(np.zeros((0, 3), np.int32), samples.STEP),
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
    update = container.encode(packet.Packet({"w": packet.Exact(base["w"][::-1].copy())}), base)
    assert container.inspect(update)["kinds"] == {"raw": 1}
    assert len(update) <= 1600 + 64


def test_the_fixed_cost_is_at_most_64_bytes_and_4_per_sent_leaf():
    for leaves, step in ((1, 1), (40, 1), (40, 13), (1, 300)):
        base = {f"{i:05d}": np.zeros(4, np.float32) for i in range(leaves * step)}
        sent = {name: packet.Dense(np.int32([1, 0, 0, 2]), samples.STEP) for name in sorted(base)[step - 1 :: step]}
        update = container.encode(packet.Packet(sent, seed=2**32 - 1), base)
        assert container.inspect(update)["bytes_by_part"]["header"] <= 64 + 4 * leaves


def test_strided_big_endian_and_ml_dtypes_models_are_the_same_model():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    base = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": samples.model()["scale"]}
    other = {"a": np.asfortranarray(base["a"]).astype(">f4"), "b": base["b"].view(ml_dtypes.bfloat16)}
    blocks = {"a": packet.Dense(np.ones((3, 4), np.int32), 0.5), "b": packet.Dense(np.ones(6, np.int32), 0.5)}
    update = container.encode(packet.Packet(blocks), other)
    assert update == container.encode(packet.Packet(blocks), base)
    assert fingerprint.of(container.apply_update(update, other)) == fingerprint.of(container.apply_update(update, base))


def test_inspect_needs_no_model_and_its_parts_add_up():
    update = container.encode(samples.packets()["together"], samples.model())
    found = container.inspect(update)
    assert found["format_version"] == 1
    assert found["bytes"] == len(update) == sum(found["bytes_by_part"].values())
    assert found["base"] == fingerprint.of(samples.model()).hex()
    assert found["result"] == fingerprint.of(apply.apply(samples.packets()["together"], samples.model())).hex()
    assert sum(found["kinds"].values()) == len(found["blocks"]) == len(samples.packets()["together"].blocks)
    assert found["seed"] == 2**32 - 1


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
        (lambda u: fuzz.with_checksum(u[:4] + b"\2" + u[5:-4]), "format version: expected 1, found 2; install a newer"),
        (lambda u: fuzz.with_checksum(u[:5] + b"\1" + u[6:-4]), "flags"),
        (lambda u: fuzz.with_checksum(u[:38] + b"\xff\xff\xff\xff\x1f" + u[39:-4]), "seed"),
        (lambda u: fuzz.with_checksum(u[:39] + b"\xff\xff\xff\xff\x0f" + u[40:-4]), "blocks"),
        (lambda u: fuzz.with_checksum(u[:40] + b"\xf0" + u[41:-4]), "block kind: expected 0 to 8, found 15"),
        (lambda u: fuzz.with_checksum(u[:40] + b"\x3f\xff\xff\xff\xff\x0f" + u[41:-4]), "leaf index"),
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
    sent = packet.Packet({name: packet.Raw(np.ones(1, np.float32)) for name in ("0014", "0030", "0999")})
    update = container.encode(sent, base)
    assert [block["leaf_index"] for block in container.inspect(update)["blocks"]] == [14, 30, 999]
    assert container.decode(update, base).blocks.keys() == sent.blocks.keys()
    assert header.parse(update).raw == np.ones(3, np.float32).tobytes()

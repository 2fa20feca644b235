import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.wire import samples, twin, twin_basis
from updcomp.edge import files
from updcomp.wire import (
    basis,
    container,
    dtypes,
    fingerprint,
    hashing,
    header,
    inspection,
    models,
    positions,
    versions,
    views,
)
from updcomp.wire.kinds.dense import Dense

FOLDER = Path(__file__).parent / "vectors"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
BASE = files.read_model(FOLDER / "base.safetensors").model


VIEWED = json.loads((FOLDER / "views.json").read_text())
VERSION_2 = json.loads((FOLDER / "version2.json").read_text())
VERSION_3 = json.loads((FOLDER / "version3.json").read_text())
VERSION_4 = json.loads((FOLDER / "version4.json").read_text())
BASES = {
    "model": samples.model,
    "viewed": samples.viewed_model,
    "exact": samples.exact_model,
    "changing": samples.model,
    "fitted": samples.fitted_model,
    "mapped": samples.mapped_model,
}
VIEWED_BASE = files.read_model(FOLDER / "views.safetensors").model


def plain(leaf):
    held = dtypes.hold(leaf)
    bits = dtypes.flat_bits(held)
    return twin.Leaf(dtypes.name(held.dtype), held.shape, bits.itemsize, bits.tolist())


def test_the_vectors_are_of_the_samples_and_of_every_kind():
    assert fingerprint.of(BASE).hex() == EXPECTED["fingerprint"] == fingerprint.of(samples.model()).hex()
    assert EXPECTED["updates"].keys() <= samples.packets().keys()


@pytest.mark.parametrize("kind", EXPECTED["updates"])
def test_every_vector_gives_the_expected_bits(kind):
    update = (FOLDER / f"{kind}.updc").read_bytes()
    assert inspection.inspect(update) == EXPECTED["updates"][kind]["inspect"]
    new = container.apply_update(update, BASE)
    changed = {name: dtypes.flat_bits(leaf).tobytes().hex() for name, leaf in new.items() if leaf is not BASE[name]}
    assert changed == EXPECTED["updates"][kind]["new_leaves"]


@pytest.mark.parametrize("kind", EXPECTED["updates"])
def test_a_reader_written_from_the_specification_alone_gives_the_same_bits(kind):
    new = twin.apply((FOLDER / f"{kind}.updc").read_bytes(), {name: plain(leaf) for name, leaf in BASE.items()})
    for name, bits in EXPECTED["updates"][kind]["new_leaves"].items():
        assert new[name].data.hex() == bits


def test_the_vectors_of_version_1_stay_byte_for_byte_as_they_are():
    names = ["base.safetensors", "expected.json", *(f"{kind}.updc" for kind in sorted(EXPECTED["updates"]))]
    digest = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in names)).hexdigest()
    assert digest == "833ee29b72851436e80a55d45c151b5da256a7024ec0118861938e54b36d13e9"
    assert {header.parse((FOLDER / name).read_bytes()).version.number for name in names[2:]} == {1}


def test_the_vectors_of_version_2_stay_byte_for_byte_as_they_are():
    names = ["views.safetensors", "views.json", "views.updc", "version2.json"]
    digest = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in names)).hexdigest()
    assert digest == "38fe163503ff4ee4a4ec0ee94e673a08757233ae557ad64f7207c4a1b686077b"


def test_the_vector_of_version_2_gives_the_expected_bits():
    update = (FOLDER / "views.updc").read_bytes()
    assert header.parse(update).version.number == 2
    assert fingerprint.of(VIEWED_BASE).hex() == VIEWED["fingerprint"] == fingerprint.of(samples.viewed_model()).hex()
    assert inspection.inspect(update) == VIEWED["inspect"]
    new = container.apply_update(update, VIEWED_BASE)
    assert VIEWED["new_leaves"] == {
        name: dtypes.flat_bits(leaf).tobytes().hex() for name, leaf in new.items() if leaf is not VIEWED_BASE[name]
    }
    twins = twin.apply(update, {name: plain(leaf) for name, leaf in VIEWED_BASE.items()})
    assert VIEWED["new_leaves"] == {name: twins[name].data.hex() for name in VIEWED["new_leaves"]}
    index = sorted(VIEWED_BASE).index("layers/coefficients")
    view = views.of_words("stack in out")
    left, right = basis.of(VIEWED_BASE["layers/coefficients"], 2, seed=7, index=index, view=view)
    assert {"left": left.tolist(), "right": right.tolist()} == VIEWED["basis"]


def test_columns_of_every_view_give_the_expected_bits():
    update, expected = bytes.fromhex(VIEWED["columns"]["update"]), VIEWED["columns"]["new_leaves"]
    found = container.apply_update(update, VIEWED_BASE)
    assert expected == {
        name: dtypes.flat_bits(leaf).tobytes().hex() for name, leaf in found.items() if leaf is not VIEWED_BASE[name]
    }
    twins = twin.apply(update, {name: plain(leaf) for name, leaf in VIEWED_BASE.items()})
    assert expected == {name: twins[name].data.hex() for name in expected}


@pytest.mark.parametrize("kind", VERSION_2["updates"])
def test_every_vector_of_version_2_gives_the_expected_bits_and_texts(kind):
    update, expected = bytes.fromhex(VERSION_2["updates"][kind]["update"]), VERSION_2["updates"][kind]["new_leaves"]
    assert header.parse(update).version.number == 2
    old, new = VERSION_2["metadata"]
    assert container.new_metadata(update, old) == twin.metadata(update, old) == new
    found = container.apply_update(update, BASE)
    assert expected == {
        name: dtypes.flat_bits(leaf).tobytes().hex() for name, leaf in found.items() if leaf is not BASE[name]
    }
    twins = twin.apply(update, {name: plain(leaf) for name, leaf in BASE.items()})
    assert expected == {name: twins[name].data.hex() for name in expected}


def test_the_vectors_of_version_3_stay_byte_for_byte_as_they_are():
    digest = hashlib.sha256((FOLDER / "version3.json").read_bytes()).hexdigest()
    assert digest == "09baf523d3dbb6f35fd972951aa9a62d8c49774e6ac8d9ebcb3590535f931af0"


@pytest.mark.parametrize("name", VERSION_3["updates"])
def test_every_vector_of_version_3_gives_the_expected_bits_and_texts(name):
    check_vector(3, VERSION_3, name)


@pytest.mark.parametrize("name", VERSION_4["updates"])
def test_every_vector_of_version_4_gives_the_expected_bits_and_texts(name):
    check_vector(4, VERSION_4, name)


def check_vector(version, vectors, name):
    told = vectors["updates"][name]
    base, update = BASES[name.split("/")[0]](), bytes.fromhex(told["update"])
    assert header.parse(update).version.number == version
    assert json.loads(json.dumps(inspection.inspect(update))) == told["inspect"]
    found = container.apply_update(update, base)
    twins = twin.apply(update, {name: plain(leaf) for name, leaf in base.items()})
    for leaf, expected in told["new"].items():
        for data in (dtypes.flat_bits(found[leaf]).tobytes(), twins[leaf].data):
            assert expected in (data.hex(), hashlib.sha256(data).hexdigest())
    if name.startswith("model/"):
        old, new = vectors["metadata"]
        assert container.new_metadata(update, old) == twin.metadata(update, old) == new


def test_the_vectors_of_the_newest_version_are_of_every_kind_and_have_pieces():
    found = [told["inspect"] for told in VERSION_4["updates"].values()]
    kinds = {block["kind"] for told in found for block in told["blocks"]}
    assert kinds == {kind.name for kind in versions.NEWEST.kinds.values()}
    sizes = [block["size"] for told in found for block in told["blocks"] if block["kind"] == "changes"]
    assert min(sizes) < 100
    assert max(sizes) >= 2048


def test_such_a_reader_takes_classes_lanes_and_longer_chunks():
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(0, 1.5, 60))[:, None] * np.exp(rng.normal(0, 1.5, 50))
    base = {"w": rng.normal(size=(60, 50)).astype(np.float32), "x": np.zeros(70_000, np.float16)}
    values = np.rint(rng.laplace(0, scales)).astype(np.int32)
    sparse = np.where(rng.random(70_000) < 0.001, 1, 0).astype(np.int32)
    packet = container.packet.Packet(
        {
            "w": Dense(values, samples.STEP),
            "x": Dense(sparse, samples.STEP),
        }
    )
    update = container.encode(packet, base)
    assert container.header.parse(update).lanes > 1
    new = twin.apply(update, {name: plain(leaf) for name, leaf in base.items()})
    for name, leaf in container.apply_update(update, base).items():
        assert new[name].data == leaf.tobytes()


def test_derived_numbers_are_the_expected_ones():
    kernel = BASE["dense/kernel"]
    assert [hex(h) for h in hashing.hashes(hashing.stream_key(5, 2, 0), 0, 4).tolist()] == EXPECTED["hashes"]
    assert positions.seeded(5, 2, 240, 12).tolist() == EXPECTED["seeded"]
    assert positions.largest(kernel, 12).tolist() == EXPECTED["largest"]
    left, right = basis.of(kernel, 3, seed=5, index=2)
    assert left[0].tolist() == EXPECTED["basis"]["left"]
    assert right[0].tolist() == EXPECTED["basis"]["right"]
    for key, weights in EXPECTED["prior"].items():
        scale, size, signed = map(int, key.split())
        assert (
            models.priors(np.array([scale]), size, signed=bool(signed)).tolist()[0]
            == weights
            == twin_basis.prior(scale, size, signed)
        )

"""What every method must hold to, on real digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import updcomp
from tests.methods import worlds
from tests.methods.worlds import KEY, MODELS, applied, assert_like, digits
from updcomp import protocol, trees
from updcomp.edge import __main__ as edge
from updcomp.methods import METHODS, by_path, full, low_rank, random_mask, subspace
from updcomp.training import classification
from updcomp.training.compilation import measured
from updcomp.wire import apply, container
from updcomp.wire.kinds.magnitude import Magnitude
from updcomp.wire.kinds.raw import Raw
from updcomp.wire.kinds.seeded import Seeded

# One row a way of using a method; `small` says that the update must be smaller than the raw model.
TABLE = [
    ("full", {}, False),
    ("full", {"bits": 4}, True),
    ("full", {"bits": 2, "aux": None}, True),
    ("partial", {"ratio": 0.02}, True),
    ("partial", {"ratio": 0.02, "scores": "global", "aux": 4}, True),
    ("partial", {"ratio": 1.0, "scores": "local", "aux": None}, True),
    ("partial", {"ratio": 0.3, "fixed_share": 0.5, "keep_moments": True}, True),
    ("low_rank", {"rank": 1}, True),
    ("low_rank", {"rank": 4, "bits": 4, "aux": 8}, True),
    ("subspace", {"rank": 4}, True),
    ("subspace", {"rank": 64, "bits": 2, "aux": 16}, True),
    ("random_mask", {"ratio": 0.05}, True),
    ("random_mask", {"ratio": 1.0, "bits": 8, "aux": None}, True),
    ("magnitude_mask", {"ratio": 0.05}, True),
    ("neurons", {"selection": "velocity", "weights": 0.2}, True),
    ("neurons", {"memory": 0.8, "bits": 4}, True),
    ("fit_budget", {"max_bytes": 300, "families": ("subspace",)}, True),
    ("by_path", {}, True),
    ("low_rank", {"max_bytes": 400, "bits": 4, "aux": 4}, True),
    ("random_low_rank", {"rank": 4, "rate": 10.0}, True),
    ("subsample", {"ratio": 0.5}, True),
    ("stochastic_quantize", {"bits": 4, "rotated": True}, True),
    ("truncated_svd", {"rank": 4}, True),
    ("vera", {"rank": 8, "rate": 10.0}, True),
    ("uni_lora", {"size": 64, "rate": 10.0}, True),
    ("tiny_lora", {"size": 32, "rank": 4, "share": 1, "rate": 30.0}, True),
    ("nola", {"size": 64, "rate": 10.0}, True),
    ("pranc", {"size": 64, "rate": 10.0}, True),
    ("fourier", {"size": 40, "rate": 30.0}, True),
    ("subspace", {"rank": 16, "widen": True}, True),
]
ROWS = [pytest.param(name, options, id=f"{name} {options}") for name, options, _ in TABLE]
ALIKE = ("vera", "nola", "pranc", "tiny_lora", "fourier")  # trained by the same programs as uni_lora
TWICE = [row for row in ROWS if row.values[0] not in ALIKE]
ON_CNN = [ROWS[i] for i in (1, 3, 8, 10, 11)]


def test_every_method_is_in_the_table():
    assert METHODS.keys() == {name for name, _, _ in TABLE} - {"by_path"}


def method_of(name, options):
    if name == "by_path":
        rules = {".*Dense_0/kernel": subspace(rank=8), ".*kernel": low_rank(rank=2), ".*bias": full(bits=8)}
        return by_path(rules)
    return METHODS[name](**options)


@functools.cache
def _packet(method, model):
    deployed, task = digits(model)
    return method(KEY, deployed, task)


def make(name, options, model="mlp"):
    return _packet(method_of(name, options), model)


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_structure_dtypes_and_shapes_are_kept_and_training_helps(name, options):
    deployed, task = digits()
    assert_like(worlds.assert_helps(make(name, options), deployed, task), deployed)


@pytest.mark.parametrize(("name", "options"), ON_CNN)
def test_convolutions_and_statistics_are_kept_in_form_and_training_helps(name, options):
    deployed, task = digits("cnn")
    assert_like(worlds.assert_helps(make(name, options, "cnn"), deployed, task), deployed)


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_decoding_gives_the_encoded_packet(name, options):
    deployed, _ = digits()
    model = trees.to_model(deployed)
    made = make(name, options)
    decoded = container.decode(container.encode(made, model), model)
    expected, found = apply.apply(made, model), apply.apply(decoded, model)
    assert all(expected[leaf].tobytes() == found[leaf].tobytes() for leaf in model)
    assert container.encode(decoded, model) == container.encode(made, model)


def on_the_device(base, update, new):
    """The device's own command, without the process around it, which is the same for every update."""
    assert edge.main(["apply", str(base), str(update), "-o", str(new)]) == 0


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_the_device_gets_what_the_server_computes(name, options, tmp_path):
    deployed, _ = digits()
    held, update = tmp_path / "model.safetensors", tmp_path / "update"
    made = make(name, options)
    device = protocol.device_process if name == "by_path" else on_the_device
    done = protocol.deliver(made, protocol.save(deployed, held), update, tmp_path / "new.safetensors", device=device)
    assert done.update_bytes == update.stat().st_size == len(updcomp.encode(made, deployed))
    server = apply.apply(made, trees.to_model(deployed))
    found = trees.to_model(done.variables)
    assert all(server[leaf].tobytes() == found[leaf].tobytes() for leaf in server)


@pytest.mark.parametrize(("name", "options"), TWICE)
def test_the_key_decides_everything_and_a_second_call_compiles_nothing(name, options):
    deployed, task = digits()
    first = updcomp.encode(make(name, options), deployed)
    with measured() as again:
        second = method_of(name, options)(KEY, deployed, task)
    assert updcomp.encode(second, deployed) == first
    # Other weights, fewer samples and another learning rate: the same shapes.
    key, other = jax.random.key(1), jax.tree.map(lambda leaf: leaf * 1.01, deployed)
    less = task._replace(samples=np.arange(120), learning_rate=3e-3)
    with measured() as elsewhere:
        method_of(name, options)(key, other, less)
    assert again.count == 0
    assert elsewhere.count == 0 or name == "neurons" or "max_bytes" in options  # whose shapes follow from the choice


@pytest.mark.parametrize(("name", "options", "small"), TABLE)
def test_an_update_is_smaller_than_the_model(name, options, small):
    deployed, _ = digits()
    size = len(updcomp.encode(make(name, options), deployed))
    raw = sum(leaf.nbytes for leaf in trees.to_model(deployed).values())
    assert size < (raw / 3 if small else raw + 100)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("full", {"bits": 1}, "bits"),
        ("full", {"aux": 5}, "aux"),
        ("full", {"rate": 0.0}, "rate"),
        ("partial", {"ratio": 0.0}, "ratio"),
        ("partial", {"ratio": 0.1, "scores": "best"}, "scores"),
        ("partial", {"ratio": 0.1, "fixed_share": 1.0}, "fixed_share"),
        ("low_rank", {"rank": 0}, "rank"),
        ("low_rank", {"rank": 1, "bits": 1}, "bits"),
        ("low_rank", {}, "expected one of rank, energy and max_bytes"),
        ("low_rank", {"rank": 1, "energy": 0.5}, "expected one of rank"),
        ("low_rank", {"rank": 1, "zero": "both"}, "zero"),
        ("low_rank", {"energy": 1.5}, "energy"),
        ("low_rank", {"max_bytes": 0}, "max_bytes"),
        ("low_rank", {"energy": 0.5, "source": "loss"}, "source"),
        ("random_low_rank", {"rank": 0}, "rank"),
        ("subsample", {"ratio": 0.0}, "ratio"),
        ("stochastic_quantize", {"bits": 9}, "bits"),
        ("truncated_svd", {"rank": 1.5}, "rank"),
        ("vera", {"rank": 0}, "rank"),
        ("uni_lora", {"size": 0}, "size"),
        ("tiny_lora", {"size": 8, "share": -1}, "share"),
        ("nola", {"size": 8, "rank": 3}, "rank: expected a power of two"),
        ("pranc", {"size": 8, "bits": 1}, "bits"),
        ("fourier", {"size": "many"}, "size"),
        ("subspace", {"rank": 0}, "rank"),
        ("random_mask", {"ratio": 1.5}, "ratio"),
        ("magnitude_mask", {"ratio": -1.0}, "ratio"),
        ("neurons", {"weights": 1.5}, "weights"),
        ("neurons", {}, "selection: depth: expected a budget"),
        ("neurons", {"weights": 0.2, "bits": 1}, "bits"),
    ],
)
def test_options_are_checked_when_a_method_is_made(name, options, message):
    with pytest.raises(updcomp.Error, match=message):
        METHODS[name](**options)


@pytest.mark.parametrize("method", [METHODS["partial"](ratio=0.5), low_rank(rank=2)], ids=["partial", "low_rank"])
def test_models_with_empty_leaves_and_without_kernels_are_updated(method):
    _, task = digits()
    deployed = {"bias": jnp.zeros(10), "empty": jnp.zeros((0, 3))}
    task = task._replace(objective=classification(_bias_alone))
    assert list(method(KEY, deployed, task).blocks) == ["bias"]
    with pytest.raises(updcomp.Error, match="nothing to train: .* 'bias' .aux., 'empty' .fixed."):
        subspace(rank=2, aux=None)(KEY, deployed, task)


def _bias_alone(tree, images, *, train):
    return jnp.zeros((len(images), 1)) + tree["bias"][None], {}


@pytest.mark.parametrize("method", ["full", "partial"])
def test_training_starts_where_it_is_told(method):
    """With a learning rate of zero, the model that training gives is the one it started from."""
    deployed, task = digits()
    other = MODELS["mlp"].init(jax.random.key(7), task.train.images)
    options = {"ratio": 1.0, "bits": 16} if method == "partial" else {}
    made = METHODS[method](start=lambda key: other, **options)(KEY, deployed, task._replace(learning_rate=0.0))
    for found, expected in zip(jax.tree.leaves(applied(made, deployed)), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-3)  # the step has eight bits


def test_the_raw_full_update_is_the_trained_model():
    blocks = make("full", {}, "cnn").blocks
    assert all(isinstance(block, Raw) for block in blocks.values())
    assert any(name.startswith("batch_stats") for name in blocks)


@pytest.mark.parametrize("method", [full(bits=4), METHODS["partial"](ratio=0.1), low_rank(rank=2), subspace(rank=8)])
def test_bfloat16_models_are_trained_and_updated(method):
    deployed, task = digits()
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), deployed)
    made = method(KEY, narrow, task._replace(objective=classification(_in_float32)))
    assert made.blocks
    assert_like(applied(made, narrow), narrow)


def _in_float32(variables, images, *, train):
    return MODELS["mlp"].apply(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables), images, train=train)


def test_random_masks_differ_with_the_key_and_magnitude_masks_do_not():
    deployed, task = digits()
    changed = {}
    for method in (random_mask(ratio=0.05, rate=20.0), METHODS["magnitude_mask"](ratio=0.05)):
        packets = [method(jax.random.key(seed), deployed, task) for seed in (1, 2)]
        moved = [
            {name: np.asarray(leaf) != np.asarray(worlds.kernels(deployed)[name]) for name, leaf in new.items()}
            for new in (worlds.kernels(applied(made, deployed)) for made in packets)
        ]
        changed[type(packets[0].blocks["params/Dense_0/kernel"])] = moved
    first, second = (moved["params/Dense_0/kernel"] for moved in changed[Seeded])
    assert (first & second).sum() < 0.5 * first.sum()
    kernel = np.abs(deployed["params"]["Dense_0"]["kernel"])
    largest = kernel >= np.sort(kernel.ravel())[-int(0.05 * kernel.size)]
    for moved in changed[Magnitude]:
        assert not np.any(moved["params/Dense_0/kernel"] & ~largest)

"""What every method must hold to, on real digits."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from updcomp import protocol, trees
from updcomp.methods import METHODS, base
from updcomp.training import data, loop, models
from updcomp.training.loop import Task
from updcomp.wire import apply, container, packet

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
]
ROWS = [pytest.param(name, options, id=f"{name} {options}") for name, options, _ in TABLE]
MODELS = {"mlp": models.mlp(hidden=(24,)), "cnn": models.vgg(stages=((4,),), dense=(16,))}
ON_CNN = ROWS[1::2]


@functools.cache
def world(model: str) -> tuple[dict, Task]:
    """A model deployed for even digits, and the task of learning all of them."""
    source = data.load("digits")
    train, validation = data.split(source.train, (200, 100), seed=0)
    network = MODELS[model]
    task = Task(
        network.apply, jax.device_put(train), jax.device_put(validation), optax.adam, 1e-2, epochs=2, batch_size=50
    )
    return network.init(jax.random.key(0), train.images), task


@functools.cache
def _method(name, options):
    return METHODS[name](**dict(options))


def method_of(name, options):
    """One instance per row of the table, so that each is compiled once."""
    return _method(name, tuple(options.items()))


@functools.cache
def _packet(method, model):
    deployed, task = world(model)
    return method(jax.random.key(0), deployed, task)


def make(name, options, model="mlp"):
    return _packet(method_of(name, options), model)


def assert_like(new, deployed):
    assert jax.tree.structure(new) == jax.tree.structure(deployed)
    for one, other in zip(jax.tree.leaves(new), jax.tree.leaves(deployed), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert jnp.all(jnp.isfinite(one))


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_structure_dtypes_and_shapes_are_kept(name, options):
    deployed, _ = world("mlp")
    assert_like(updcomp.apply(updcomp.encode(make(name, options), deployed), deployed), deployed)


@pytest.mark.parametrize(("name", "options"), ON_CNN)
def test_convolutions_and_statistics_are_kept_in_form(name, options):
    deployed, _ = world("cnn")
    assert_like(updcomp.apply(updcomp.encode(make(name, options, "cnn"), deployed), deployed), deployed)


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_decoding_gives_the_encoded_packet(name, options):
    deployed, _ = world("mlp")
    model = trees.to_model(deployed)
    made = make(name, options)
    decoded = container.decode(container.encode(made, model), model)
    expected, found = apply.apply(made, model), apply.apply(decoded, model)
    assert all(expected[leaf].tobytes() == found[leaf].tobytes() for leaf in model)
    assert container.encode(decoded, model) == container.encode(made, model)


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_the_device_gets_what_the_server_computes(name, options, tmp_path):
    deployed, _ = world("mlp")
    held, update = tmp_path / "model.safetensors", tmp_path / "update"
    made = make(name, options)
    done = protocol.deliver(made, protocol.save(deployed, held), update, tmp_path / "new.safetensors")
    assert done.update_bytes == update.stat().st_size == len(updcomp.encode(made, deployed))
    server = apply.apply(made, trees.to_model(deployed))
    device = trees.to_model(done.variables)
    assert all(server[leaf].tobytes() == device[leaf].tobytes() for leaf in server)


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_the_key_decides_everything(name, options):
    deployed, task = world("mlp")
    again = method_of(name, options)(jax.random.key(0), deployed, task)
    assert updcomp.encode(again, deployed) == updcomp.encode(make(name, options), deployed)


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_a_second_round_compiles_nothing(name, options):
    deployed, task = world("mlp")
    method = method_of(name, options)
    method(jax.random.key(0), deployed, task)
    # Other weights, fewer samples and another learning rate: the same shapes.
    other_key, other_deployed = jax.random.key(1), jax.tree.map(lambda leaf: leaf * 1.01, deployed)
    other = task._replace(samples=np.arange(120), learning_rate=3e-3)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        method(other_key, other_deployed, other)
        assert compiled == []
        jax.jit(lambda x: x * 3.25)(1.0)  # what would be seen
        assert compiled != []
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize(("name", "options", "small"), TABLE)
def test_an_update_is_smaller_than_the_model(name, options, small):
    deployed, _ = world("mlp")
    size = len(updcomp.encode(make(name, options), deployed))
    raw = sum(leaf.nbytes for leaf in trees.to_model(deployed).values())
    assert size < (raw / 3 if small else raw + 100)


@pytest.mark.parametrize(("name", "options"), ROWS)
def test_training_helps(name, options):
    deployed, task = world("mlp")
    new = updcomp.apply(updcomp.encode(make(name, options), deployed), deployed)

    def correct(variables):
        logits, _ = task.apply(variables, data.to_float(task.validation.images), train=False)
        return int((logits.argmax(-1) == task.validation.labels).sum())

    assert correct(new) > correct(deployed)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("full", {"bits": 1}, "bits"),
        ("full", {"aux": 5}, "aux"),
        ("partial", {"ratio": 0.0}, "ratio"),
        ("partial", {"ratio": 0.1, "scores": "best"}, "scores"),
        ("partial", {"ratio": 0.1, "fixed_share": 1.0}, "fixed_share"),
        ("low_rank", {"rank": 0}, "rank"),
        ("low_rank", {"rank": 1, "bits": None}, "bits"),
        ("subspace", {"rank": 0}, "rank"),
        ("random_mask", {"ratio": 1.5}, "ratio"),
        ("magnitude_mask", {"ratio": -1.0}, "ratio"),
    ],
)
def test_options_are_checked_when_a_method_is_made(name, options, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](**options)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_method():
    deployed, task = world("mlp")
    broken = task._replace(loss=lambda logits, labels: loop.cross_entropy(logits, labels) * math.nan)
    with pytest.raises(updcomp.Error, match="low_rank.*step 0"):
        METHODS["low_rank"](rank=1)(jax.random.key(0), deployed, broken)


@pytest.mark.parametrize(
    ("name", "options"), [("partial", {"ratio": 0.5}), ("low_rank", {"rank": 2}), ("subspace", {"rank": 2})]
)
def test_empty_leaves_and_models_without_kernels(name, options):
    _, task = world("mlp")
    deployed = {"bias": jnp.zeros(10), "empty": jnp.zeros((0, 3))}
    task = task._replace(apply=lambda tree, images, *, train: (jnp.zeros((len(images), 1)) + tree["bias"][None], {}))
    made = METHODS[name](**options)(jax.random.key(0), deployed, task)
    assert set(made.blocks) <= {"bias"}


def test_a_leaf_that_is_no_array_is_refused_by_name():
    deployed, task = world("mlp")
    with pytest.raises(updcomp.Error, match="'activation'.*function"):
        METHODS["full"]()(jax.random.key(0), {**deployed, "activation": jax.nn.relu}, task)


def test_fewer_samples_than_a_batch_are_refused():
    deployed, task = world("mlp")
    with pytest.raises(updcomp.Error, match="batch_size.*20.*50"):
        METHODS["full"]()(jax.random.key(0), deployed, task._replace(samples=np.arange(20)))


@pytest.mark.parametrize("ratio", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("options", [{}, {"fixed_share": 0.3}, {"scores": "local", "keep_moments": True}], ids=str)
def test_partial_sends_its_ratio_of_all_kernels_together(ratio, options):
    deployed, task = world("mlp")
    blocks = METHODS["partial"](ratio=ratio, **options)(jax.random.key(0), deployed, task).blocks
    kernels = trees.kernels(deployed)
    sent = sum(len(blocks[name].positions) for name in kernels)
    assert sent == int(ratio * sum(kernel.size for kernel in kernels.values()))


def test_weights_that_are_fixed_in_one_iteration_stay_fixed(monkeypatch):
    deployed, task = world("mlp")
    masks = []
    train = base.train

    def watched(*arguments, mask=None, **options):
        masks.append(mask)
        return train(*arguments, mask=mask, **options)

    monkeypatch.setattr(base, "train", watched)
    METHODS["partial"](ratio=0.1, fixed_share=0.4)(jax.random.key(0), deployed, task)
    assert masks[0] is None
    total = sum(kernel.size for kernel in trees.kernels(deployed).values())
    assert [sum(int(m.sum()) for m in mask.values()) for mask in masks[1:]] == [
        int(share * total) for share in (0.6, 0.36, 0.216, 0.1296, 0.1)
    ]
    for wider, narrower in itertools.pairwise(masks[1:]):
        assert all(not jnp.any(narrower[name] & ~wider[name]) for name in wider)


@pytest.mark.parametrize("method", ["full", "partial"])
def test_training_starts_where_it_is_told(method):
    """With a learning rate of zero, the model that training gives is the one it started from."""
    deployed, task = world("mlp")
    other = MODELS["mlp"].init(jax.random.key(7), task.train.images)
    options = {"ratio": 1.0, "bits": 16} if method == "partial" else {}
    packet_ = METHODS[method](start=lambda key: other, **options)(
        jax.random.key(0), deployed, task._replace(learning_rate=0.0)
    )
    new = updcomp.apply(updcomp.encode(packet_, deployed), deployed)
    for found, expected in zip(jax.tree.leaves(new), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-3)  # the step has eight bits


def test_from_a_model_of_zeros_the_global_contribution_prunes_by_magnitude():
    deployed, task = world("mlp")
    kernels = trees.kernels(deployed)
    zeros = trees.replace(deployed, {name: jnp.zeros_like(kernel) for name, kernel in kernels.items()})
    prune = METHODS["partial"](ratio=0.1, scores="global", bits=16, start=lambda key: deployed)
    blocks = prune(jax.random.key(0), zeros, task._replace(learning_rate=0.0)).blocks
    flat = np.concatenate([np.abs(kernel).ravel() for kernel in kernels.values()])
    threshold = np.sort(flat)[-int(0.1 * flat.size)]
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(blocks[name].positions, np.flatnonzero(np.abs(kernel) >= threshold))


def test_statistics_travel_with_the_aux_leaves_only():
    deployed, _ = world("cnn")
    statistics = {name for name in trees.named_leaves(deployed) if name.startswith("batch_stats")}
    assert statistics <= make("full", {"bits": 4}, "cnn").blocks.keys()
    assert not statistics & make("partial", {"ratio": 1.0, "scores": "local", "aux": None}, "cnn").blocks.keys()


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_rounding_keeps_variances_positive(bits):
    old = {"var": np.float32([1.0, 0.5, 5.0])}
    new = np.float32([1e-6, 0.5, 5e-5])
    block = base.aux_block(old["var"], new, bits)
    result = apply.apply(packet.Packet({"var": block}), old)["var"]
    assert (result > 0).all()
    np.testing.assert_allclose(result, new, atol=0.4)


def test_a_change_beyond_float16_still_travels():
    old = {"mean": np.float32([0.0, 1.0])}
    block = base.aux_block(old["mean"], np.float32([1e6, 1.0]), 16)
    np.testing.assert_array_equal(apply.apply(packet.Packet({"mean": block}), old)["mean"], [1e6, 1.0])


def test_the_raw_full_update_is_the_trained_model():
    blocks = make("full", {}, "cnn").blocks
    assert all(isinstance(block, packet.Raw) for block in blocks.values())
    assert any(name.startswith("batch_stats") for name in blocks)


@pytest.mark.parametrize(
    ("name", "options"),
    [("full", {"bits": 4}), ("partial", {"ratio": 0.1}), ("low_rank", {"rank": 2}), ("subspace", {"rank": 8})],
)
def test_bfloat16_models_are_trained_and_updated(name, options):
    deployed, task = world("mlp")
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), deployed)
    task = task._replace(apply=_in_float32)
    made = METHODS[name](**options)(jax.random.key(0), narrow, task)
    assert made.blocks
    assert_like(updcomp.apply(updcomp.encode(made, narrow), narrow), narrow)


def _in_float32(variables, images, *, train):
    return MODELS["mlp"].apply(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables), images, train=train)

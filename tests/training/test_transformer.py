import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from updcomp import partition
from updcomp.training import text
from updcomp.training.language_model import language_model
from updcomp.training.objectives import make_score
from updcomp.training.transformer import transformer
from updcomp.trees import named_leaves
from updcomp.wire import views
from updcomp.wire.errors import Error

SIZES = {"vocabulary": 23, "width": 8, "depth": 2, "heads": 2, "length": 7}
TOKENS = np.random.default_rng(0).integers(0, 23, (3, 7), dtype=np.uint8)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model():
    return transformer(**SIZES)


@pytest.fixture(scope="module")
def variables(model):
    return jax.jit(model.init)(KEY)


@functools.cache
def compiled(apply, train):
    return jax.jit(functools.partial(apply, train=train))


def logits_of(model, variables, tokens, *, key=None, train=False):
    return compiled(model.apply, train)(variables, tokens, key=key)


def stacked(variables):
    blocks = variables["blocks"]
    return {
        **variables,
        "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(blocks[i] for i in sorted(blocks))),
    }


def nats(logits, targets):
    """Cross-entropy by NumPy in float64."""
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None].astype(int), -1)[..., 0]


def test_variables_are_nested_dicts_with_readable_paths(variables):
    shapes = {name: leaf.shape for name, leaf in named_leaves(variables).items()}
    block = {
        "attention/key/kernel": (8, 2, 4),
        "attention/out/kernel": (2, 4, 8),
        "attention/query/kernel": (8, 2, 4),
        "attention/value/kernel": (8, 2, 4),
        "attention_norm/scale": (8,),
        "down/kernel": (32, 8),
        "mlp_norm/scale": (8,),
        "up/kernel": (8, 32),
    }
    ends = {"norm/scale": (8,), "positions/embedding": (7, 8), "tokens/embedding": (23, 8)}
    assert shapes == {**{f"blocks/{i}/{name}": shape for i in range(2) for name, shape in block.items()}, **ends}
    assert {type(key) for key in variables["blocks"]} == {str}


def test_the_same_arguments_give_the_same_object(model):
    assert transformer(**dict(reversed(SIZES.items()))) is model
    assert transformer(**SIZES, dtype="float32", param_dtype=np.float32) is model
    assert transformer(**SIZES, dropout=0.5) is not model
    assert language_model(model.apply) is language_model(transformer(**SIZES).apply)


def test_logits_depend_on_no_later_token(model, variables):
    logits = logits_of(model, variables, TOKENS)
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 23
    difference = np.asarray(logits_of(model, variables, changed) != logits).any(axis=(0, 2))
    assert difference.tolist() == [False] * 4 + [True] * 3


def test_tokens_of_any_integer_dtype_are_indices(model, variables):
    logits = logits_of(model, variables, TOKENS)
    assert logits.shape == (3, 7, 23)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, logits_of(model, variables, TOKENS.astype(np.int32)))


def test_a_text_longer_than_the_model_is_an_error(model, variables):
    with pytest.raises(Error, match="tokens: expected at most 7 in a row, the model's length, found 8"):
        model.apply(variables, np.zeros((1, 8), np.uint8))


@pytest.mark.parametrize(("tied", "mode"), [(True, {}), (False, {"key": KEY, "train": True})])
def test_stacked_blocks_compute_the_same_with_the_same_weights_and_dropout(tied, mode):
    sizes = {**SIZES, "dropout": 0.3, "tied": tied}
    plain, scanned = transformer(**sizes), transformer(**sizes, stacked=True)
    weights, stack = jax.jit(plain.init)(KEY), jax.jit(scanned.init)(KEY)
    assert ("head" in weights) is not tied
    jax.tree.map(np.testing.assert_array_equal, stacked(weights), stack)
    expected = logits_of(plain, weights, TOKENS, **mode)
    np.testing.assert_allclose(logits_of(scanned, stack, TOKENS, **mode), expected, rtol=1e-5, atol=1e-5)


def test_dropout_differs_with_the_key_and_is_off_outside_training(model, variables):
    dropping = transformer(**SIZES, dropout=0.5)
    plain = logits_of(model, variables, TOKENS)
    np.testing.assert_array_equal(logits_of(dropping, variables, TOKENS, key=KEY), plain)
    np.testing.assert_array_equal(logits_of(model, variables, TOKENS, key=KEY, train=True), plain)
    one, same, other = (
        logits_of(dropping, variables, TOKENS, key=jax.random.key(seed), train=True) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (one != plain).any()
    with pytest.raises(Error, match="key: expected a PRNG key"):
        dropping.apply(variables, TOKENS, train=True)


@pytest.mark.parametrize("is_stacked", [False, True])
def test_the_axes_read_every_kernel_as_the_matrix_that_it_multiplies_with(is_stacked):
    model = transformer(**{**SIZES, "depth": 3, "tied": False, "stacked": is_stacked})
    variables = jax.eval_shape(model.init, KEY)
    leaves = named_leaves(variables)
    parts = partition.of(variables, axes=model.axes).leaves
    shapes = {leaf.name: views.shape_of(leaves[leaf.name].shape, leaf.view) for leaf in parts if leaf.role == "kernel"}
    block = {"query": (8, 8), "key": (8, 8), "value": (8, 8), "out": (8, 8), "up": (8, 32), "down": (32, 8)}
    ends = {"tokens": (23, 8), "positions": (7, 8), "head": (8, 23)}
    assert len(shapes) == (1 if is_stacked else 3) * len(block) + len(ends)
    for name, (stack, *matrix) in shapes.items():
        assert tuple(matrix) == {**block, **ends}[name.split("/")[-2]]
        assert stack == (3 if is_stacked and name.startswith("blocks") else 1)
    assert all("norm" in leaf.name for leaf in parts if leaf.role == "aux")


def test_bfloat16_weights_and_activations_stay_near_float32_ones(model, variables):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    expected = logits_of(model, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half), TOKENS)
    kept = transformer(**SIZES, param_dtype=jnp.bfloat16)
    initial = jax.eval_shape(kept.init, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(logits_of(kept, half, TOKENS), expected, rtol=1e-5, atol=1e-5)
    computed = logits_of(transformer(**SIZES, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16), half, TOKENS)
    assert computed.dtype == jnp.float32
    np.testing.assert_allclose(computed, expected, atol=0.1)
    assert (computed != expected).any()


def test_the_score_is_minus_the_bits_per_character_whatever_the_padding(model, variables):
    batch = text.windows("letters, 3 windows", 7)
    batch["tokens"] %= 23  # as the model has a small vocabulary
    each = nats(logits_of(model, variables, batch["tokens"][:, :-1]), batch["tokens"][:, 1:])
    expected = each[batch["mask"]].mean()
    assert each[~batch["mask"]].size == 4
    objective = language_model(model.apply)
    score, loss = make_score(objective), jax.jit(functools.partial(objective.loss, train=False))
    assert score(variables, batch) == pytest.approx(-expected / np.log(2), rel=1e-5)
    assert float(loss(variables, batch, KEY)) == pytest.approx(expected, rel=1e-5)
    padding = {**batch, "tokens": np.where(np.pad(~batch["mask"], ((0, 0), (1, 0))), 22, batch["tokens"])}
    assert score(variables, padding) == score(variables, batch)
    empty = {**batch, "mask": np.zeros((3, 7), bool)}
    assert float(loss(variables, empty, KEY)) == 0


def test_every_weight_gets_a_gradient_and_dropout_makes_it_depend_on_the_key(variables):
    objective = language_model(transformer(**SIZES, dropout=0.5).apply)
    batch = {"tokens": np.pad(TOKENS, ((0, 0), (0, 1))), "mask": np.ones((3, 7), bool)}
    gradient = jax.jit(jax.grad(lambda variables, key: objective.loss(variables, batch, key, train=True)))
    one, other = (named_leaves(gradient(variables, jax.random.key(seed))) for seed in (0, 1))
    for name, leaf in one.items():
        assert bool((leaf != 0).any()), name
        assert bool((leaf != other[name]).any()), name


@pytest.mark.parametrize(("option", "message"), [
    ({"depth": 0}, "depth: expected at least 1, found 0"),
    ({"width": 9}, "width: expected a multiple of heads, 2, found 9"),
    ({"dropout": 1.0}, "dropout: expected from 0 to below 1, found 1.0"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_errors(option, message):
    with pytest.raises(Error, match=message):
        transformer(**{**SIZES, **option})

"""A causal transformer over tokens as a pure (init, apply) pair, on flax nnx."""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from updcomp.wire.errors import Error

Variables = dict[str, Any]

# How kernels are read as matrices where the last axis is not their only fan-out: `Task.axes`.
AXES = {
    r"blocks/\d+/attention/(query|key|value)/kernel": "in out out",
    r"blocks/\d+/attention/out/kernel": "in in out",
}
STACKED_AXES = {
    r"blocks/attention/(query|key|value)/kernel": "stack in out out",
    r"blocks/attention/out/kernel": "stack in in out",
    r"blocks/(up|down)/kernel": "stack in out",
    r"blocks/\w+_norm/scale": "stack out",
}


class Apply(Protocol):
    """The model's function.

    Args:
      variables: as `Transformer.init` gives them.
      tokens: integers (n, t) of any dtype, below the vocabulary; t is at most the model's length.
      key: PRNG key of this step's dropout; only training with dropout needs it.
      train: True drops activations out.

    Returns:
      Logits of the next token at each position, float32 (n, t, vocabulary); those at position i depend on the tokens
      up to i.
    """

    def __call__(
        self, variables: Variables, tokens: ArrayLike, *, key: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """The logits."""

    def __hash__(self) -> int:
        """Objectives, and with them compiled functions, are kept by it."""


class Transformer(NamedTuple):
    """A transformer without its weights."""

    init: Callable[[jax.Array], Variables]  # key -> a nested dict of arrays
    apply: Apply
    axes: Mapping[str, str]  # for `Task.axes`


class _Sizes(NamedTuple):
    vocabulary: int
    width: int
    depth: int
    heads: int
    length: int
    dropout: float
    tied: bool
    stacked: bool
    dtype: jnp.dtype[Any]
    param_dtype: jnp.dtype[Any]


def _attention(query: jax.Array, key: jax.Array, value: jax.Array, **_: Any) -> jax.Array:
    """softmax(Q K^T / sqrt(d)) V for (n, t, heads, d), over the positions up to each query; softmax in float32."""
    length, d = query.shape[1], query.shape[3]
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32) / math.sqrt(d)
    weights = jax.nn.softmax(jnp.where(jnp.tri(length, dtype=bool)[None, None], scores, -jnp.inf))
    return jnp.einsum("nhqk,nkhd->nqhd", weights.astype(value.dtype), value)


class _Block(nnx.Module):
    """Adds attention and an MLP to the residual stream, which stays float32 whatever the products are computed in."""

    def __init__(self, sizes: _Sizes, rngs: nnx.Rngs) -> None:
        width = sizes.width
        options: dict[str, Any] = {"param_dtype": sizes.param_dtype, "use_bias": False, "rngs": rngs}
        self.attention_norm = nnx.LayerNorm(width, dtype=jnp.float32, **options)
        self.attention = nnx.MultiHeadAttention(
            sizes.heads, width, dtype=sizes.dtype, attention_fn=_attention, decode=False, **options
        )
        self.mlp_norm = nnx.LayerNorm(width, dtype=jnp.float32, **options)
        self.up = nnx.Linear(width, 4 * width, dtype=sizes.dtype, **options)
        self.down = nnx.Linear(4 * width, width, dtype=sizes.dtype, **options)
        self.dropout = nnx.Dropout(sizes.dropout)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        rngs = None if key is None else nnx.Rngs(key)

        def drop(x: jax.Array) -> jax.Array:
            return self.dropout(x.astype(jnp.float32), deterministic=key is None, rngs=rngs)

        x = x + drop(self.attention(self.attention_norm(x)))
        return x + drop(self.down(nnx.gelu(self.up(self.mlp_norm(x)))))


class _Network(nnx.Module):
    def __init__(self, sizes: _Sizes, rngs: nnx.Rngs) -> None:
        width = sizes.width
        options: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": sizes.param_dtype, "rngs": rngs}
        self.tokens = nnx.Embed(sizes.vocabulary, width, **options)
        self.positions = nnx.Embed(sizes.length, width, **options)
        keys = jax.random.split(rngs.params(), sizes.depth)
        self.blocks: Any
        if sizes.stacked:
            self.blocks = nnx.vmap(lambda key: _Block(sizes, nnx.Rngs(key)))(keys)
        else:
            self.blocks = nnx.List([_Block(sizes, nnx.Rngs(key)) for key in keys])
        self.norm = nnx.LayerNorm(width, use_bias=False, **options)
        if not sizes.tied:
            self.head = nnx.Linear(width, sizes.vocabulary, use_bias=False, **options)

    def __call__(self, tokens: jax.Array, keys: jax.Array | None) -> jax.Array:
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1])[None])
        if isinstance(self.blocks, nnx.List):
            for i, block in enumerate(self.blocks):
                x = block(x, None if keys is None else keys[i])
        else:
            graph, stack = nnx.split(self.blocks)
            x, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graph, layer[0])(x, layer[1]), None), x, (stack, keys))
        x = self.norm(x)
        return self.head(x) if hasattr(self, "head") else x @ self.tokens.embedding[...].astype(jnp.float32).T


def transformer(
    *,
    vocabulary: int,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    length: int = 128,
    dropout: float = 0.0,
    tied: bool = True,
    stacked: bool = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Transformer:
    """Pre-norm blocks of causal attention and a GELU MLP, with learned positions and no biases.

    x = E[tokens] + P;  x = x + attention(norm(x)) and x = x + W_down gelu(W_up norm(x)) in each block;  logits =
    norm(x) E^T, or norm(x) H with a head of its own.

    Args:
      vocabulary: number of tokens.
      width: of the residual stream, a multiple of `heads`; the MLP is four times as wide.
      depth: number of blocks.
      heads: attention heads per block.
      length: the most tokens that the model reads at once.
      dropout: the share of each block's two outputs that training drops, from 0 to below 1.
      tied: whether the token embedding is the output kernel as well.
      stacked: whether each kind of leaf is one array for all blocks, with the block as first axis; the blocks are then
        scanned, which compiles once whatever the depth. The same key gives the same weights either way.
      dtype: what the blocks' matrix products are computed in; everything else, logits included, is float32.
      param_dtype: of the variables.

    Returns:
      A model whose variables have paths such as `blocks/0/attention/query/kernel`. Equal arguments give the very same
      object, so that functions of its `apply` are compiled once.

    Raises:
      Error: a size does not fit; the message names it.

    >>> model = transformer(vocabulary=11, width=8, depth=1, heads=2, length=6)
    >>> variables = model.init(jax.random.key(0))
    >>> variables["blocks"]["0"]["attention"]["query"]["kernel"].shape
    (8, 2, 4)
    >>> model.apply(variables, jnp.zeros((3, 5), jnp.uint8)).shape
    (3, 5, 11)
    """
    for name, value in (("vocabulary", vocabulary), ("depth", depth), ("heads", heads), ("length", length)):
        if value < 1:
            raise Error(f"{name}: expected at least 1, found {value}")
    if width < 1 or width % heads:
        raise Error(f"width: expected a multiple of heads, {heads}, found {width}")
    if not 0 <= dropout < 1:
        raise Error(f"dropout: expected from 0 to below 1, found {dropout}")
    sizes = (vocabulary, width, depth, heads, length, dropout, tied, stacked)
    return _made(_Sizes(*sizes, jnp.dtype(dtype), jnp.dtype(param_dtype)))


@functools.cache
def _made(sizes: _Sizes) -> Transformer:
    graph, _ = nnx.split(nnx.eval_shape(lambda: _Network(sizes, nnx.Rngs(0))))

    def init(key: jax.Array) -> Variables:
        variables: Variables = _with_names(nnx.to_pure_dict(nnx.state(_Network(sizes, nnx.Rngs(key)))))
        return variables

    def apply(
        variables: Variables, tokens: ArrayLike, *, key: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        tokens = jnp.asarray(tokens, jnp.int32)
        if tokens.shape[1] > sizes.length:
            raise Error(
                f"tokens: expected at most {sizes.length} in a row, the model's length, found {tokens.shape[1]}"
            )
        network = nnx.merge(graph, nnx.State(nnx.restore_int_paths(variables)))
        if not train or not sizes.dropout:
            return network(tokens, None)
        if key is None:
            raise Error("key: expected a PRNG key, as this model trains with dropout, found None")
        return network(tokens, jax.random.split(key, sizes.depth))

    return Transformer(init, apply, MappingProxyType(STACKED_AXES if sizes.stacked else AXES))


def _with_names(tree: Any) -> Any:
    """The same dicts with strings for keys, as checkpoints keep them: a list of blocks has integers."""
    return {str(key): _with_names(value) for key, value in tree.items()} if isinstance(tree, dict) else tree

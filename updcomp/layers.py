"""Where a model's program multiplies by its kernels: the neurons of any model that JAX can trace.

A function of a model is traced, and its program read: each product or convolution with a kernel is a layer, whatever
library wrote it. The same program can then be evaluated so that only some columns of a kernel are differentiated, which
saves the rest of the kernel's gradient instead of masking it.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from updcomp import trees
from updcomp.products import Product
from updcomp.program import Program, Uses
from updcomp.trees import PyTree
from updcomp.wire import views
from updcomp.wire.errors import LeafError
from updcomp.wire.views import View


class Layer(NamedTuple):
    """A kernel, and what its product is in a model's program."""

    kernel: str  # name of the leaf
    bias: str | None  # name of the vector that is added to the outputs, by the layer or by the norm after it
    view: View  # of the kernel: each column is a neuron
    depth: int  # place in the order of the program, from 0
    neurons: int
    fan_in: int  # weights of a neuron, its bias aside
    input: int  # which activation it reads; layers with the same input have the same number
    input_bytes: int  # of that activation
    output_size: int  # numbers that it gives
    flops: int  # of the product


class Columns(NamedTuple):
    """Some columns of a kernel, or elements of a vector, as what trains in its place."""

    numbers: jax.Array  # int32 (k,): distinct; from the number of columns on they stand for nothing
    values: jax.Array  # floating (fan_in, k)


def take(leaf: jax.Array, view: View, numbers: jax.Array) -> jax.Array:
    """The columns of a leaf.

    Args:
      leaf: a kernel or a vector.
      view: how it is read as one matrix (fan_in, fan_out).
      numbers: int32 (k,), as in `Columns`.

    Returns:
      (fan_in, k), or of a vector (k,); zeros where a number stands for nothing.

    >>> take(jnp.arange(4.0), View((), (0,)), jnp.array([2, 4])).tolist()
    [2.0, 0.0]
    """
    columns = views.split(leaf, view)[0] if view.in_axes else leaf
    return jnp.take(columns, numbers, axis=-1, mode="fill", fill_value=0)


def put(leaf: jax.Array, view: View, numbers: jax.Array, values: jax.Array) -> jax.Array:
    """The leaf with other values in these columns; the inverse of `take`.

    >>> put(jnp.zeros(3), View((), (0,)), jnp.array([2, 3]), jnp.ones(2)).tolist()
    [0.0, 0.0, 1.0]
    """
    if not view.in_axes:
        return leaf.at[numbers].set(values, mode="drop")
    matrix = views.split(leaf, view)[0].at[:, numbers].set(values, mode="drop")
    return views.join(matrix[None], leaf.shape, view)


def find(function: Callable[..., Any], variables: PyTree, *args: Any, names: Collection[str]) -> tuple[Layer, ...]:
    """The layers of a model, in the order of its program.

    A layer is a `dot_general` or a convolution (plain, grouped or depthwise) of something with a kernel, which may be
    transposed or cast before. A neuron is an index of the axes that are not summed over: a column of the kernel's view.
    Kernels that the program uses in any other way as well (as an embedding, in a scan, in a penalty) are left out.

    Args:
      function: (variables, *args) -> anything, such as a loss.
      variables: of the model: a pytree of arrays or `jax.ShapeDtypeStruct`.
      *args: its other arguments, or their shapes.
      names: of the leaves that may train, kernels and biases, as `trees.named_leaves` has them.

    Returns:
      `Layer`s; a kernel that is used more than once has the depth of its first use and the sums of all uses.

    >>> variables = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    >>> dense = lambda v, x: jnp.tanh(x @ v["w"] + v["b"][None])
    >>> find(dense, variables, jnp.ones((5, 3)), names=["w", "b"])[0][:6]
    ('w', 'b', View(in_axes=(0,), out_axes=(1,)), 0, 4, 3)
    """
    found: dict[str, Layer] = {}
    uses = Uses()
    inputs: dict[int, int] = {}

    def note(product: Product, activation: Any, kernel: Any) -> Any:
        out = product.apply(activation, kernel)
        number = inputs.setdefault(id(activation), len(inputs))
        kept.append(activation)  # so that its id stays its own
        neurons, size = product.neurons, out.size
        fan_in = math.prod(kernel.shape) // neurons
        new = Layer(
            product.name,
            None,
            product.view,
            len(found),
            neurons,
            fan_in,
            number,
            activation.size * activation.dtype.itemsize,
            size,
            product.flops(activation, kernel, out),
        )
        if (old := found.get(product.name)) is not None:
            if old.view != new.view:
                uses.others.add(product.name)
            new = old._replace(
                input_bytes=old.input_bytes + new.input_bytes,
                output_size=old.output_size + size,
                flops=old.flops + new.flops,
            )
        found[product.name] = new
        return out

    kept: list[Any] = []

    def traced(leaves: dict[str, Any], *args: Any) -> Any:
        return Program(function, variables, leaves, names, *args).run(note, uses)

    jax.eval_shape(traced, trees.named_leaves(variables), *args)
    shared = {bias for bias in uses.biases.values() if list(uses.biases.values()).count(bias) > 1}
    layers = [layer for layer in found.values() if layer.kernel not in uses.others]
    sizes = {name: leaf.size for name, leaf in trees.named_leaves(variables).items()}
    biases = {
        kernel: bias
        for kernel, bias in uses.biases.items()
        if bias not in shared and sizes[bias] == found[kernel].neurons
    }
    return tuple(
        layer._replace(depth=depth, bias=biases.get(layer.kernel))
        for depth, layer in enumerate(sorted(layers, key=lambda layer: layer.depth))
    )


def outputs(
    function: Callable[..., Any], variables: PyTree, *args: Any, names: Collection[str]
) -> dict[str, jax.Array]:
    """What every neuron gives, before its bias, for a batch.

    Args:
      function: as for `find`.
      variables: of the model.
      *args: its other arguments.
      names: of the kernels in question.

    Returns:
      Kernel's name -> (samples, positions, neurons); one position where there is no space, that of every use in turn.

    >>> outputs(lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, jnp.ones((3, 2)), names=["w"])["w"].shape
    (3, 1, 2)
    """
    found: dict[str, list[jax.Array]] = {}

    def keep(product: Product, activation: Any, kernel: Any) -> Any:
        out = product.apply(activation, kernel)
        last = product.neurons_last(out)
        samples = last.shape[0] if product.outer else 1
        found.setdefault(product.name, []).append(last.reshape(samples, -1, product.neurons))
        return out

    Program(function, variables, trees.named_leaves(variables), names, *args).run(keep, Uses())
    return {name: _beside(parts) for name, parts in found.items()}


def _beside(parts: list[jax.Array]) -> jax.Array:
    """All uses as positions of the same samples; of one sample, where they are of different numbers of rows."""
    if len({len(part) for part in parts}) > 1:
        parts = [part.reshape(1, -1, part.shape[-1]) for part in parts]
    return jnp.concatenate(parts, axis=1)


def evaluate(function: Callable[..., Any], variables: PyTree, chosen: Mapping[str, Columns], *args: Any) -> Any:
    """A function of a model of which only some columns are differentiated.

    The value is `function(variables, *args)`: the variables hold the columns already. The gradient with respect to the
    columns' values is that of the kernel at these columns, dW[:, j] = sum_n x[n] dy[n, j], computed for these j alone.
    Nothing is differentiated below the first of the chosen columns, and only what their gradients need is kept.

    Args:
      function: (variables, *args) -> a pytree of arrays.
      variables: of the model; not differentiated where a leaf is in `chosen`.
      chosen: kernel's name -> its columns, of the view that `find` gives. Biases are no part of it: `put` theirs into
        the variables, which are differentiated as usual.
      *args: the function's other arguments.

    Returns:
      What the function gives.

    Raises:
      LeafError: a name is that of no kernel, or the program uses it in another way as well; shapes do not fit.

    >>> w, x = jnp.ones((2, 3)), jnp.array([[1.0, 2.0]])
    >>> column = lambda values: evaluate(lambda v, x: jnp.sum(x @ v), w, {"": Columns(jnp.array([1]), values)}, x)
    >>> jax.grad(column)(w[:, 1:2])[:, 0].tolist()
    [1.0, 2.0]
    """
    if not chosen:
        return function(variables, *args)

    def by_columns(product: Product, activation: Any, kernel: Any) -> Any:
        return _by_columns(product, activation, kernel, *chosen[product.name])

    leaves = trees.named_leaves(variables)
    for name, columns in chosen.items():
        if name not in leaves or leaves[name].ndim < 2:
            expected = f"expected kernels of {sorted(leaves)}; a bias is put into the variables, as `put` does"
            raise LeafError(f"chosen: leaf {name!r}: {expected}")
        if columns.values.ndim != 2 or columns.values.shape[1:] != columns.numbers.shape:
            found = f"found {columns.values.shape} and {columns.numbers.shape}"
            raise LeafError(f"chosen: leaf {name!r}: expected values (fan_in, k) and numbers (k,), {found}")
    leaves = {name: lax.stop_gradient(leaf) if name in chosen else leaf for name, leaf in leaves.items()}
    return Program(function, variables, leaves, chosen, *args).run(by_columns, None)


def _by_columns(product: Product, activation: Any, kernel: Any, numbers: Any, values: Any) -> Any:
    """The product, whose gradient with respect to the kernel is computed for some columns alone."""

    @jax.custom_vjp
    def apply(activation: Any, kernel: Any, numbers: Any, values: Any) -> Any:
        return product.apply(activation, kernel)

    def forward(activation: Any, kernel: Any, numbers: Any, values: Any) -> Any:
        return product.apply(activation, kernel), (activation, kernel, numbers)

    def backward(kept: Any, change: Any) -> Any:
        activation, kernel, numbers = kept
        (to_activation,) = jax.vjp(lambda a: product.apply(a, kernel), activation)[1](change)
        columns = jnp.take(product.neurons_last(change), numbers, -1, mode="fill", fill_value=0)
        zeros = jnp.zeros(values.shape, kernel.dtype)
        (to_values,) = jax.vjp(lambda v: product.of_columns(activation, v, numbers), zeros)[1](columns)
        return to_activation, None, None, to_values.astype(values.dtype)

    apply.defvjp(forward, backward)
    return apply(activation, kernel, numbers, values)

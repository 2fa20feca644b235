"""Where a model's program multiplies by its kernels: the neurons of any model that JAX can trace.

A function of a model is traced, and its program read: each product or convolution with a kernel is a layer, whatever
library wrote it. The same program can then be evaluated so that only some columns of a kernel are differentiated, which
saves the rest of the kernel's gradient instead of masking it.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from updcomp import products, trees
from updcomp.products import Kernel, Product
from updcomp.trees import PyTree
from updcomp.wire import views
from updcomp.wire.errors import LeafError
from updcomp.wire.views import View

_CALLS = ("jit", "pjit", "closed_call", "core_call")
_REMATS = ("remat", "remat2", "checkpoint")
_CASTS = ("convert_element_type", "copy")
_SAME_ELEMENTS = (*_CASTS, "broadcast_in_dim", "reshape", "squeeze", "expand_dims")  # of a vector
_LINEAR = ("add", "add_any", "sub", "mul", "div", *_CASTS, "reshape", "transpose")  # between a layer and its bias


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
    matrix = views.split(leaf, view)[0].at[:, numbers].set(values, mode="drop", unique_indices=False)
    return views.join(matrix[None], leaf.shape, view)


class _Vector(NamedTuple):
    name: str


class _Output(NamedTuple):
    kernel: str


_Mark = Kernel | _Vector | _Output | None  # what is known of a value of the program


def find(function: Callable[..., Any], variables: PyTree, *args: Any, names: Collection[str]) -> tuple[Layer, ...]:
    """The layers of a model, in the order of its program.

    A layer is a `dot_general` or a convolution (plain, grouped or depthwise) of something with a kernel, which may be
    transposed or cast before. A neuron is an index of the axes that are not summed over: a column of the kernel's view.
    Kernels that the program uses in any other way as well (as an embedding, in a scan, in a penalty) are left out.

    Args:
      function: (variables, *args) -> anything, such as a loss.
      variables: of the model: a pytree of arrays or `jax.ShapeDtypeStruct`.
      *args: its other arguments, or their shapes.
      names: of the leaves that may train.

    Returns:
      `Layer`s; a kernel that is used more than once has the depth of its first use and the sums of all uses.

    >>> variables = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    >>> dense = lambda v, x: jnp.tanh(x @ v["w"] + v["b"][None])
    >>> find(dense, variables, jnp.ones((5, 3)), names=["w", "b"])[0][:6]
    ('w', 'b', View(in_axes=(0,), out_axes=(1,)), 0, 4, 3)
    """
    found: dict[str, Layer] = {}
    uses = _Uses()
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
        return _Program(function, variables, leaves, names, *args).run(note, uses)

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

    _Program(function, variables, trees.named_leaves(variables), names, *args).run(keep, _Uses())
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
      chosen: kernel's name -> its columns, of the view that `find` gives.
      *args: the function's other arguments.

    Returns:
      What the function gives.

    Raises:
      LeafError: the program uses a chosen kernel in another way as well.

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
    leaves = {name: lax.stop_gradient(leaf) if name in chosen else leaf for name, leaf in leaves.items()}
    return _Program(function, variables, leaves, chosen, *args).run(by_columns, None)


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
        columns = product.neurons_last(change)
        columns = jnp.take(columns.reshape(*columns.shape[: product.outer], -1), numbers, -1, mode="fill", fill_value=0)
        zeros = jnp.zeros(values.shape, kernel.dtype)
        (to_values,) = jax.vjp(lambda v: product.of_columns(activation, v, numbers), zeros)[1](columns)
        return to_activation, None, None, to_values.astype(values.dtype)

    apply.defvjp(forward, backward)
    return apply(activation, kernel, numbers, values)


class _Uses:
    """What else the program does with the leaves; nobody asks where it is evaluated to be differentiated."""

    def __init__(self) -> None:
        self.others: set[str] = set()  # kernels that are used in another way as well
        self.biases: dict[str, str] = {}  # kernel -> the vector that is added to its outputs


Visit = Callable[[Product, Any, Any], Any]
"""(product, activation, kernel as it is here) -> its result"""


class _Program:
    """The program of a function, with the leaves of the model as its first inputs."""

    def __init__(
        self,
        function: Callable[..., Any],
        variables: PyTree,
        leaves: dict[str, Any],
        names: Collection[str],
        *args: Any,
    ) -> None:
        def of_leaves(leaves: dict[str, Any], *args: Any) -> Any:
            return function(trees.replace(variables, leaves), *args)

        self._closed, shapes = jax.make_jaxpr(of_leaves, return_shape=True)(leaves, *args)
        self._structure = jax.tree.structure(shapes)
        self._inputs = jax.tree.leaves((leaves, *args))
        self._marks: list[_Mark] = [
            _first_mark(name, leaves[name]) if name in names else None for name in sorted(leaves)
        ]
        self._marks += [None] * (len(self._inputs) - len(self._marks))

    def run(self, visit: Visit, uses: _Uses | None) -> Any:
        """What the function gives, where every product with a kernel is what `visit` says."""
        out, _ = _evaluate(self._closed.jaxpr, self._closed.consts, self._inputs, self._marks, visit, uses)
        return jax.tree.unflatten(self._structure, out)


def _first_mark(name: str, leaf: Any) -> _Mark:
    if leaf.ndim >= 2:
        return Kernel(name, tuple(range(leaf.ndim)))
    return _Vector(name) if leaf.ndim == 1 else None


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], marks: Sequence[_Mark], visit: Visit, uses: _Uses | None
) -> tuple[list[Any], list[_Mark]]:
    """Evaluates a program, equation by equation, within whatever trace JAX is in."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    known: dict[Any, _Mark] = dict(zip(jaxpr.invars, marks, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    def mark(atom: Any) -> _Mark:
        return None if hasattr(atom, "val") else known.get(atom)

    for equation in jaxpr.eqns:
        given, marked = [read(atom) for atom in equation.invars], [mark(atom) for atom in equation.invars]
        with getattr(equation.ctx, "manager", contextlib.nullcontext()):
            out, out_marks = _step(equation, given, marked, visit, uses)
        values.update(zip(equation.outvars, out, strict=True))
        known.update(zip(equation.outvars, out_marks, strict=True))
    return [read(atom) for atom in jaxpr.outvars], [mark(atom) for atom in jaxpr.outvars]


def _step(
    equation: Any, given: list[Any], marks: list[_Mark], visit: Visit, uses: _Uses | None
) -> tuple[list[Any], list[_Mark]]:
    """The results of an equation, and what is known of them."""
    name, parameters = equation.primitive.name, equation.params
    if any(marks):
        if name in _CALLS:
            inner = parameters["jaxpr" if "jaxpr" in parameters else "call_jaxpr"]
            return _evaluate(inner.jaxpr, inner.consts, given, marks, visit, uses)
        if name in _REMATS and uses is not None:  # what is found must not stay in a trace of its own
            return _evaluate(parameters["jaxpr"], (), given, marks, visit, uses)
        if name in _REMATS:
            run = lambda *given: _evaluate(parameters["jaxpr"], (), given, marks, visit, uses)[0]  # noqa: E731
            options = {key: parameters[key] for key in ("prevent_cse", "policy")}
            return jax.checkpoint(run, **options)(*given), [None] * len(equation.outvars)
        kernels = {place: mark for place, mark in enumerate(marks) if isinstance(mark, Kernel)}
        if (found := products.of_equation(equation, given, kernels)) is not None:
            product, activation, kernel = found
            return [visit(product, given[activation], given[kernel])], [_Output(product.name)]
    out = equation.primitive.bind(*given, **equation.primitive.get_bind_params(parameters))
    results = list(out) if equation.primitive.multiple_results else [out]
    return results, [_mark_of(equation, marks, uses)] + [None] * (len(results) - 1)


def _mark_of(equation: Any, marks: list[_Mark], uses: _Uses | None) -> _Mark:
    """What is known of an equation's first result."""
    name = equation.primitive.name
    for kernel in (mark for mark in marks if isinstance(mark, Kernel)):
        if name in _CASTS:
            return kernel
        if name == "transpose":
            return Kernel(kernel.name, tuple(kernel.axes[axis] for axis in equation.params["permutation"]))
        if uses is None:
            used = f"expected only products and convolutions with it, found {name!r}"
            raise LeafError(f"leaf {kernel.name!r}: {used}; its columns cannot train alone")
        uses.others.add(kernel.name)
    vectors = [mark for mark in marks if isinstance(mark, _Vector)]
    results = [mark for mark in marks if isinstance(mark, _Output)]
    if len(results) == 1 and name in _LINEAR:
        if vectors and name in ("add", "add_any"):
            if uses is not None:
                uses.biases[results[0].kernel] = vectors[0].name
            return None
        return results[0] if vectors or len(marks) == 1 or not _is_full(equation, marks) else None
    return vectors[0] if len(vectors) == 1 and len(marks) == 1 and name in _SAME_ELEMENTS else None


def _is_full(equation: Any, marks: list[_Mark]) -> bool:
    """Whether the other operand of an elementwise equation may differ between samples, as in a residual network."""
    ((_, other),) = [(m, a) for m, a in zip(marks, equation.invars, strict=True) if not isinstance(m, _Output)]
    shape = other.aval.shape
    return bool(shape) and shape[0] != 1

"""The program of a function of a model, read and evaluated equation by equation, its products with kernels apart."""

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax

from updcomp import products, trees
from updcomp.products import Kernel, Product
from updcomp.trees import PyTree
from updcomp.wire.errors import LeafError

_CALLS = ("jit", "pjit", "closed_call", "core_call")
_REMATS = ("remat", "remat2", "checkpoint")
_CASTS = ("convert_element_type", "copy")
_SAME_ELEMENTS = (*_CASTS, "broadcast_in_dim", "reshape", "squeeze", "expand_dims")  # of a vector
_LINEAR = ("add", "add_any", "sub", "mul", "div", *_CASTS, "reshape", "transpose")  # between a layer and its bias


class _Vector(NamedTuple):
    name: str


class _Output(NamedTuple):
    kernel: str


_Mark = Kernel | _Vector | _Output | None  # what is known of a value of the program


class Uses:
    """What else the program does with the leaves; nobody asks where it is evaluated to be differentiated."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.others: set[str] = set()  # kernels that are used in another way as well
        self.biases: dict[str, str] = {}  # kernel -> the vector that is added to its outputs


Visit = Callable[[Product, Any, Any], Any]
"""(product, activation, kernel as it is here) -> its result"""


class Program:
    """The program of a function, with the leaves of the model as its first inputs."""

    def __init__(
        self,
        function: Callable[..., Any],
        variables: PyTree,
        leaves: dict[str, Any],
        names: Collection[str],
        *args: Any,
    ) -> None:
        """Traces the function.

        Args:
          function: (variables, *args) -> a pytree of arrays.
          variables: of the model.
          leaves: name -> leaf, in place of those of the variables.
          names: of the leaves to watch.
          *args: its other arguments.
        """

        def of_leaves(leaves: dict[str, Any], *args: Any) -> Any:
            return function(trees.replace(variables, leaves), *args)

        self._closed, shapes = jax.make_jaxpr(of_leaves, return_shape=True)(leaves, *args)
        self._structure = jax.tree.structure(shapes)
        self._inputs = jax.tree.leaves((leaves, *args))
        self._marks: list[_Mark] = [
            _first_mark(name, leaves[name]) if name in names else None for name in sorted(leaves)
        ]
        self._marks += [None] * (len(self._inputs) - len(self._marks))

    def run(self, visit: Visit, uses: Uses | None) -> Any:
        """What the function gives, where every product with a kernel is what `visit` says."""
        out, _ = _evaluate(self._closed.jaxpr, self._closed.consts, self._inputs, self._marks, visit, uses)
        return jax.tree.unflatten(self._structure, out)


def _first_mark(name: str, leaf: Any) -> _Mark:
    if leaf.ndim >= 2:
        return Kernel(name, tuple(range(leaf.ndim)))
    return _Vector(name) if leaf.ndim == 1 else None


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], marks: Sequence[_Mark], visit: Visit, uses: Uses | None
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
    equation: Any, given: list[Any], marks: list[_Mark], visit: Visit, uses: Uses | None
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


def _mark_of(equation: Any, marks: list[_Mark], uses: Uses | None) -> _Mark:
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

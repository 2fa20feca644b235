"""Products with a kernel, as equations of a traced program have them: what they are, whole and column by column."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from updcomp.convolution import convolve
from updcomp.wire.views import View


class Kernel(NamedTuple):
    """A leaf of the model, where the program has it."""

    name: str
    axes: tuple[int, ...]  # the leaf's axes, in the order that they have here


class Product(NamedTuple):
    """A product with a kernel, or a convolution."""

    name: str  # of the kernel
    view: View  # of the leaf
    neurons: int
    outer: int  # axes of the result that are no neurons
    apply: Callable[[Any, Any], Any]  # (activation, kernel as it is here) -> result
    neurons_last: Callable[[Any], Any]  # result -> samples first, then positions, neurons in the leaf's order last
    of_columns: Callable[[Any, Any, Any], Any]  # (activation, (fan_in, k), numbers) -> the same of k columns alone
    flops: Callable[[Any, Any, Any], int]  # (activation, kernel, result) -> operations


def of_equation(equation: Any, given: Sequence[Any], kernels: Mapping[int, Kernel]) -> tuple[Product, int, int] | None:
    """The product with a kernel that an equation is.

    Args:
      equation: of a traced program.
      given: its operands.
      kernels: place -> which kernel that operand is.

    Returns:
      The product, and the places of the activation and of the kernel; None where it is something else.
    """
    name = equation.primitive.name
    if len(kernels) != 1:
        return None
    ((kernel, mark),) = kernels.items()
    if name == "dot_general":
        product = _dot(equation.params, mark, given[kernel].shape, given[1 - kernel].ndim, first=kernel == 0)
        return None if product is None else (product, 1 - kernel, kernel)
    places, parameters = [0, 1], equation.params
    convolution: Callable[..., Any] = lax.conv_general_dilated
    if name == "cond" and parameters.get("branches_platforms"):  # one branch for each platform, all of them equal
        for branch in parameters["branches"]:
            inner = branch.jaxpr
            if [e.primitive.name for e in inner.eqns] == ["conv_general_dilated"]:
                places = [1 + inner.invars.index(atom) for atom in inner.eqns[0].invars]
                name, parameters, convolution = "conv_general_dilated", inner.eqns[0].params, convolve
    if name != "conv_general_dilated" or places[1] != kernel or parameters["batch_group_count"] != 1:
        return None
    return _convolution(parameters, mark, given[kernel].shape, convolution), places[0], kernel


def _dot(
    parameters: Mapping[str, Any], mark: Kernel, shape: Sequence[int], ndim: int, *, first: bool
) -> Product | None:
    (left, right), (left_batch, _) = parameters["dimension_numbers"]
    if left_batch:
        return None
    summed, over = (left, right) if first else (right, left)  # axes of the kernel, and of the activation
    options = {key: parameters[key] for key in ("precision", "preferred_element_type")}
    free = [axis for axis in range(len(shape)) if axis not in summed]
    if not free or not summed:
        return None
    view = View(tuple(sorted(mark.axes[axis] for axis in summed)), tuple(sorted(mark.axes[axis] for axis in free)))
    outer = ndim - len(over)
    by_leaf = sorted(range(len(free)), key=lambda i: mark.axes[free[i]])

    def apply(activation: Any, kernel: Any) -> Any:
        operands = (kernel, activation) if first else (activation, kernel)
        return lax.dot_general(*operands, parameters["dimension_numbers"], **options)

    def neurons_last(out: Any) -> Any:
        start = 0 if first else outer
        rest = range(len(free), out.ndim) if first else range(outer)
        moved = out.transpose(*rest, *(start + i for i in by_leaf))
        return moved.reshape(*moved.shape[:outer], -1)

    def of_columns(activation: Any, values: Any, numbers: Any) -> Any:
        order = sorted(range(len(summed)), key=lambda i: mark.axes[summed[i]])
        matrix = values.reshape(*(shape[summed[i]] for i in order), values.shape[-1])
        axes = tuple(over[i] for i in order), tuple(range(len(order)))
        return lax.dot_general(activation, matrix, (axes, ((), ())), **options)

    neurons, fan_in = (math.prod(shape[axis] for axis in axes) for axes in (free, summed))

    def flops(activation: Any, kernel: Any, out: Any) -> int:
        return 2 * out.size * fan_in

    return Product(mark.name, view, neurons, outer, apply, neurons_last, of_columns, flops)


def _convolution(
    parameters: Mapping[str, Any], mark: Kernel, shape: Sequence[int], convolution: Callable[..., Any]
) -> Product:
    numbers_of = parameters["dimension_numbers"]
    (_, channels), (out_axis, in_axis), (batch, features) = (
        spec[:2] for spec in (numbers_of.lhs_spec, numbers_of.rhs_spec, numbers_of.out_spec)
    )
    neurons, groups = shape[out_axis], parameters["feature_group_count"]
    rest = sorted(axis for axis in range(len(shape)) if axis != out_axis)
    leaf_out = mark.axes[out_axis]
    view = View(tuple(sorted(mark.axes[axis] for axis in rest)), (leaf_out,))
    options = {
        key: value for key, value in parameters.items() if key not in ("feature_group_count", "batch_group_count")
    }
    strides, padding = options.pop("window_strides"), options.pop("padding")

    def apply(activation: Any, kernel: Any, groups: int = groups) -> Any:
        return convolution(activation, kernel, strides, padding, feature_group_count=groups, **options)

    def neurons_last(out: Any) -> Any:
        others = [axis for axis in range(out.ndim) if axis not in (batch, features)]
        return out.transpose(batch, *others, features)

    def of_columns(activation: Any, values: Any, numbers: Any) -> Any:
        by_leaf = sorted(rest, key=lambda axis: mark.axes[axis])
        kernel = values.reshape(*(shape[axis] for axis in by_leaf), values.shape[-1])
        here = [by_leaf.index(axis) if axis != out_axis else len(rest) for axis in range(len(shape))]
        kernel = kernel.transpose(here)
        if groups == 1:
            return neurons_last(apply(activation, kernel))
        # Each neuron reads the channels of its own group.
        width = shape[in_axis]
        read = (numbers // (neurons // groups))[:, None] * width + jnp.arange(width)[None]
        own = jnp.take(activation, read.reshape(-1), channels, mode="clip")
        return neurons_last(apply(own, kernel, values.shape[-1]))

    def flops(activation: Any, kernel: Any, out: Any) -> int:
        """Products with the zeros of the padding do not count, as they do not for compilers."""
        sizes = [activation.shape[axis] for axis in numbers_of.lhs_spec[2:]]
        windows = [kernel.shape[axis] for axis in numbers_of.rhs_spec[2:]]
        outputs = [out.shape[axis] for axis in numbers_of.out_spec[2:]]
        ends = zip(
            sizes, windows, outputs, strides, padding, options["lhs_dilation"], options["rhs_dilation"], strict=True
        )
        taps = math.prod(_taps(*end) for end in ends)
        return 2 * out.shape[batch] * neurons * shape[in_axis] * taps

    return Product(mark.name, view, neurons, len(shape) - 1, apply, neurons_last, of_columns, flops)


def _taps(size: int, window: int, outputs: int, stride: int, pad: tuple[int, int], spread: int, dilation: int) -> int:
    """How many pairs of an output and a kernel pixel along an axis read a pixel that is there."""
    places = np.arange(outputs)[:, None] * stride + np.arange(window)[None] * dilation - pad[0]
    return int(np.sum((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)))

"""Leaves of any dtype as bits, and the dtypes that NumPy lacks.

A dtype that NumPy lacks (bfloat16, the float8 family) is held as its bit pattern in a structured dtype of one field
whose name is the dtype's: `np.dtype([("bfloat16", "<u2")])`. It survives `.npz` files and needs no other package.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from updcomp.wire import errors

Array: TypeAlias = np.ndarray[Any, Any]
Model: TypeAlias = Mapping[str, Array]  # leaf name -> array; a lazy one reads a leaf when it is asked for

BFLOAT16 = np.dtype([("bfloat16", "<u2")])

_SLICE = 1 << 20
_FLOAT16_OVERFLOW = np.float32(65520)  # half-way to the next after the largest

_PLAIN = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
}
_FLOATS: dict[str, type[np.floating[Any]]] = {
    "float16": np.float32,
    "bfloat16": np.float32,
    "float32": np.float32,
    "float64": np.float64,
}
_EXPONENT = {"float16": (10, 5), "bfloat16": (7, 8), "float32": (23, 8), "float64": (52, 11)}  # mantissa, exponent bits


class Spec(NamedTuple):
    """What is known of a leaf before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]  # as `hold` gives it

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the leaf."""
        return self.size * self.dtype.itemsize


def specs(model: Model) -> dict[str, Spec]:
    """The shape and dtype of every leaf, in sorted name order; a lazy model says them in `specs` and reads nothing.

    >>> specs({"w": np.zeros((2, 3), ">f4")})
    {'w': Spec(shape=(2, 3), dtype=dtype('<f4'))}
    """
    known: Mapping[str, Spec] = getattr(model, "specs", {})
    return {name: known[name] if known else spec_of(model[name]) for name in sorted(model)}


def spec_of(leaf: Array) -> Spec:
    """The shape and dtype of a leaf, as `hold` gives them."""
    held = hold(leaf[:0] if leaf.ndim else leaf)
    return Spec(leaf.shape, held.dtype)


def name(dtype: np.dtype[Any]) -> str:
    """The dtype's name: NumPy's own, or the field name where NumPy lacks the dtype.

    Raises:
      DtypeError: the dtype cannot be a leaf's (text, objects, dates, records of several fields).

    >>> name(np.dtype("<f4")), name(BFLOAT16)
    ('float32', 'bfloat16')
    """
    if dtype.names is None and dtype.name in _PLAIN:
        return dtype.name
    if dtype.names is not None and len(dtype.names) == 1:
        field = dtype[0]
        found = dtype.names[0]
        reserved = found in _PLAIN or (found == "bfloat16" and field.itemsize != 2)
        if field.kind == "u" and dtype.itemsize == field.itemsize and found.isidentifier() and not reserved:
            return found
    raise errors.DtypeError(
        f"dtype {dtype}: expected a number, or a bit pattern such as np.dtype([('bfloat16', '<u2')]); "
        "convert the leaf or leave it out"
    )


def named(text: str, width: int) -> np.dtype[Any]:
    """The dtype of a name, as `hold` gives it: the inverse of `name`.

    Args:
      text: the name.
      width: bytes of an element.

    Returns:
      The dtype.

    Raises:
      DtypeError: no leaf has such a dtype.

    >>> named("float32", 4).str, named("bfloat16", 2) == BFLOAT16
    ('<f4', True)
    """
    is_plain = text in _PLAIN
    if not is_plain and not (text.isidentifier() and width in (1, 2, 4, 8)):
        raise errors.DtypeError(f"dtype {text!r}: expected a name, of 1, 2, 4 or 8 bytes, found another, of {width}")
    found = np.dtype(text).newbyteorder("<") if is_plain else np.dtype([(text, f"<u{width}")])
    if found.itemsize != width or name(found) != text:
        raise errors.DtypeError(f"dtype {text}: expected one of {width} bytes, found {found.itemsize}")
    return found


def hold(leaf: Array) -> Array:
    """The leaf as both sides see it: contiguous, little-endian, ml_dtypes as their bit patterns; no copy if it is so.

    Args:
      leaf: any array, 0-d, empty, strided and big-endian ones too.

    Returns:
      The same numbers, shape and bits, C-contiguous and little-endian.

    Raises:
      DtypeError: the dtype cannot be a leaf's.

    >>> hold(np.arange(3, dtype=">i2")).dtype.str
    '<i2'
    """
    leaf = np.asarray(leaf)
    if leaf.dtype.isbuiltin == 2:  # registered by another package, as those of ml_dtypes are
        bits = np.dtype([(leaf.dtype.name, f"<u{leaf.dtype.itemsize}")])
        leaf = np.ascontiguousarray(leaf).reshape(leaf.shape).view(bits)
    name(leaf.dtype)
    little = leaf.dtype.newbyteorder("<")
    if leaf.flags.c_contiguous and leaf.dtype == little:
        return leaf
    # ascontiguousarray alone would make a 0-d leaf 1-d.
    return np.ascontiguousarray(leaf, little).reshape(leaf.shape)


def flat_bits(leaf: Array) -> Array:
    """The flat unsigned view of a held leaf: one element each, two for a complex number.

    Args:
      leaf: as `hold` returns it.

    Returns:
      uint8, uint16, uint32 or uint64 (n,) or, of a complex leaf, (2 n,); shares the leaf's memory.

    >>> flat_bits(np.float32([1, -2])).tolist()
    [1065353216, 3221225472]
    """
    width = leaf.dtype.itemsize // (2 if leaf.dtype.kind == "c" else 1)
    return leaf.reshape(-1).view(f"<u{width}")


def same_bits(leaf: Array, other: Array) -> bool:
    """Whether two held leaves of the same shape have the same bits; found early where they do not.

    >>> same_bits(np.float32([0]), np.float32([-0.0]))
    False
    """
    one, two = flat_bits(leaf), flat_bits(other)
    return all(np.array_equal(one[i : i + _SLICE], two[i : i + _SLICE]) for i in range(0, len(one), _SLICE))


def elements(spec: Spec) -> int:
    """The length of `flat_bits` of such a leaf."""
    return spec.size * (2 if spec.dtype.kind == "c" else 1)


def check_bits(leaf: Array) -> None:
    """Checks that a held leaf has bits that its dtype has: a boolean is 0 or 1.

    Raises:
      LeafError: a boolean is another byte.
    """
    if leaf.dtype.kind == "b" and (found := int(flat_bits(leaf).max(initial=0))) > 1:
        raise errors.LeafError(f"booleans: expected bytes of 0 and 1, found {found}")


def exponent_histogram(leaf: Array) -> Array | None:
    """How often each exponent field occurs: int64 (highest + 1,); None where the dtype has none.

    >>> exponent_histogram(np.float16([0, 1, 1])).tolist()[:16]
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    """
    if name(leaf.dtype) not in _EXPONENT:
        return None
    flat, counts = leaf.reshape(-1), np.zeros(1 << _EXPONENT[name(leaf.dtype)][1], np.int64)
    for start in range(0, len(flat), _SLICE):
        counts += np.bincount(_exponent_fields(flat[start : start + _SLICE]), minlength=len(counts))
    return counts


def flushes_subnormals() -> bool:
    """Whether this process computes with subnormal numbers as if they were 0, which some libraries switch on."""
    tiny = np.array([2.0**-126], np.float32)
    return bool((tiny * np.float32(0.5) == 0).any())


def from_bits(bits: Array, like: Array) -> Array:
    """The leaf with these flat bits and the shape and dtype of `like`; shares the memory of `bits`."""
    return bits.view(like.dtype).reshape(like.shape)


def compute_dtype(leaf: Array) -> type[np.floating[Any]]:
    """The dtype in which increments are added: float64 for float64, float32 for the smaller floats.

    Raises:
      DtypeError: the leaf is not float16, bfloat16, float32 or float64.
    """
    found = name(leaf.dtype)
    if found not in _FLOATS:
        raise errors.DtypeError(
            f"dtype {found}: expected one of {', '.join(_FLOATS)}; send the leaf exactly (Raw or Exact)"
        )
    return _FLOATS[found]


def takes_increments(dtype: np.dtype[Any]) -> bool:
    """Whether leaves of this dtype may be changed by multiples of a step; integers and float8 stay exact.

    >>> takes_increments(BFLOAT16), takes_increments(np.dtype(bool))
    (True, False)
    """
    return name(dtype) in _FLOATS


def to_floats(leaf: Array) -> Array:
    """The values of a held float leaf in its compute dtype, exactly; no copy where the dtype is the same.

    >>> to_floats(np.array([0x3F80], np.uint16).view(BFLOAT16)).tolist()
    [1.0]
    """
    compute = compute_dtype(leaf)
    if leaf.dtype == BFLOAT16:
        return (leaf.view("<u2").astype("<u4") << np.uint32(16)).view("<f4")
    return leaf.astype(compute, copy=False)


def round_floats(values: Array, dtype: np.dtype[Any]) -> Array:
    """Rounds to the leaf's dtype, to nearest, ties to even; too large a value becomes infinite, a NaN anything.

    Args:
      values: float32, or float64 for a float64 leaf; any shape.
      dtype: the leaf's.

    Returns:
      The same shape in the leaf's dtype.

    >>> round_floats(np.float32([1.00390625]), BFLOAT16).view("<u2").tolist() == [0x3F80]
    True
    """
    if dtype == BFLOAT16:
        bits = values.view("<u4")
        # Adding just under half an ulp, and the last kept bit, rounds to nearest with ties to even.
        kept = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return kept.astype("<u2").view(dtype)
    if dtype == np.float16:
        too_large = np.abs(values) >= _FLOAT16_OVERFLOW
        if too_large.any():  # NumPy takes five times as long to find that out
            values = np.where(too_large, np.copysign(np.float32(np.inf), values), values)
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def layout(leaf: Array) -> tuple[int, int] | None:
    """(mantissa, exponent) bits of the leaf's patterns; None where the dtype is no float that NumPy or bfloat16 has.

    >>> layout(np.float32(1))
    (23, 8)
    """
    return _EXPONENT.get(name(leaf.dtype))


def exponents(leaf: Array) -> Array | None:
    """The exponent field of every weight, which predicts how likely it changes; None where the dtype has none.

    Args:
      leaf: as `hold` returns it.

    Returns:
      int64 (n,), from 0 (zero, subnormal) to 31, 255 or 2047 (infinite, NaN).

    >>> exponents(np.float32([0, 1, -2]))
    array([  0, 127, 128])
    """
    return _exponent_fields(leaf) if name(leaf.dtype) in _EXPONENT else None


def _exponent_fields(leaf: Array) -> Array:
    mantissa, exponent = _EXPONENT[name(leaf.dtype)]
    bits = flat_bits(leaf)
    fields: Array = (bits >> bits.dtype.type(mantissa)) & bits.dtype.type((1 << exponent) - 1)
    return fields.astype(np.int64)

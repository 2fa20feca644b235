"""The maps of mapped blocks in Python integers, written from FORMAT.md; shares no code with the first reader."""

import itertools
import math

from tests.wire.twin_basis import basis, hashes, transpose


def change(number, v, rank, shape, floats, seed, index):
    """(integers, whether they are in the order of the leaf in place of that of its matrices)."""
    if number >= 8:
        return FLAT[number - 8](v, math.prod(shape), seed, index), True
    left, right = PRODUCTS[number](v, rank, shape, floats, seed, index)
    rows = [product(a, b) for a, b in zip(left, right, strict=True)]
    return list(itertools.chain(*itertools.chain(*rows))), False


def product(left, right):
    """Left times the transpose of right, both lists of rows."""
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in right] for a in left]


def shaped(flat, *shape):
    if len(shape) == 1:
        return list(flat)
    step = len(flat) // shape[0]
    return [shaped(flat[i * step : (i + 1) * step], *shape[1:]) for i in range(shape[0])]


def signs(stream, count):
    return [-1 if next(stream) >> 63 else 1 for _ in range(count)]


def factors(v, _, shape, *__):
    stack, f, g = shape
    r = len(v) // (stack * (f + g))
    return shaped(v[: stack * f * r], stack, f, r), shaped(v[stack * f * r :], stack, g, r)


def half(v, _, shape, __, seed, index):
    stack, f, g = shape
    r = len(v) // (stack * g)
    return shaped(signs(hashes(seed, index, 1), stack * f * r), stack, f, r), shaped(v, stack, g, r)


def scaled(v, _, shape, __, seed, index):
    stack, f, g = shape
    r, stream = len(v) // stack - g, hashes(seed, index, 1)
    left, right = (shaped(signs(stream, stack * rows * r), stack, rows, r) for rows in (f, g))
    d, b = shaped(v[: stack * r], stack, r), shaped(v[stack * r :], stack, g)
    for i in range(stack):
        left[i] = [[x * y for x, y in zip(row, d[i], strict=True)] for row in left[i]]
        right[i] = [[x * scale for x in row] for row, scale in zip(right[i], b[i], strict=True)]
    return left, right


def mixed(v, r, shape, _, seed, index):
    stack, f, g = shape
    stream, sides = hashes(seed, index, 1), []
    for rows, part in ((f, v[: len(v) // 2]), (g, v[len(v) // 2 :])):
        total = [0] * (stack * rows * r)
        for value in part:
            total = [t + value * sign for t, sign in zip(total, signs(stream, len(total)), strict=True)]
        sides.append(shaped(total, stack, rows, r))
    return sides


def grouped(v, r, shape, _, seed, index):
    stack, f, g = shape
    stream, sides = hashes(seed, index, 1), []
    for rows, part in ((f, v[: len(v) // 2]), (g, v[len(v) // 2 :])):
        order = sorted((next(stream), i) for i in range(stack * rows * r))
        entries = [0] * len(order)
        for rank, (_, i) in enumerate(order):
            entries[i] = part[rank % len(part)]
        sides.append(shaped(entries, stack, rows, r))
    return sides


def cosine(phase):
    """2^14 cos(2 pi phase / 2^20)."""
    phase %= 2**20
    phase = min(phase, 2**20 - phase)
    quarter = 2**19 - phase if phase > 2**18 else phase
    square, total = quarter * quarter >> 16, 0
    for term in (26, 964, 21877, 265992, 1293629, 2**20):
        total = term - (square * total >> 20)
    found = total + 32 >> 6
    return -found if phase > 2**18 else found


def waves(v, _, shape, __, seed, index):
    stack, f, g = shape
    m = len(v) // stack
    stream = hashes(seed, index, 0)
    places = sorted(i for _, i in sorted((next(stream), i) for i in range(f * g))[:m])

    def side(rows, frequencies, sign):
        phases = [[(t * k % rows * 2**20 + rows // 2) // rows for k in frequencies] for t in range(rows)]
        return [[cosine(p) for p in row] + [sign * cosine(p - 2**18) for p in row] for row in phases]

    left, right = side(f, [p // g for p in places], 1), side(g, [p % g for p in places], -1)
    scales = [shaped(v, stack, m)[i] * 2 for i in range(stack)]
    return [left] * stack, [[[x * c for x, c in zip(row, s, strict=True)] for row in right] for s in scales]


def in_basis(cores, rank, shape, floats, seed, index):
    left, right = basis(floats, shape, rank, seed, index)
    inner = [product(transpose(a), transpose(core)) for a, core in zip(left, cores, strict=True)]
    return inner, [transpose(b) for b in right]


def tied(v, r, shape, floats, seed, index):
    stack, f, g = shape
    a, b = min(r, f), min(r, g)
    stream, total = hashes(seed, index, 0), [0] * (stack * a * b)
    for value in v:
        total = [t + value * sign for t, sign in zip(total, signs(stream, len(total)), strict=True)]
    return in_basis(shaped(total, stack, a, b), r, shape, floats, seed, index)


def coefficients(v, _, shape, floats, seed, index):
    stack, f, g = shape
    r = next(r for r in range(1, max(f, g) + 1) if stack * min(r, f) * min(r, g) == len(v))
    return in_basis(shaped(v, stack, min(r, f), min(r, g)), r, shape, floats, seed, index)


def placed(v, size, seed, index):
    stream, entries = hashes(seed, index, 0), [0] * size
    chosen = sorted((next(stream), i) for i in range(size))[: len(v)]
    for place, value in zip(sorted(i for _, i in chosen), v, strict=True):
        entries[place] = value
    return entries


def levels(v, *_):
    return [256 * q + v[0] for q in v[1:]]


def block_of(size):
    return 2 ** min((size - 1).bit_length(), 12)


def walsh(x):
    """Entry j is the sum of x_i, negated where i & j has an odd number of bits."""
    if len(x) == 1:
        return x
    low, high = walsh(x[::2]), walsh(x[1::2])
    even, odd = ([a + sign * b for a, b in zip(low, high, strict=True)] for sign in (1, -1))
    return [value for pair in zip(even, odd, strict=True) for value in pair]


def rotated(x, size, seed, index):
    block, flips = block_of(size), signs(hashes(seed, index, 1), len(x))
    sums = [value for start in range(0, len(x), block) for value in walsh(x[start : start + block])]
    return [total * sign for total, sign in zip(sums, flips, strict=True)][:size]


def spread(v, size, seed, index):
    block = block_of(size)
    return rotated(placed(v, -(-size // block) * block, seed, index), size, seed, index)


PRODUCTS = [factors, half, scaled, mixed, grouped, waves, tied, coefficients]
FLAT = [placed, levels, lambda v, *rest: rotated(levels(v), *rest), spread]

"""What both sides derive, in Python integers: hashes, priors, views and the basis, written from FORMAT.md."""

import itertools
import math
from typing import NamedTuple

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
DECAYS = [
    720896,
    688128,
    655360,
    622592,
    589824,
    557057,
    524289,
    491523,
    458758,
    425996,
    393239,
    360494,
    327772,
    295096,
]
DECAYS += [262511, 230106, 198052, 166665, 136494, 108373, 83333, 62258, 45498, 32768, 23398, 16628, 11788, 8346]


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def hashes(seed, index, purpose):
    key = mix((mix((seed + GOLDEN) & MASK) + 2 * index + purpose) & MASK)
    i = 0
    while True:
        i += 1
        yield mix((key + i * GOLDEN) & MASK)


def prior(scale, size, signed):
    octaves = max(0, (scale - 26) // 2)
    logs = []
    for t in range(size):
        if t < 16:
            w, g = 0, 2 * ((t + 1) // 2) if signed else 2 * t
        else:
            w = 3 + (t - 16) // 2
            g = (5 + 2 * (t % 2)) * 2 ** (w - 1) * (1 if signed else 2)
        logs.append(w * 2**12 - (DECAYS[scale - 2 * octaves] * g >> (5 + octaves)))
    roots = [math.isqrt(2**59)]
    for _ in range(11):
        roots.append(math.isqrt(roots[-1] * 2**30))
    ys = []
    for log in logs:
        x, y = max(logs) - log, 2**30
        for j in range(1, 13):
            if x >> (12 - j) & 1:
                y = y * roots[j - 1] >> 30
        ys.append(y >> min(x >> 12, 31))
    return [y * 2**16 // sum(ys) for y in ys]


class Matrices(NamedTuple):
    """A leaf as stacked matrices."""

    stack: int
    fan_in: int
    fan_out: int
    places: list[int]  # of the matrices' elements in the flattened leaf


def matrices(shape, view):
    """A leaf by the number of its view, None for the default one."""
    digits = [1] * (len(shape) - 1) + [2] * min(len(shape), 1)
    if view is not None:
        assert view < 3 ** len(shape)
        digits = [view // 3**axis % 3 for axis in range(len(shape))]
        assert any(digits) or not shape
    groups = [[axis for axis, digit in enumerate(digits) if digit == wanted] for wanted in range(3)]
    order = [axis for group in groups for axis in group]
    places = []
    for index in itertools.product(*(range(shape[axis]) for axis in order)):
        at = dict(zip(order, index, strict=True))
        place = 0
        for axis, length in enumerate(shape):
            place = place * length + at[axis]
        places.append(place)
    return Matrices(*(math.prod(shape[axis] for axis in group) for group in groups), places)


def transpose(rows):
    return [list(row) for row in zip(*rows, strict=True)]


def basis(floats, shape, rank, seed, index):
    """(A, B), a list of columns for each matrix, of the values of stacked matrices and their shape."""
    stack, fan_in, fan_out = shape
    largest = max(map(abs, floats))
    flat = [round(w / largest * 2.0**15) if largest else 0 for w in floats]
    all_rows = [flat[i * fan_out : (i + 1) * fan_out] for i in range(stack * fan_in)]
    stream = hashes(seed, index, 1)

    def signs(count):
        return [-1 if next(stream) >> 63 else 1 for _ in range(count)]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def scaled(v, h):
        top = max(map(abs, v))
        return [round(x / top * 2.0**h) for x in v] if top else v

    def residual(v, done, h):
        v = scaled(v, h)
        for _ in range(2):
            c = [round(dot(q, v) / 2**14) for q in done]
            parts = [dot(c, row) for row in transpose(done)] if done else [0] * len(v)
            new = [x - round(part / 2**14) for x, part in zip(v, parts, strict=True)]
            if dot(new, new) * 2**16 <= dot(v, v):
                return None
            v = scaled(new, h)
        return v

    def orth(columns, count, n):
        h, done = (52 - (n - 1).bit_length()) // 2, []
        for j in range(count):
            v = residual(columns[j], done, h) if j < len(columns) else None
            while v is None:
                v = residual(signs(n), done, h)
            factor = 2.0**14 / math.sqrt(dot(v, v))
            done.append([round(x * factor) for x in v])
        return done

    a, b = min(rank, fan_in), min(rank, fan_out)
    lefts, rights = [], []
    for i in range(stack):
        rows = all_rows[i * fan_in : (i + 1) * fan_in]
        right = [signs(fan_out) for _ in range(b)]
        for _ in range(3):
            left = orth([[dot(row, v) for row in rows] for v in right], a, fan_in)
            right = orth([[dot(column, v) for column in transpose(rows)] for v in left[:b]], b, fan_out)
        lefts.append(left)
        rights.append(right)
    return lefts, rights

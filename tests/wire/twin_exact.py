"""Exact blocks from version 3 on as FORMAT.md has them, in Python integers: the second reader's part."""

import itertools
import math
import struct

EXPONENT = {"float16": (10, 5), "bfloat16": (7, 8), "float32": (23, 8), "float64": (52, 11)}


class Late:
    """The late bits of a piece, once its tokens are read."""

    def __init__(self, sections, rest):
        states = sections.states
        assert not sections.words
        assert all(2**16 <= x < 2**17 for x in states)
        data = b"".join(struct.pack("<H", x - 2**16) for x in states) + rest
        self.left = int.from_bytes(data, "little")

    def bits(self, count):
        value = self.left & ((1 << count) - 1)
        self.left >>= count
        return value


class Grid:
    def __init__(self, mantissa, exponent, base):
        self.mantissa, self.exponent, self.base = mantissa, exponent, base

    def cell(self, pattern):
        sign, pattern = divmod(pattern, 2 ** (self.mantissa + self.exponent))
        e, low = divmod(pattern, 2**self.mantissa)
        shift = e - self.base - self.mantissa
        value = 2**self.mantissa + low
        found = value << shift if shift >= 0 else value >> -shift
        assert found < 2**52
        return -found - 1 if sign else found

    def pattern(self, cell, bits):
        """The pattern in a cell; bits: reads so many."""
        assert abs(cell) < 2**52
        magnitude = cell if cell >= 0 else -1 - cell
        if not magnitude:
            found = bits(((self.base << self.mantissa) - 1).bit_length())
            assert found < self.base << self.mantissa
        else:
            t = magnitude.bit_length() - 1
            low = bits(max(self.mantissa - t, 0))
            fraction = magnitude - 2**t
            if t > self.mantissa:
                assert fraction % 2 ** (t - self.mantissa) == 0
            fraction = fraction * 2**self.mantissa // 2**t
            assert self.base + t < 2**self.exponent
            found = ((self.base + t) << self.mantissa) + fraction + low
        return found + (cell < 0) * 2 ** (self.mantissa + self.exponent)


def few(leaf, number, sections):
    """The new leaf, of which this number of patterns change."""
    layout = EXPONENT.get(leaf.dtype)
    assert number <= len(leaf.bits) // 8
    if 2 * number < 2**12:
        return leaf._replace(bits=changes(leaf.bits, leaf.width, layout, number, sections, sections))
    return leaf._replace(bits=in_pieces(leaf, layout, number, sections))


def exact(leaf, sections):
    """The new leaf, of which every pattern is said."""
    n = len(leaf.bits)
    layout = EXPONENT.get(leaf.dtype)
    if not n:
        return leaf
    rows = math.prod(leaf.shape[:-1])
    columns = n // rows
    if n < 64 or not 1 < columns <= 2**14 or rows == 1:
        columns = 0
    if n < 2**12:
        return leaf._replace(bits=whole(leaf.bits, leaf.width, layout, columns, sections, sections))
    step, new = 2**20 // columns * columns if columns else 2**20, []
    for start in range(0, n, step):
        part = leaf.bits[start : start + step]
        own, rest = piece(sections, lanes_of(len(part)))
        late = []
        new += whole(part, leaf.width, layout, columns, own, Lazy(own, rest, late))
        finish(own, late)
    return leaf._replace(bits=new)


def in_pieces(leaf, layout, number, sections):
    new, step = [], 2**22
    many = -(-len(leaf.bits) // step)
    for start in range(0, len(leaf.bits), step):
        part = leaf.bits[start : start + step]
        own, rest = piece(sections, lanes_of(2 * number // many))
        count, late = number if many == 1 else own.number(), []
        new += changes(part, leaf.width, layout, count, own, Lazy(own, rest, late))
        finish(own, late)
    return new


class Lazy:
    """Late bits that are looked for when the first of them is needed."""

    def __init__(self, own, rest, made):
        self.own, self.rest, self.made = own, rest, made

    def bits(self, count):
        if not self.made:
            self.made.append(Late(self.own, self.rest))
        return self.made[0].bits(count)


def finish(own, late):
    assert own.extra == 0
    assert not own.words
    assert not late or late[0].left == 0


def lanes_of(tokens):
    return min(2 ** max((tokens // 256).bit_length() - 1, 0), 4096)


def piece(sections, lanes):
    data, at, sizes = sections.raw_bytes, 0, []
    for _ in range(3):
        size = shift = 0
        while True:
            byte = data[at]
            size |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        sizes.append(size)
    parts = []
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    sections.raw_bytes = data[at:]
    early, rest, coded = parts
    return type(sections)(b"", early, lanes, coded), rest


def with_late(sections, late, token, signed):
    """The integer of a token, with extra bits from where the late ones are."""
    if sections is late:
        return sections.value(token, signed)
    u = token
    if token >= 16:
        w = 3 + (token - 16) // 2
        u = (2 + token % 2) * 2**w + late.bits(w)
    return u if not signed else -(u + 1) // 2 if u % 2 else u // 2


def grid_of(layout, sections):
    if layout and sections.symbol(1):
        base = sections.number()
        assert 0 < base < 2 ** layout[1]
        return Grid(*layout, base)
    return None


def moved(old, move, grid, width, late):
    if grid is None:
        return (old + move) % 256**width
    new = grid.pattern(grid.cell(old) + move - (move > 0), late.bits)
    assert new != old
    return new


def changes(old, width, layout, count, sections, late):
    new = list(old)
    if not count:
        return new
    grid = grid_of(layout, sections)
    exponents = [0] * len(old)
    starts, others = [], []
    if layout:
        exponents = [pattern >> layout[0] & (2 ** layout[1] - 1) for pattern in old]
        more = sections.symbol(4)
        for gap in sections.segment(more, signed=False):
            starts.append((starts[-1] if starts else 0) + 1 + gap)
        others = sections.segment(more, signed=False)
    counts = [count - sum(others), *others]
    assert min(counts) >= 0
    classes = [sum(e >= start for start in starts) for e in exponents]
    members = [[place for place, c in enumerate(classes) if c == i] for i in range(len(counts))]
    scales = [scale(len(own), k) for own, k in zip(members, counts, strict=True)]
    rounds = max(0, count.bit_length() - 7)
    order, chunks = [], []
    for r in range(rounds + 1):
        before = len(order)
        for i, k in enumerate(counts):
            first = k >> (rounds - r + 1) if r else 0
            order += [(i, j) for j in range(first, k >> (rounds - r))]
        if len(order) > before:
            chunks.append(len(order) - before)
    contexts = [i for i, _ in order]
    gaps = list(itertools.chain(*sections.coded(contexts, scales, False, list(chunks), 2**7)))
    different = sorted({min(scales[i], 24) for i, k in enumerate(counts) if k})
    own = {key: sections.symbol(7) for key in different}
    keys = [min(scales[i], 24) for i in contexts]
    moves = list(itertools.chain(*sections.coded(keys, own, True, list(chunks))))
    gaps = [with_late(sections, late, token, False) for token in gaps]
    moves = [with_late(sections, late, token, True) for token in moves]
    last = [-1] * len(counts)
    for (i, _), gap, move in sorted(zip(order, gaps, range(len(moves)), strict=True), key=lambda one: one[0]):
        last[i] += 1 + gap
        order[move] = members[i][last[i]]
    for place, move in zip(order, moves, strict=True):
        new[place] = moved(old[place], move + (move >= 0), grid, width, late)
        assert new[place] != old[place]
    return new


def scale(n, k):
    if not k or n == k:
        return 0
    over, under = 181 * (2 * n * (n - k)) ** 2, 128 * (k * (2 * n - k)) ** 2
    power = over.bit_length() - under.bit_length()
    # floor(log2(over / under)), in integers.
    while over < under << power if power >= 0 else over << -power < under:
        power -= 1
    return min(max(20 + power, 0), 127)


def whole(old, width, layout, columns, sections, late):
    grid = grid_of(layout, sections)
    count, across, down = len(old), None, None
    if columns and sections.symbol(1):
        down, across = sections.segment(count // columns), sections.segment(columns)
    middle_scale = sections.symbol(7)
    middle = sections.number() if layout and grid is None else None
    sums = [0] * count
    if down:
        sums = [r + c for r in down for c in across]
    if middle is not None:
        exponents = [pattern >> layout[0] & (2 ** layout[1] - 1) for pattern in old]
        sums = [one + 2 * (middle - e) for one, e in zip(sums, exponents, strict=True)]
    contexts = [min(max(32 + one, 0), 63) for one in sums]
    scales = {context: min(max(middle_scale + context - 32, 0), 127) for context in set(contexts)}
    if middle is None and not down:
        scales = dict.fromkeys(contexts, middle_scale)
    symbols, new = list(itertools.chain(*sections.coded(contexts, scales, True))), []
    for start in range(0, count, 2**16):
        part = symbols[start : start + 2**16]
        moves = [with_late(sections, late, token, True) for token in part]
        for pattern, move in zip(old[start : start + 2**16], moves, strict=True):
            new.append(moved(pattern, move, grid, width, late) if move else pattern)
    return new

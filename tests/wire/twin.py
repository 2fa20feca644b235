"""A second reader of updates, written from FORMAT.md in Python integers; it shares no code with the first.

Only the arithmetic of float leaves uses NumPy, one weight at a time.
"""

import hashlib
import itertools
import json
import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

from tests.wire.twin_basis import basis, hashes, matrices, prior, transpose
from tests.wire.twin_exact import exact, few
from tests.wire.twin_maps import change
from tests.wire.twin_matrices import fitted, row_by_row, sequential

EXPONENT = {"float16": (10, 5), "bfloat16": (7, 8), "float32": (23, 8), "float64": (52, 11)}


class Leaf(NamedTuple):
    """A leaf as another language would hold it."""

    dtype: str
    shape: tuple[int, ...]
    width: int  # bytes of a bit pattern
    bits: list[int]  # patterns

    @property
    def data(self):
        return b"".join(pattern.to_bytes(self.width, "little") for pattern in self.bits)


def fingerprint(model):
    digests = []
    for name in sorted(model):
        leaf = model[name]
        text, dtype = name.encode(), leaf.dtype.encode()
        head = struct.pack("<I", len(text)) + text + struct.pack("<I", len(dtype)) + dtype
        head += struct.pack(f"<I{len(leaf.shape)}Q", len(leaf.shape), *leaf.shape)
        digests.append(hashlib.sha256(head + leaf.data).digest())
    return hashlib.sha256(b"".join(digests)).digest()[:16]


def frequencies(weights):
    size, total = len(weights), sum(weights)
    found = [1 + w * (2**14 - size) // total for w in weights]
    found[found.index(max(found))] += 2**14 - sum(found)
    return found


class Sections:
    """The three sections and what is left of them."""

    def __init__(self, raw, extra, lanes, coded, short=False, has_modes=False):
        self.has_modes = has_modes
        self.raw_bytes = raw
        self.extra = int.from_bytes(extra, "little")
        self.alone = lanes == 1 and short
        if self.alone:
            coded = coded if len(coded) >= 4 else coded.ljust(4, b"\0")
        self.states = list(struct.unpack_from(f"<{lanes}I", coded))
        self.words = list(struct.unpack(f"<{(len(coded) - 4 * lanes) // 2}H", coded[4 * lanes :]))[::-1]

    def raw(self, size):
        data, self.raw_bytes = self.raw_bytes[:size], self.raw_bytes[size:]
        return data

    def bits(self, count):
        value = self.extra & ((1 << count) - 1)
        self.extra >>= count
        return value

    def chunk(self, tables):
        """One token per frequency table."""
        out, lanes = [], len(self.states)
        for first in range(0, len(tables), lanes):
            step = tables[first : first + lanes]
            for lane, table in enumerate(step):
                x = self.states[lane]
                token, start = 0, 0
                while start + table[token] <= x % 2**14:
                    start, token = start + table[token], token + 1
                out.append(token)
                self.states[lane] = table[token] * (x >> 14) + x % 2**14 - start
            for lane in range(len(step)):
                if self.states[lane] < 2**16 and (self.words or not self.alone):
                    self.states[lane] = self.states[lane] * 2**16 + self.words.pop()
        return out

    def symbol(self, width):
        return self.chunk([[2 ** (14 - width)] * 2**width])[0]

    def number(self):
        length = self.symbol(6)
        return length if length <= 1 else 2 ** (length - 1) + self.bits(length - 1)

    def tokens(self, contexts, scales, signed=True):
        """contexts: one per integer; scales: context -> scale."""
        return [self.value(token, signed) for seen in self.coded(contexts, scales, signed) for token in seen]

    def coded(self, contexts, scales, signed, chunks=None, weight=2**11):
        """The tokens alone, chunk by chunk; chunks: the size of each."""
        size = self.symbol(8)
        weights = {context: prior(scales[context], size, signed) for context in set(contexts)}
        start = 0
        while start < len(contexts):
            part = contexts[start : start + (chunks.pop(0) if chunks else min(max(start, 64), 2**20))]
            now = {context: frequencies(weights[context]) for context in set(part)}
            seen = self.chunk([now[context] for context in part])
            for context, token in zip(part, seen, strict=True):
                weights[context][token] += weight
            yield seen
            start += len(part)

    def value(self, token, signed):
        """The integer of a token, its extra bits being the next."""
        u = token
        if token >= 16:
            w = 3 + (token - 16) // 2
            u = (2 + token % 2) * 2**w + self.bits(w)
        return u if not signed else -(u + 1) // 2 if u % 2 else u // 2

    def segment(self, count, signed=True):
        return self.tokens([0] * count, {0: self.symbol(7)}, signed) if count else []

    def values(self, count):
        """Some integers."""
        return self.matrix(1, count)[0] if self.has_modes else self.segment(count)

    def matrix(self, rows, columns):
        """A list of rows."""
        flat = []
        mode = self.symbol(3) if self.has_modes and rows * columns else 0
        if 1 <= mode <= 4:
            return sequential(self, rows, columns, (1, 3, 7, 15)[mode - 1])
        if mode >= 5:
            return fitted(self, rows, columns, (0, 12, 48)[mode - 5])
        if rows * columns and self.symbol(1):
            r, c = self.segment(rows), self.segment(columns)
            contexts = [min(max(20 + a + b, 0), 63) for a in r for b in c]
            flat = self.tokens(contexts, range(64))
        elif rows * columns:
            flat = self.segment(rows * columns)
        return [flat[i * columns : (i + 1) * columns] for i in range(rows)]

    def positions(self, count, shape):
        """Ascending, in the flattened leaf."""
        if self.has_modes and count and self.symbol(1):
            return row_by_row(self, count, math.prod(shape[:-1]), shape[-1])
        places = []
        for gap in self.segment(count, signed=False):
            places.append((places[-1] if places else -1) + 1 + gap)
        return places

    def places(self, count, size):
        """Which of `size` there are."""
        if count in (0, size):
            return list(range(count))
        ones = min(max((2**14 * count + size // 2) // size, 1), 2**14 - 1)
        flags = []
        while len(flags) < size:
            flags += self.chunk([[2**14 - ones, ones]] * min(max(len(flags), 64), 2**20, size - len(flags)))
        assert sum(flags) == count
        return [place for place, flag in enumerate(flags) if flag]

    def assert_used_up(self):
        assert not self.raw_bytes
        assert self.extra == 0
        assert not self.words
        assert set(self.states) <= {0 if self.alone else 2**16}


def varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at


def metadata(update, old):
    """The texts of the new model file."""
    version, flags = update[4], update[5]
    at = 22 if flags & 64 else 38
    at = varint(update, at)[1] if version < 3 or flags & 4 else at
    if flags & 32:
        length, at = varint(update, at)
        at += length
    count, at = varint(update, at)
    for _ in range(count):
        kind, gap = divmod(update[at], 16)
        at += 1
        if gap == 15:
            at = varint(update, at)[1]
        at += 2 * (3 <= kind <= 9 or kind == 11)
        for present in (kind >= 4, flags & 1 and kind in (3, 7, 8, 9, 11)):
            at = varint(update, at)[1] if present else at
    assert flags & 2
    digest, (size, start) = update[at : at + 8], varint(update, at + 8)
    changes = json.loads(zlib.decompress(update[start : start + size], -15)) if size else {}
    new = {name: text for name, text in {**old, **changes}.items() if text is not None}
    assert digest == hashlib.sha256((as_json(old) + as_json(new)).encode()).digest()[:8]
    return new


def as_json(texts):
    """In the one form that the specification gives it."""
    short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}

    def quoted(text):
        out = ""
        for unit in text:
            if unit in short:
                out += short[unit]
            elif 32 <= ord(unit) <= 126:
                out += unit
            else:
                wide = unit.encode("utf-16-be", "surrogatepass")
                out += "".join(f"\\u{wide[i : i + 2].hex()}" for i in range(0, len(wide), 2))
        return f'"{out}"'

    return "{" + ",".join(f"{quoted(name)}:{quoted(texts[name])}" for name in sorted(texts)) + "}"


def to_float(leaf, pattern):
    """A weight in its compute dtype."""
    if leaf.dtype == "bfloat16":
        return np.array(pattern << 16, np.uint32).view(np.float32)[()]
    value = np.array(pattern, f"u{leaf.width}").view(leaf.dtype)[()]
    return value if leaf.dtype == "float64" else np.float32(value)


def from_float(leaf, value):
    if leaf.dtype == "bfloat16":
        pattern = int(value.view(np.uint32))
        low, high = pattern % 2**16, pattern >> 16
        return high + (low > 2**15 or (low == 2**15 and high % 2))
    return int(np.array(value, leaf.dtype).view(f"u{leaf.width}"))


def increment(leaf, places, integers, step):
    bits = list(leaf.bits)
    for place, integer in zip(places, integers, strict=True):
        old = to_float(leaf, bits[place])
        if integer and np.isfinite(old):
            with np.errstate(over="ignore"):
                bits[place] = from_float(leaf, old + type(old)(float(integer) * step))
    return leaf._replace(bits=bits)


def product(left, right):
    """Left times the transpose of right, flat."""
    return [sum(x * y for x, y in zip(a, b, strict=True)) for a in left for b in right]


def products(left, right, stack):
    """The products of the stacked parts of two lists of rows, flat."""
    rows, columns = len(left) // stack, len(right) // stack
    return [
        value
        for i in range(stack)
        for value in product(left[i * rows : (i + 1) * rows], right[i * columns : (i + 1) * columns])
    ]


def differences(leaf, sections):
    scale = sections.symbol(7)
    contexts = [0] * len(leaf.bits)
    if leaf.dtype in EXPONENT:
        mantissa, exponent = EXPONENT[leaf.dtype]
        fields = [pattern >> mantissa & ((1 << exponent) - 1) for pattern in leaf.bits]
        common = min(set(fields), key=lambda e: (-fields.count(e), e))
        contexts = [min(max(e - common + 32, 0), 63) for e in fields]
    values = sections.tokens(contexts, [scale] * 64)
    modulus = 256**leaf.width
    return leaf._replace(bits=[(old + v) % modulus for old, v in zip(leaf.bits, values, strict=True)])


def read_viewed(kind, step, number, view, leaf, index, seed, sections):
    """The new leaf of a dense block, factors, coefficients or columns."""
    stack, fan_in, fan_out, places = matrices(leaf.shape, view)
    if kind == 3:
        return increment(leaf, places, list(itertools.chain(*sections.matrix(stack * fan_in, fan_out))), step)
    if kind == 9:
        columns = sections.places(number, stack * fan_out)
        values = sections.matrix(fan_in, number)
        assert all(any(column) for column in transpose(values))
        there = [places[(c // fan_out * fan_in + i) * fan_out + c % fan_out] for i in range(fan_in) for c in columns]
        return increment(leaf, there, list(itertools.chain(*values)), step)
    rank = sections.number() if number is None else number
    if kind == 7:
        left, right = sections.matrix(stack * fan_in, rank), sections.matrix(stack * fan_out, rank)
        return increment(leaf, places, products(left, right, stack), step)
    floats = [float(to_float(leaf, leaf.bits[place])) for place in places]
    left, right = basis(floats, (stack, fan_in, fan_out), rank, seed, index)
    a, b = min(rank, fan_in), min(rank, fan_out)
    values = sections.matrix(stack * a, b)
    inner = []
    for i in range(stack):
        columns = transpose(values[i * a : (i + 1) * a])
        inner += [[sum(x * y for x, y in zip(row, c, strict=True)) for c in columns] for row in transpose(left[i])]
    rows = [row for columns in right for row in transpose(columns)]
    return increment(leaf, places, products(inner, rows, stack), step * 2.0**-28)


def read_mapped(step, number, view, leaf, index, seed, sections):
    """The new leaf of a mapped block."""
    stack, fan_in, fan_out, places = matrices(leaf.shape, view)
    code, rank, is_plain, length = number % 16, 2 ** (number // 16 % 16), number // 256 % 2, number // 512
    if not sections.symbol(1):
        offset = int(code in (9, 10))
        sections.vector = sections.segment(offset)
        if is_plain:
            width = sections.symbol(5) + 1
            patterns = [sections.bits(width) for _ in range(length - offset)]
            sections.vector += [p - 2**width if p >> (width - 1) else p for p in patterns]
        else:
            sections.vector += sections.segment(length - offset)
    assert len(sections.vector) == length
    floats = [float(to_float(leaf, leaf.bits[place])) for place in places]
    integers, is_flat = change(code, sections.vector, rank, (stack, fan_in, fan_out), floats, seed, index)
    return increment(leaf, range(len(places)) if is_flat else places, integers, step)


def read_block(version, kind, step, number, view, leaf, index, seed, sections):
    """The new leaf."""
    if kind in (3, 7, 8, 9):
        return read_viewed(kind, step, number, view, leaf, index, seed, sections)
    size = len(leaf.bits)
    everywhere = range(size)
    if kind == 0:
        data = sections.raw(size * leaf.width)
        return leaf._replace(
            bits=[int.from_bytes(data[i : i + leaf.width], "little") for i in range(0, len(data), leaf.width)]
        )
    if kind == 1:
        return exact(leaf, sections) if version >= 3 else differences(leaf, sections)
    if kind == 10:
        return few(leaf, number, sections)
    if kind == 11:
        return read_mapped(step, number, view, leaf, index, seed, sections)
    if kind == 2:
        return increment(leaf, everywhere, struct.unpack(f"<{size}e", sections.raw(2 * size)), 1.0)
    number = sections.number() if number is None else number
    values = sections.values(number)
    if kind == 4:
        places = sections.positions(number, leaf.shape)
    elif kind == 5:
        stream = hashes(seed, index, 0)
        drawn = sorted((next(stream), i) for i in everywhere)
        places = sorted(i for _, i in drawn[:number])
    else:
        magnitude = [pattern % 2 ** (8 * leaf.width - 1) for pattern in leaf.bits]
        places = sorted(sorted(everywhere, key=lambda i: (-magnitude[i], i))[:number])
    return increment(leaf, places, values, step)


def apply(update, model):
    """The new model: name -> Leaf."""
    magic, version, flags = struct.unpack_from("<4sBB", update)
    assert magic == b"updc"
    assert flags <= {1: 0, 2: 3, 3: 31, 4: 127}[version]
    size, end = (8, len(update)) if flags & 64 else (16, len(update) - 4)
    assert flags & 64 or struct.unpack("<I", update[end:])[0] == zlib.crc32(update[:end])
    base, result, at = update[6 : 6 + size], update[6 + size : 6 + 2 * size], 6 + 2 * size
    assert base == fingerprint(model)[:size]
    short = version >= 3
    seed, at = varint(update, at) if not short or flags & 4 else (0, at)
    if flags & 32:
        length, at = varint(update, at)
        model = started(model, zlib.decompress(update[at : at + length], -15).decode())
        at += length
    count, at = varint(update, at)
    heads, index = [], -1
    for _ in range(count):
        kind, gap = divmod(update[at], 16)
        at += 1
        if gap == 15:
            more, at = varint(update, at)
            gap += more
        index, step, number, view = index + 1 + gap, None, None, None
        if 3 <= kind <= 9 or kind == 11:
            step, at = float(struct.unpack("<f", b"\0\0" + update[at : at + 2])[0]), at + 2
        if version >= 2 and kind >= 4:
            number, at = varint(update, at)
        if flags & 1 and kind in (3, 7, 8, 9, 11):
            view, at = varint(update, at)
        heads.append((kind, step, number, view, index))
    if flags & 2:
        length, at = varint(update, at + 8)
        at += length
    raw, at = varint(update, at) if not short or flags & 8 else (0, at)
    extra, at = varint(update, at) if not short or flags & 16 else (0, at)
    lanes = 2 ** update[at] // 2
    payload = update[at + 1 : end]
    sections = Sections(payload[:raw], payload[raw : raw + extra], lanes, payload[raw + extra :], short, version >= 4)
    new, names = dict(model), sorted(model)
    for kind, step, number, view, index in heads:
        new[names[index]] = read_block(version, kind, step, number, view, model[names[index]], index, seed, sections)
    sections.assert_used_up()
    assert fingerprint(new)[:size] == result
    return new


def started(model, text):
    """The model without the leaves that go, and with those that come as zeros."""
    added, removed = json.loads(text)
    assert all(name in model for name in removed)
    new = {name: leaf for name, leaf in model.items() if name not in removed}
    for name, (dtype, width, *shape) in added.items():
        assert name not in model or (model[name].dtype, model[name].shape) != (dtype, tuple(shape))
        patterns, width = (2, width // 2) if dtype.startswith("complex") else (1, width)
        new[name] = Leaf(dtype, tuple(shape), width, [0] * (patterns * math.prod(shape)))
    return new

"""Version 4's matrices in Python numbers, written from FORMAT.md; a float is a float64, as the specification has it."""

import itertools
import math

from tests.wire.twin_basis import GOLDEN, MASK, mix, prior

CUTS = [4096, 8192, 13107, 19661, 29491, 42598]


def sequential(sections, rows, columns, bound):
    """A list of rows, one integer after another."""

    def choose(odds, weight):
        size = 1 + (2**14 - 2) * odds[0] // sum(odds)
        (choice,) = sections.chunk([[size, 2**14 - size]])
        odds[choice] += weight
        return choice

    assert rows * columns <= 2**12
    some = {1: 8, 3: 11, 7: 13, 15: 14}[bound]
    all_, signs, more = [16 - some, some], [[20, 20 + 7 * w] for w in range(6)], [[2, 2] for _ in range(bound)]
    found = []
    for i in range(rows):
        row, here = [], [0, 0]
        for j in range(columns):
            sign, surely = 1, 0
            if columns <= 2**7 and i and j:
                t = [sum(x[k] * x[j] for x in found) for k in range(j)]
                own = sum(x[j] * x[j] for x in found)
                p = sum(x * y for x, y in zip(row, t, strict=True))
                c = sum(x * x * sum(above[k] ** 2 for above in found) * own for k, x in enumerate(row) if x)
                surely = sum(4 * p * p * i >= edge * c for edge in (1, 4, 9, 16, 36)) if c else 0
                sign = -1 if surely and p < 0 else 1
            odds = [here[k] * sum(all_) + 8 * all_[k] for k in (0, 1)]
            sent = choose(odds, 0)
            here[sent] += 1
            all_[sent] += 1
            magnitude = 0
            if sent:
                sign, magnitude = sign if choose(signs[surely], 10) else -sign, 1
                while magnitude < bound and choose(more[magnitude], 1):
                    magnitude += 1
            row.append(sign * magnitude)
        found.append(row)
    return found


def power(x, exponent):
    p = 1.0
    while exponent:
        p, x, exponent = p * x if exponent % 2 else p, x * x, exponent // 2
    return p


def row_by_row(sections, k, rows, n):
    """Positions."""
    weights, after, last, some, known = [1] * n, [[1, 1], [1, 1]], 0, 1, 2
    found = []
    for row in range(rows):
        if len(found) == k:
            break
        size = 1 + (2**14 - 2) * after[last][0] // sum(after[last])
        (choice,) = sections.chunk([[size, 2**14 - size]])
        after[last][choice] += 1
        last = choice
        if not choice:
            continue
        sums = [sum(weights[:j]) for j in range(n + 1)]
        b, some, a, c, here = sums[n] * some // known + 1, some + 1, 0, 0, []
        while len(found) < k and a < n:
            t = [1 - power((b + sums[a]) / (b + s), c + 1) for s in sums[a:]]
            t = [x / t[-1] for x in t] if c == 0 else t
            options = n - a + (c > 0)
            bounds = [math.floor(x * (2**14 - options)) + j for j, x in enumerate(t)] + [2**14] * (c > 0)
            (option,) = sections.chunk([[high - low for low, high in itertools.pairwise(bounds)]])
            if a + option == n:
                break
            here.append(a + option)
            found.append(row * n + a + option)
            a, c, known = a + option + 1, c + 1, known + 1
        for j in here:
            weights[j] += 2
    assert len(found) == k
    return found


def fitted(sections, rows, columns, rank):
    """A list of rows."""
    found = [[0] * columns for _ in range(rows)]
    width = min(columns, 2**11)
    height = 2**19 // width
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            m, n = min(height, rows - top), min(width, columns - left)
            for i, row in enumerate(tile(sections, m, n, rank)):
                found[top + i][left : left + n] = row
    return found


def tile(sections, m, n, rank):
    first, size = sections.symbol(7), sections.symbol(8)
    weights = {768: prior(first, size, signed=True)}
    halvings = max(0, (m * n).bit_length() - 15)
    cuts = [4096 >> h for h in range(halvings, 0, -1)] + CUTS
    rounds = [[] for _ in range(len(cuts) + 1)]
    for i in range(m * n):
        share = mix((i + 1) * GOLDEN & MASK) >> 48
        rounds[sum(cut <= share for cut in cuts)].append(i)
    known, fit, largest = {}, Fit(m, n, rank), 0
    for number, places in enumerate(rounds):
        means, classes = fit.expect(known, number > halvings) if number else (None, None)
        contexts, signs, bases = [], [], []
        for i in places:
            mean = means[i] if number else 0
            base = (abs(mean) + 32) >> 6
            small = sum(edge <= abs(mean) for edge in (2, 5, 10, 16, 22, 29))
            f = 7 + ((abs(mean) - 64 * base + 32) * 5 >> 6) if base else small
            context = 64 * f + classes[i] if number else 768
            weights.setdefault(context, prior(context % 64, size, signed=True))
            contexts.append(context)
            signs.append(-1 if mean <= -2 else 1)
            bases.append(base)
        tables = {context: table(weights[context]) for context in set(contexts)}
        tokens = sections.chunk([tables[context] for context in contexts])
        for i, token, context, sign, base in zip(places, tokens, contexts, signs, bases, strict=True):
            weights[context][token] += 2**11
            known[i] = sign * (base + sections.value(token, signed=True))
            largest = max(largest, token)
    assert largest == size - 1
    return [[known[i * n + j] for j in range(n)] for i in range(m)]


def table(weights):
    size, total = len(weights), sum(weights)
    found = [1 + w * (2**14 - size) // total for w in weights]
    found[found.index(max(found))] += 2**14 - sum(found)
    return found


def clip(x, low, high):
    return min(max(x, low), high)


def log(x):
    f, e = math.frexp(x)
    return 8 * (e - 1) + sum(bound <= 2**16 * f for bound in (35734, 38968, 42495, 46341, 50535, 55109, 60097))


class Fit:
    """What the known integers of a tile say of the others."""

    def __init__(self, m, n, rank):
        self.m, self.n, self.rank = m, n, rank
        self.u, self.v = [[0] * rank for _ in range(m)], [[0] * rank for _ in range(n)]
        self.means = [0] * (m * n)

    def expect(self, known, deep):
        """Means and classes of all integers."""
        m, n = self.m, self.n
        self.x = {i: 64 * clip(value, -(2**25), 2**25) for i, value in known.items()}
        self.means = [0] * (m * n)
        if deep and self.rank:
            self.directions()
            self.neighbours(n, lambda i: i // n, m)
            self.neighbours(1, lambda i: i % n, n)
        errors = self.errors(2**63)
        mean = (sum(map(abs, errors.values())) + 1) / max(len(errors), 1)
        sums = [[0.0, 0] for _ in range(m + n)]
        for i, error in errors.items():
            for line in (i // n, m + i % n):
                sums[line][0] += abs(error)
                sums[line][1] += 1
        x = [(total + 4 * mean) / (count + 4) for total, count in sums]
        logs = [log(value if line < m else value / mean) for line, value in enumerate(x)]
        classes = [clip((logs[i // n] + logs[m + i % n] - 46 >> 2) + 20, 0, 63) for i in range(m * n)]
        return self.means, classes

    def errors(self, bound):
        return {i: clip(x - self.means[i], -bound, bound) for i, x in self.x.items()}

    def directions(self):
        m, n, known = self.m, self.n, len(self.x)
        a = min(self.rank, known // (2 * (m + n)))
        for k in range(a):
            if not (any(row[k] for row in self.u) and any(row[k] for row in self.v)):
                for row in self.u:
                    row[k] = 0
                for j, row in enumerate(self.v):
                    row[k] = -256 if mix((j * self.rank + k + 1) * GOLDEN & MASK) >> 63 else 256
        self.product()
        noise = math.sqrt(sum(e * e for e in self.errors(2**17).values()) / max(known, 1)) / 64
        penalty = max(noise * (math.sqrt(m) + math.sqrt(n)) / 5, 0.25)
        for _ in range(2 if a else 0):
            self.step(self.u, self.v, lambda i: (i // n, i % n), a, penalty)
            self.step(self.v, self.u, lambda i: (i % n, i // n), a, penalty)

    def product(self):
        rows = [[(k, x) for k, x in enumerate(row) if x] for row in self.u]
        self.means = [round(sum(x * v[k] for k, x in row) / 2**14) for row in rows for v in self.v]

    def step(self, u, v, place, a, penalty):
        sums = [[0] * a for _ in u]
        for i, error in self.errors(2**17).items():
            row, other = place(i)
            for k in range(a):
                sums[row][k] += error * v[other][k]
        p = len(self.x) / (self.m * self.n)
        h = [[p * sum(row[i] * row[k] for row in v) + penalty * 2**20 * (i == k) for k in range(a)] for i in range(a)]
        w = inverse(h)
        for row, total in zip(u, sums, strict=True):
            s = [16 * t - x * (1024 * penalty) for t, x in zip(total, row[:a], strict=True)]
            for k in range(a):
                t = s[0] * w[0][k]
                for i in range(1, a):
                    t += s[i] * w[i][k]
                row[k] = clip(round(row[k] + 1024 * t), -(2**15), 2**15)
        self.product()

    def neighbours(self, stride, number, count):
        errors = self.errors(2**15)
        around = [
            (errors.get(i - stride, 0) if number(i) else 0)
            + (errors.get(i + stride, 0) if number(i) < count - 1 else 0)
            for i in range(self.m * self.n)
        ]
        below = sum(around[i] ** 2 for i in errors)
        q = min(math.floor(128 * sum(around[i] * e for i, e in errors.items()) / below), 64) if below else 0
        if q > 0:
            self.means = [mean + round(part * (q / 128)) for mean, part in zip(self.means, around, strict=True)]


def inverse(matrix):
    size = len(matrix)
    rows = [row + [float(i == k) for k in range(size)] for i, row in enumerate(matrix)]
    for k in range(size):
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for i in range(size):
            if i != k:
                factor = rows[i][k]
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[k], strict=True)]
    return [row[size:] for row in rows]

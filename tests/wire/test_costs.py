"""What applying takes is known before it is paid, and bombs are refused by it."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from tests.wire import samples
from updcomp.wire import (
    apply,
    basis,
    container,
    costs,
    decoding,
    dtypes,
    errors,
    fingerprint,
    header,
    increments,
    kind,
    packet,
    rans,
    streams,
    versions,
)
from updcomp.wire.kinds import coefficients, factors, sparse
from updcomp.wire.kinds.coefficients import Coefficients
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.sparse import Sparse


def spec(*shape, dtype="<f4"):
    return dtypes.Spec(shape, np.dtype(dtype))


def crafted(base, block_kind, size, write, version=versions.NEWEST):
    """An update of one block that no writer makes by default, with right checksum and base."""
    print_, writer = fingerprint.of(base), streams.Writer()
    write(writer)
    head = kind.Head(block_kind, 0, samples.STEP, size)
    return header.pack(header.Parts(version, print_, bytes(16), 0, [head], *writer.finish()))


def zeros(*counts, signed=True):
    """Segments of zeros in one context, which cost next to no bytes."""

    def write(writer):
        for count in counts:
            writer.integers(np.zeros(count, np.int64), signed=signed)

    return write


def matrices(*counts):
    def write(writer):
        for count in counts:
            writer.symbol(0, 1)
            writer.integers(np.zeros(count, np.int64), signed=True)

    return write


def test_a_few_bytes_of_coefficients_cannot_ask_for_minutes():
    """17 MB, 1,024 columns on both sides: some twelve seconds, were it applied."""
    base = {"w": np.zeros((4096, 1024), np.float32)}
    update = crafted(base, coefficients.KIND, 1024, matrices(1024 * 1024))
    assert len(update) < 500
    with pytest.raises(errors.CostError, match=r"expected at most 2,001,048,576 operations .* a budget of at least \d"):
        container.apply_update(update, base)
    with pytest.raises(errors.CostError, match="operations"):
        container.decode(update, base)


@pytest.mark.parametrize(
    ("block_kind", "size", "write"),
    [
        pytest.param(factors.KIND, 1024, matrices(2048 * 1024, 1024 * 1024), id="factors"),
        pytest.param(sparse.KIND, 1 << 21, zeros(1 << 21), id="sparse"),
    ],
)
def test_a_few_bytes_cannot_ask_for_many_times_the_model_in_memory(block_kind, size, write):
    base = {"w": np.zeros((2048, 1024), np.float32)}
    update = crafted(base, block_kind, size, write)
    assert len(update) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(errors.CostError, match="bytes of working memory"):
            container.apply_update(update, base, budget=0.7)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # nothing was decoded


def test_version_1_is_charged_block_by_block():
    """Its sizes stand in the payload: they are read, charged, and refused before the rest of their block."""
    base = {"w": np.zeros((4096, 1024), np.float32)}

    def write(writer):
        writer.number(1024)
        matrices(1024 * 1024)(writer)

    update = crafted(base, coefficients.KIND, None, write, versions.VERSIONS[1])
    assert header.parse(update).version.number == 1
    with pytest.raises(errors.CostError, match="operations"):
        container.apply_update(update, base)


def test_what_a_budget_refuses_is_not_made_and_not_begun(monkeypatch):
    base = {"w": samples.floats((64, 64), 3).astype(np.float32)}
    sent = packet.Packet({"w": Coefficients(np.ones((64, 64), np.int32), 64, samples.STEP)})
    with monkeypatch.context() as patch:
        patch.setattr(basis, "of", None)
        with pytest.raises(errors.CostError, match="allow a budget of at least") as caught:
            container.encode(sent, base, budget=1e-3)
    needed = float(str(caught.value).rsplit("at least ", 1)[1].split()[0])
    update = container.encode(sent, base, budget=needed)
    with pytest.raises(errors.CostError):
        container.apply_update(update, base, budget=1e-3)
    assert (container.apply_update(update, base, budget=needed)["w"] != base["w"]).any()


def test_an_update_beyond_the_model_itself_is_not_made():
    base = {"w": np.zeros(1 << 21, np.float16)}
    values = (samples.bits(1 << 21, 9, 30) + (1 << 30)).astype(np.int32)
    with pytest.raises(errors.CostError, match="expected at most 6,291,472 bytes for this model"):
        container.encode(packet.Packet({"w": Dense(values, samples.STEP)}), base, budget=math.inf)


def test_the_budget_that_is_said_is_that_of_whatever_is_scarcest():
    account = costs.Account({}, 0, 1.0)
    with pytest.raises(errors.CostError, match=r"bytes of working memory .* at least 149\.1 on both sides"):
        account.charge(costs.Cost(3 * 10**9, 10**10))


def test_the_allowance_is_in_proportion_and_has_a_floor():
    assert costs.allowed({}, 1.0) == (2 * 10**9, 64 << 20)
    assert costs.allowed({"w": spec(10)}, 1.0) == (2 * 10**9 + 2**20, (64 << 20) + 80)
    small, large = ({"a": spec(10**6 * m), "b": spec(4 * 10**6 * m)} for m in (1, 50))
    assert costs.allowed(small, 1.0) == (2 * 10**9 + 2**21, 2 * 16 * 10**6 + (64 << 20))
    assert costs.allowed(large, 1.0) == (20 * 10**9 + 2**21, 2 * 800 * 10**6 + 10 * (64 << 20))
    assert costs.allowed(large, 3.0).operations == 60 * 10**9 + 3 * 2**21
    assert costs.allowed(large, math.inf).operations > 2**62
    for budget in (0, -1, math.nan):
        with pytest.raises(errors.Error, match="budget: expected a positive factor"):
            costs.allowed({}, budget)


@pytest.mark.parametrize("number", sorted(versions.NEWEST.kinds))
def test_costs_grow_with_the_leaf_and_with_what_is_sent(number):
    block_kind = versions.NEWEST.kinds[number]

    def cost(rows, size=None):
        if size and block_kind.name == "mapped":
            size = size << 9 | 8  # values at places
        head = kind.Head(block_kind, 0, 1.0, size if block_kind.sized else None)
        return block_kind.cost(head, spec(rows, 64), 1)

    few, many = cost(256, 8), cost(1024, 8)
    assert few.operations < many.operations
    assert few.working_bytes <= many.working_bytes
    if block_kind.sized:
        assert cost(256, 8).operations < cost(256, 64).operations
        with pytest.raises(errors.CorruptUpdateError, match="expected at most"):
            cost(256, 10**9)


def test_working_memory_is_what_was_said():
    """The peak of every kind, beside the old and the new leaf, of a narrow dtype, beside which temporaries are wide."""
    shape = (256, 512)
    base = {"w": samples.floats(shape, 5).astype(np.float16)}
    said = samples.blocks_of(shape, None, 300, rank=16)
    said["sparse"] = Sparse(np.arange(0, 1 << 17, 2), np.ones(1 << 16, np.int32), samples.STEP)
    for name, block in said.items():
        update = container.encode(packet.Packet({"w": block}), base, budget=math.inf)
        found = samples.costs_of(update, base)[0]
        tracemalloc.start()
        try:
            new = container.apply_update(update, base)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        slack = 8 << 20  # tables of slots and NumPy's slices
        assert peak - new["w"].nbytes < found.working_bytes + slack, name


def test_ranks_of_many_small_matrices_are_charged_per_matrix():
    one, many = (basis.cost(spec(stack, 8, 8), 8, versions_view(), is_copied=False).operations for stack in (1, 1000))
    assert many > 900 * one


def versions_view():
    return kind.views.of_words("stack in out")


def by_the_table(head, shape, words, itemsize, lanes):
    """(operations, working bytes) of a block, from the tables in FORMAT.md alone."""
    n, size = math.prod(shape), head.size or 0
    w, m = n * itemsize, int(words != " ".join(["in"] * (len(shape) - 1) + ["out"] * bool(shape)))
    axes = list(zip(words.split(), shape, strict=True))
    stack, fan_in, fan_out = (math.prod(axis for word, axis in axes if word == wanted) for wanted in ORDER)
    a, b = min(size, fan_in), min(size, fan_out)

    def segment(t, c, lanes=lanes):
        if not t:
            return 0, 0
        sizes, c = [], min(c, t)
        while sum(sizes) < t:
            sizes.append(min(max(sum(sizes), 64), 1 << 20, t - sum(sizes)))
        chunks = sum(2**13 * math.ceil(one / lanes) + min(96 * one, 2**14 * c) for one in sizes)
        return 2**17 + 2**13 * c + 24 * t + chunks, 56 * max(sizes)

    def matrix(rows, columns):
        if not rows * columns:
            return 0, 0
        parts = [segment(rows * columns, 64), segment(rows, 1), segment(columns, 1)]
        return sum(ops for ops, _ in parts), 16 * (rows + columns) + max(most for _, most in parts)

    def places(k, n):
        return segment(n if 0 < k < n else 0, 1)

    product = 12 * n + 256 * stack + n * size // 8, 2 * w * m
    basis_ = stack * (6 * size * fan_in * fan_out + 6 * size**2 * (fan_in + fan_out)) // 8
    basis_ += stack * (6 * size * 2**15 + 96 * size * (fan_in + fan_out)) + 16 * n
    at = w + 64 * size
    lines = fan_in + size if size else 0
    lanes_of = lambda t: min(max(2 ** ((t // 256).bit_length() - 1), 1), 4096) if t >= 256 else 1  # noqa: E731

    def rounds(k, p, own):
        c, r = min(16, k), max(1, k.bit_length() - 6)
        steps = 2**13 * math.ceil(k / own)
        return p * (2**17 + 2**13 * (c + r)) + 24 * k + steps + min(96 * k, p * r * 2**14 * c)

    def changes(k):
        p = math.ceil(n / 2**22) if 2 * k >= 2**12 else 1
        own, q = lanes_of(2 * k // p) if 2 * k >= 2**12 else lanes, math.ceil(n / p)
        working = min(3 + w // 2**24, p) * (96 * min(k, q // 8, 2**18) + 4 * q)
        return [(2 * rounds(k, p, own) if k else 0, 0)], w + 8 * n + 128 * k, working

    def exact():
        rows = math.prod(shape[:-1])
        columns = n // rows if n >= 64 and 1 < n // rows <= 2**14 and rows > 1 else 0
        step = (2**20 // columns * columns if columns else 2**20) if n >= 2**12 else n
        sizes = [min(step, n - start) for start in range(0, n, step)] if n else []
        parts = []
        for q in sizes:
            own = lanes if n < 2**12 else lanes_of(q)
            parts += [segment(q, 64, own), *(segment(t, 1, own) for t in ((q // columns, columns) if columns else ()))]
        a = min(3 + w // 2**24, len(sizes)) if n >= 2**12 else 1
        return [(ops, 0) for ops, _ in parts], w + 12 * n, a * (20 * max(sizes, default=0) + 2**23)

    table = {
        "raw": ([], w, 0),
        "exact": exact(),
        "changes": changes(size),
        "half": ([], 12 * n, 3 * n),
        "dense": ([matrix(stack * fan_in, fan_out), (0, m * (4 * n // shape[0] if shape else 0))], 12 * n, 4 * n),
        "sparse": ([matrix(1, size), segment(size, 1)], at, 28 * size),
        "seeded": ([matrix(1, size), (16 * n + 64 * size, 40 * size + 2**23)], at, 12 * size),
        "magnitude": ([matrix(1, size), (16 * n + 64 * size, 24 * size + 2 * w)], at, 12 * size),
        "factors": (
            [matrix(stack * fan_in, size), matrix(stack * fan_out, size), product],
            0,
            20 * stack * (fan_in + fan_out) * size,
        ),
        "coefficients": (
            [matrix(stack * a, b), (basis_, 8 * n - (1 - m) * w), product],
            stack * a * fan_in * b // 8,
            32 * stack * (fan_in + fan_out) * size,
        ),
        "columns": (
            [places(size, stack * fan_out), matrix(fan_in, size)],
            w + 24 * fan_in * size + 64 * lines,
            4 * fan_in * size + 40 * size,
        ),
    }
    assert head.kind.name in table, f"{head.kind.name}: expected its row in FORMAT.md, Costs, and in this table"
    parts, operations, working = table[head.kind.name]
    return 2**17 + operations + sum(ops for ops, _ in parts), working + max((most for _, most in parts), default=0)


ORDER = ("stack", "in", "out")


@pytest.mark.parametrize("lanes", [1, 8, 4096])
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((), ""),
        ((5,), "out"),
        ((300, 700), "in out"),
        ((300, 700), "out in"),
        ((12, 64, 8, 16), "stack in out out"),
        ((16, 8, 3, 3), "out in in in"),
        ((2048, 1024), "in out"),
    ],
)
def test_costs_are_those_of_the_specification(shape, words, lanes):
    for found, size, dtype in itertools.product(versions.NEWEST.kinds.values(), [1, 3, 4], ["<f4", "<f2", "<f8"]):
        if found.name == "mapped":
            continue  # `test_mapped` has its tables
        number = kind.views.number(kind.views.of_words(words), len(shape)) if found.viewed else None
        leaf, default = spec(*shape, dtype=dtype), " ".join(["in"] * (len(shape) - 1) + ["out"] * bool(shape))
        size = min(size**8, leaf.size // 8) if found.name == "changes" else size
        if found.sized and size > min(shape if len(shape) > 1 else (1,)) and found.name != "changes":
            continue
        head = kind.Head(found, 0, 1.0, size if found.sized else None, number)
        read_as = words if found.viewed else default
        assert found.cost(head, leaf, lanes) == by_the_table(head, shape, read_as, leaf.dtype.itemsize, lanes)


def charge(heads, specs, update_bytes, lanes):
    """At the default budget, an eighth of the update being extra bits."""
    extra = bytes(update_bytes // 8)
    parts = header.Parts(versions.NEWEST, b"", b"", 0, heads, b"", extra, lanes, b"")
    decoding.account(parts, update_bytes, specs, 1.0)


@pytest.mark.parametrize("dtype", ["<f4", "<u2", "|i1"])
def test_an_exact_update_of_a_whole_model_is_within_the_default_budget(dtype):
    """Of any width of weights, and of few or many leaves."""
    for shape, leaves in (((4096, 4096), 8), ((512, 512), 400), ((64,), 1500)):
        specs = {f"{i:04d}": spec(*shape, dtype=dtype) for i in range(leaves)}
        whole = sum(leaf.nbytes for leaf in specs.values())
        for size in (None, math.prod(shape) // 100, math.prod(shape) // 8):
            heads = [kind.Head(versions.NEWEST.kinds[10 if size else 1], i, size=size) for i in range(leaves)]
            charge(heads, specs, whole, rans.choose_lanes(whole / 2, whole, 1 << 20))


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_a_lossy_update_of_a_whole_model_is_within_the_default_budget(dtype):
    for shape, leaves in (((4096, 4096), 8), ((1024, 512), 200), ((64,), 1500)):
        specs = {f"{i:04d}": spec(*shape, dtype=dtype) for i in range(leaves)}
        heads = [kind.Head(versions.NEWEST.kinds[3], i, 1.0) for i in range(leaves)]
        size = sum(leaf.size for leaf in specs.values())
        charge(heads, specs, size // 8, rans.choose_lanes(size / 8, size, 1 << 20))


def test_rows_of_a_moved_view_are_taken_many_at_a_time(monkeypatch):
    """A tall leaf seen the other way round takes a step for 2^16 weights, not for each of its rows."""
    calls, real = [], increments._incremented
    monkeypatch.setattr(increments, "_incremented", lambda *given: calls.append(1) or real(*given))
    base = {"w": np.zeros((200_000, 2), np.float32)}
    values = samples.integers((200_000, 2), 7)
    for words in ("in out", "out in"):
        calls.clear()
        new = apply.apply(packet.Packet({"w": Dense(values, 0.5, kind.views.of_words(words))}), base)["w"]
        np.testing.assert_array_equal(new, values * np.float32(0.5))
        assert len(calls) == 7


def test_an_empty_leaf_of_endless_axes_costs_nothing():
    for shape in ((0, 1 << 60), (1 << 60, 0)):
        for found in versions.NEWEST.kinds.values():
            head = kind.Head(found, 0, 1.0, 0 if found.sized else None)
            if found.name == "mapped":
                with pytest.raises(errors.CorruptUpdateError, match="values"):
                    found.cost(head, spec(*shape), 1)
                continue
            assert found.cost(head, spec(*shape), 1).operations < 1 << 24


def test_more_blocks_than_leaves_are_refused_before_they_are_read():
    base = {"w": np.zeros(1, np.float32)}
    parts = header.parse(container.encode(packet.Packet({}), base))
    heads = [kind.Head(versions.NEWEST.kinds[0], i) for i in range(70_000)]
    many = header.pack(parts._replace(heads=heads))
    with pytest.raises(errors.CorruptUpdateError, match="expected at most 1 blocks, found 70000"):
        container.apply_update(many, base)
    with pytest.raises(errors.CorruptUpdateError, match="expected at most 65536 blocks"):
        container.new_metadata(many, {})


def test_half_precision_overflows_to_infinity_as_numpy_does():
    values = np.float32([65503.9, 65519.99, 65520, -65520, 1e30, -np.inf, np.nan, 1.5])
    found = dtypes.round_floats(values, np.dtype("<f2"))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, values.astype(np.float16))

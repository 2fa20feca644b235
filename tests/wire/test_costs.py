"""What applying takes is known before it is paid, and bombs are refused by it."""

import math
import tracemalloc

import numpy as np
import pytest

from tests.wire import samples
from updcomp.wire import basis, container, costs, dtypes, errors, fingerprint, header, kind, packet, streams, versions
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
    return header.pack(header.Update(version, print_, bytes(16), 0, [head], *writer.finish()))


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
    with pytest.raises(errors.CostError, match=r"expected at most 2,000,000,000 operations .* a budget of \d"):
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


def test_what_the_default_would_refuse_is_not_made():
    base = {"w": samples.floats((1024, 1024), 3).astype(np.float32)}
    block = Coefficients(np.ones((1024, 1024), np.int32), 1024, samples.STEP)
    with pytest.raises(errors.CostError, match="allow a budget of") as caught:
        container.encode(packet.Packet({"w": block}), base)
    needed = float(str(caught.value).rsplit("budget of ", 1)[1].split()[0])
    update = container.encode(packet.Packet({"w": block}), base, budget=needed)
    with pytest.raises(errors.CostError):
        container.apply_update(update, base)
    assert (container.apply_update(update, base, budget=needed)["w"] != base["w"]).any()


def test_an_update_beyond_the_model_itself_is_not_made():
    base = {"w": np.zeros(1 << 18, np.float16)}
    values = (samples.bits(1 << 18, 9, 30) + (1 << 30)).astype(np.int32)
    with pytest.raises(errors.CostError, match="expected at most 589,840 bytes for this model"):
        container.encode(packet.Packet({"w": Dense(values, samples.STEP)}), base, budget=math.inf)


def test_the_allowance_is_in_proportion_and_has_a_floor():
    assert costs.allowed({}, 1.0) == costs.allowed({"w": spec(10)}, 1.0)._replace(working_bytes=64 << 20)
    small, large = ({"a": spec(10**6 * m), "b": spec(4 * 10**6 * m)} for m in (1, 50))
    assert costs.allowed(small, 1.0) == (2 * 10**9, 2 * 16 * 10**6 + (64 << 20))
    assert costs.allowed(large, 1.0) == (20 * 10**9, 2 * 800 * 10**6 + 10 * (64 << 20))
    assert costs.allowed(large, 3.0).operations == 60 * 10**9
    assert costs.allowed(large, math.inf).operations > 2**62
    for budget in (0, -1, math.nan):
        with pytest.raises(errors.Error, match="budget: expected a positive factor"):
            costs.allowed({}, budget)


@pytest.mark.parametrize("number", sorted(versions.NEWEST.kinds))
def test_costs_grow_with_the_leaf_and_with_what_is_sent(number):
    block_kind = versions.NEWEST.kinds[number]

    def cost(rows, size=None):
        head = kind.Head(block_kind, 0, 1.0, size if block_kind.sized else None)
        return block_kind.cost(head, spec(rows, 64), 1)

    few, many = cost(256, 8), cost(1024, 8)
    assert few.operations < many.operations
    assert few.working_bytes <= many.working_bytes
    if block_kind.sized:
        assert cost(256, 8).operations < cost(256, 64).operations
        with pytest.raises(errors.CorruptUpdateError, match="expected at most"):
            cost(256, 10**9)


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_working_memory_is_what_was_said(dtype):
    """The peak of every kind, beside the old and the new leaf, on a leaf large enough for temporaries to show."""
    shape = (512, 512)
    base = {"w": samples.floats(shape, 5).astype(dtype)}
    said = samples.blocks_of(shape, None, 300, rank=32)
    said["sparse"] = Sparse(np.arange(0, 1 << 18, 2), np.ones(1 << 17, np.int32), samples.STEP)
    for name, block in said.items():
        update = container.encode(packet.Packet({"w": block}), base, budget=math.inf)
        found = container.cost(header.parse(update), dtypes.specs(base))[0]
        container.apply_update(update, base)
        tracemalloc.start()
        try:
            new = container.apply_update(update, base)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        slack = 8 << 20  # tables of slots and NumPy's slices
        assert peak - new["w"].nbytes < found.working_bytes + slack, name


def test_ranks_of_many_small_matrices_are_charged_per_matrix():
    one, many = (basis.cost(spec(stack, 8, 8), 8, versions_view(), moves=False).operations for stack in (1, 1000))
    assert many > 900 * one


def versions_view():
    return kind.views.of_words("stack in out")


def by_the_table(head, shape, itemsize, lanes):
    """(operations, working bytes) of a block, from the table in FORMAT.md alone; default views of one matrix."""
    n = math.prod(shape)
    fan_in, fan_out = math.prod(shape[:-1]), shape[-1] if shape else 1
    w, size, stack = n * itemsize, head.size, 1

    def segment(t, c):
        sizes, start = [], 0
        while start < t:
            sizes.append(min(max(start, 64), 1 << 20, t - start))
            start += sizes[-1]
        if not t:
            return 0, 0
        c = min(c, t)
        chunks = sum(2**13 * -(-one // max(lanes, 1)) + min(96 * one, 2**14 * c) for one in sizes)
        return 2**18 + 2**14 * c + 24 * t + chunks, 56 * max(sizes)

    def matrix(rows, columns):
        parts = [segment(rows * columns, 64), segment(rows, 1), segment(columns, 1)]
        return sum(ops for ops, _ in parts), 16 * (rows + columns) + max(held for _, held in parts)

    def increments(r):
        return 12 * n + 256 * stack + n * r // 8

    a, b = (min(size or 0, fan) for fan in (fan_in, fan_out))
    parts, own, held = {
        "raw": lambda: ([], w, 0),
        "exact": lambda: ([segment(n, 64)], w, w),
        "half": lambda: ([], 12 * n, 3 * n),
        "dense": lambda: ([matrix(fan_in, fan_out)], 12 * n, 4 * n),
        "sparse": lambda: ([segment(size, 1)] * 2, w + 64 * size, 28 * size),
        "seeded": lambda: (
            [segment(size, 1), (16 * n + 64 * size, 40 * size + 2**23)],
            w + 64 * size,
            12 * size,
        ),
        "magnitude": lambda: (
            [segment(size, 1), (16 * n + 64 * size, 24 * size + 3 * w)],
            w + 64 * size,
            12 * size,
        ),
        "factors": lambda: (
            [matrix(fan_in, size), matrix(fan_out, size)],
            increments(size),
            20 * (fan_in + fan_out) * size,
        ),
        "coefficients": lambda: (
            [
                matrix(a, b),
                (
                    (6 * size * fan_in * fan_out + 6 * size**2 * (fan_in + fan_out)) // 8
                    + 6 * size * 2**15
                    + 96 * size * (fan_in + fan_out)
                    + 16 * n,
                    12 * n,
                ),
            ],
            increments(size) + a * fan_in * b // 8,
            32 * (fan_in + fan_out) * size,
        ),
    }[head.kind.name]()
    return 2**18 + own + sum(ops for ops, _ in parts), held + max((most for _, most in parts), default=0)


@pytest.mark.parametrize("name", samples.packets())
def test_costs_are_those_of_the_specification(name):
    base = samples.model()
    parts = header.parse(container.encode(samples.packets()[name], base))
    for head, cost in zip(parts.heads, container.cost(parts, dtypes.specs(base)), strict=True):
        leaf = dtypes.hold(base[sorted(base)[head.leaf]])
        if leaf.dtype.kind != "c":
            assert cost == by_the_table(head, leaf.shape, leaf.itemsize, parts.lanes)


@pytest.mark.parametrize(("rank", "lanes"), [(1, 1), (40, 8)])
def test_costs_of_large_leaves_are_those_of_the_specification(rank, lanes):
    shape = (300, 700)
    for found in versions.NEWEST.kinds.values():
        head = kind.Head(found, 0, 1.0, rank if found.sized else None)
        assert found.cost(head, spec(*shape), lanes) == by_the_table(head, shape, 4, lanes)

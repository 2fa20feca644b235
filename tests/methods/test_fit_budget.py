"""Updates of at most so many bytes."""

import pytest

import updcomp
from tests.methods.worlds import KEY, digits
from updcomp import methods
from updcomp.methods.fitted_budget import FAMILIES, Family
from updcomp.training import validation
from updcomp.wire.errors import BudgetError, Error, NonFiniteError

SMALL = {
    "subspace": Family(lambda rank: methods.subspace(rank=rank), (1, 2, 4, 8, 16)),
    "random_mask": Family(lambda ratio: methods.random_mask(ratio=ratio, bits=2, aux=None), (0.001, 0.01, 0.1)),
}


def size(packet, deployed, **options):
    return len(updcomp.encode(packet, deployed, **options))


@pytest.mark.parametrize(("update_bytes", "compact"), [(120, True), (400, False)])
def test_the_bytes_are_met_and_spent_better_than_by_any_family_alone(update_bytes, compact):
    deployed, task = digits()
    packet = methods.fit_budget(max_bytes=update_bytes, families=SMALL, compact=compact)(KEY, deployed, task)
    assert size(packet, deployed, compact=compact) <= update_bytes
    found = score(packet, deployed, task)
    for family in SMALL.values():
        packets = [family.make(one)(KEY, deployed, task) for one in family.sizes]
        fitting = [one for one in packets if size(one, deployed, compact=compact) <= update_bytes]
        assert all(found >= score(one, deployed, task) for one in fitting[-1:])


def score(packet, deployed, task):
    return validation.score(updcomp.apply(updcomp.encode(packet, deployed), deployed), task)


def test_a_number_that_nothing_meets_names_the_smallest():
    deployed, task = digits()
    with pytest.raises(BudgetError, match=r"expected at least \d+ \(the smallest .*by subspace\), found 30"):
        methods.fit_budget(max_bytes=30, families={"subspace": SMALL["subspace"]})(KEY, deployed, task)


def test_a_family_that_diverges_is_left_out():
    def diverging(size):
        def method(key, deployed, task):
            raise NonFiniteError("diverged")

        return method

    deployed, task = digits()
    families = {"subspace": SMALL["subspace"], "diverging": Family(diverging, (1, 2))}
    packet = methods.fit_budget(max_bytes=200, families=families)(KEY, deployed, task)
    assert packet.blocks
    assert size(packet, deployed) <= 200


def test_a_size_that_no_leaf_takes_does_not_fit():
    deployed, task = digits()
    families = {"pranc": Family(lambda size: methods.pranc(size=size, bits=2), (16, 64, 1 << 20))}
    packet = methods.fit_budget(max_bytes=200, families=families)(KEY, deployed, task)
    assert 0 < size(packet, deployed) <= 200
    with pytest.raises(BudgetError, match="families: expected one that .* pranc: leaf .*values: expected"):
        methods.fit_budget(max_bytes=200, families={"pranc": families["pranc"]._replace(sizes=(1 << 20,))})(
            KEY, deployed, task
        )


def test_a_size_that_gains_nothing_tells_no_bytes():
    """Its update is empty and small; the largest size is not taken for it."""

    def gaining(rank):
        return methods.subspace(rank=rank, rate=30.0 if rank <= 2 else 1e-30)

    deployed, task = digits()
    packet = methods.fit_budget(max_bytes=400, families={"odd": Family(gaining, (1, 2, 4, 8))})(KEY, deployed, task)
    assert score(packet, deployed, task) > validation.score(deployed, task)


def test_packets_that_are_compact_by_themselves_are_measured_as_they_go():
    def compact(rank):
        return lambda *given: methods.subspace(rank=rank)(*given)._replace(compact=True)

    deployed, task = digits()
    packet = methods.fit_budget(max_bytes=90, families={"compact": Family(compact, (1, 2, 4))})(KEY, deployed, task)
    assert size(packet, deployed) <= 90


def test_what_grows_with_training_is_told_by_its_largest_size():
    def growing(rank):
        def method(key, deployed, task):
            return methods.subspace(rank=1 if task.epochs < 4 else rank)(key, deployed, task._replace(epochs=1))

        return method

    deployed, task = digits()
    task = task._replace(epochs=16)
    large = size(methods.subspace(rank=16)(KEY, deployed, task._replace(epochs=1)), deployed)
    with pytest.raises(BudgetError, match=f"expected at least {large} .* found {large - 1}"):
        methods.fit_budget(max_bytes=large - 1, families={"growing": Family(growing, (16,))})(KEY, deployed, task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bytes": 0}, "max_bytes: expected .* found 0"),
        ({"max_bytes": 1, "finalists": 0}, "finalists: expected .* found 0"),
        ({"max_bytes": 1, "families": []}, "families: expected several of .*, or None for all, found "),
        ({"max_bytes": 1, "families": "subspace"}, "families: expected several of .*, found 'subspace'"),
        ({"max_bytes": 1, "families": ["other"]}, "expected some of .*subspace.*, found 'other'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(Error, match=message):
        methods.fit_budget(**options)


def test_sizes_of_all_families_ascend():
    for family in FAMILIES.values():
        assert list(family.sizes) == sorted(set(family.sizes))

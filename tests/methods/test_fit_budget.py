"""Updates of at most so many bytes."""

import pytest

import updcomp
from tests.methods.worlds import KEY, digits
from updcomp import methods
from updcomp.methods.fitted_budget import FAMILIES, Family
from updcomp.training import validation
from updcomp.wire.errors import BudgetError, Error

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bytes": 0}, "max_bytes: expected .* found 0"),
        ({"max_bytes": 1, "finalists": 0}, "finalists: expected .* found 0"),
        ({"max_bytes": 1, "families": ["other"]}, "expected some of .*subspace.*, found 'other'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(Error, match=message):
        methods.fit_budget(**options)


def test_sizes_of_all_families_ascend():
    for family in FAMILIES.values():
        assert list(family.sizes) == sorted(set(family.sizes))

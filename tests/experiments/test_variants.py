"""Each variant of the rounds experiment: what it trains, selects and starts from."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from experiments import rounds, rounds_variants
from experiments.rounds_variants import VARIANTS
from tests.experiments.little import little_rounds
from updcomp import partition, trees
from updcomp.edge import files
from updcomp.protocol import rounds as protocol_rounds
from updcomp.training import loop
from updcomp.training.optimizers import cosine

RATIO = 0.15
RANK = 3
# Variant -> epochs of each of its trainings, in a round, where --epochs=2.
TRAININGS = {
    **{name: {"full": 4} for name in ("fu", "fu_last", "fu_fresh")},
    **{name: {"partial-full": 2, "partial-sparse": 2} for name in ("dpu", "dpu_no_restart", "gcpu", "lcpu", "pruning")},
    "dpu_subspace": {"partial-full": 2, "partial-sparse": 2},  # in rounds that restart; else a single one
    "iterative": {"partial-full": 2, "partial-narrow": 16, "partial-sparse": 2},  # 0.8, 0.64, ..., 0.168, then 0.15
    "pruning_gradual": {"partial-full": 2, "partial-narrow": 2, "partial-sparse": 2},  # 0.2, then 0.15
    "rpu": {"random_mask": 4},
    "magnitude": {"magnitude_mask": 4},
}
RESTARTS = {
    **dict.fromkeys(("dpu", "iterative", "magnitude"), "doubled"),
    "dpu_subspace": "doubled",  # as the first round's is sent
    **dict.fromkeys(("pruning", "pruning_gradual"), "always"),
}


@pytest.fixture(scope="module")
def variants(tmp_path_factory, deliver_here):
    """Every variant over three rounds: the folder, what its rounds gave, and how long each training was."""
    workdir = tmp_path_factory.mktemp("variants")
    config = little_rounds(methods=tuple(VARIANTS), rounds=3, ratio=RATIO, bits=4, aux=0, sparse_rate=10.0, rank=RANK)
    given, trained = {}, {}
    run_round = protocol_rounds.run_round

    def watched(key, method, held, task, *, base, update, **options):
        name = update.parent.name.removesuffix("-seed0")
        epochs = trained.setdefault((name, len(given.setdefault(name, []))), Counter())
        watching = task._replace(callback=lambda epoch: epochs.update([epoch.training]))
        done = run_round(key, method, held, watching, base=base, update=update, **options)
        given[name].append((base.variables, held.variables, done))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol_rounds, "deliver", deliver_here)
        patch.setattr(protocol_rounds, "run_round", watched)
        rounds.run(config, workdir)
    return workdir, given, trained


def split(variables):
    """(kernels, all other leaves)."""
    leaves = trees.named_leaves(variables)
    kernels = {leaf.name for leaf in partition.of(variables).leaves if leaf.role == partition.KERNEL}
    return {name: np.asarray(leaves[name]) for name in kernels}, {n: leaves[n] for n in leaves.keys() - kernels}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_the_paper_trains_selects_and_restarts_as_it_says(name, variants):
    workdir, given, trained = variants
    first = files.read_model(workdir / "device" / f"{name}-seed0.safetensors").model
    assert len(given[name]) == 3
    for number, (base, held, done) in enumerate(given[name]):
        between = name == "dpu_subspace" and number == 1
        assert trained[name, number] == ({"subspace": 2} if between else TRAININGS[name])
        # 60, 120 and 180 samples: only the third round has more than twice those of the first.
        restarts = {"never": number == 0, "always": True, "doubled": number in (0, 2)}[RESTARTS.get(name, "never")]
        assert same(trees.to_model(base), first if restarts else trees.to_model(held))
        assert number < 2 or not same(trees.to_model(held), first)
        (old, old_aux), (new, new_aux) = split(base), split(done.trained)
        sizes = {leaf: kernel.size for leaf, kernel in old.items()}
        changed = {leaf: int(np.sum(old[leaf] != new[leaf])) for leaf in old}
        if name.startswith("fu"):
            assert sum(changed.values()) > 0.5 * sum(sizes.values())  # some pixels are never inked
            continue
        assert same(old_aux, new_aux)
        if between:  # within A C B^T, of which any weight may be moved
            ranks = [np.linalg.matrix_rank(new[leaf] - old[leaf], tol=1e-5) for leaf in old]
            assert 0 < max(ranks) <= RANK
            continue
        if name in ("rpu", "magnitude"):  # of each kernel
            assert all(changed[leaf] <= int(RATIO * sizes[leaf]) for leaf in sizes)
        else:  # of all together
            assert 0.1 * sum(sizes.values()) < sum(changed.values()) <= int(RATIO * sum(sizes.values()))


def test_variants_part_where_they_differ(variants):
    """In the first round all start alike; what differs from then on is the variant's own."""
    workdir = variants[0]
    first = {name: (workdir / "updates" / f"{name}-seed0" / "round-000.upd").read_bytes() for name in VARIANTS}
    assert first["fu"] == first["fu_last"] != first["fu_fresh"]
    assert first["dpu"] == first["dpu_no_restart"]
    apart = VARIANTS.keys() - {"fu_last", "dpu_no_restart"}
    assert len({first[name] for name in apart}) == len(apart)


def test_the_help_names_every_variant():
    (field,) = (field for field in dataclasses.fields(rounds.Config) if field.name == "methods")
    named = field.metadata["help"] + " ".join(field.default)
    assert not [name for name in VARIANTS if name not in named]


def test_updates_that_are_held_for_long_are_no_lucky_epoch(monkeypatch, tmp_path):
    """A new start and a small update are of the last epoch, at a rate that falls to zero; others as the flags say."""
    fit, tasks = loop.fit, []
    monkeypatch.setattr(
        loop, "fit", lambda key, task, *rest, **more: tasks.append(task) or fit(key, task, *rest, **more)
    )
    rounds.run(little_rounds(methods=("dpu", "dpu_subspace"), rounds=2, rank=RANK, bits=4), tmp_path)
    assert [(task.keep, task.schedule is cosine) for task in tasks] == [("best", False)] * 4 + [("last", True)] * 3


def test_more_weights_move_by_smaller_steps_where_more_data_are_there(tmp_path, monkeypatch):
    partial, made = rounds_variants.methods.partial, []
    monkeypatch.setattr(
        rounds_variants.methods, "partial", lambda **options: made.append(options) or partial(**options)
    )
    monkeypatch.setattr(rounds.protocol, "run_rounds", started := Started(protocol_rounds.run_rounds))
    options = {"rounds": 3, "ratio": 0.05, "bits": 4, "aux": 0, "growth": 1.0, "rank": RANK}
    rows = rounds.run(little_rounds(methods=("dpu", "dpu_subspace"), **options), tmp_path)
    for name, number, factor in (("dpu", 2, 1), ("dpu_subspace", 0, 1), ("dpu_subspace", 2, 3)):  # rounds that restart
        (old, _), (new, _) = split(started.first[name].variables), split(started.rounds[name][number].trained)
        share = sum(int(np.sum(old[leaf] != new[leaf])) for leaf in old) / sum(kernel.size for kernel in old.values())
        assert 0.7 * 0.05 * factor < share <= 0.05 * factor
    assert [(one["ratio"], one["sparse_rate"]) for one in made] == [(0.05, 1.0), (0.05, 1.0), (0.05 * 3, 1 / 3)]
    growths = {row.identity.method: row.identity.setting.get("growth") for row in rows}
    assert growths == {"dpu": None, "dpu_subspace": 1.0}


def same(one, other):
    return all(np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes() for name in one)


def test_pruned_models_keep_no_more_than_the_ratio(variants):
    for name in VARIANTS:
        is_pruning = name.startswith("pruning")
        for base, _, done in variants[1][name][:1]:
            assert all(kernel.any() != is_pruning for kernel in split(base)[0].values())
            kept = sum(np.count_nonzero(kernel) for kernel in split(done.trained)[0].values())
            assert kept > 0
            assert (kept <= int(RATIO * (64 * 8 + 8 * 10))) == is_pruning


def test_full_updating_starts_where_its_name_says(tmp_path, monkeypatch):
    """With a learning rate of next to nothing, training gives what it started from."""
    monkeypatch.setattr(rounds.protocol, "run_rounds", started := Started(protocol_rounds.run_rounds))
    config = little_rounds(methods=("fu", "fu_last", "fu_fresh"), rounds=2, epochs=1, learning_rate=1e-30)
    rounds.run(config, tmp_path)
    init = trees.to_model(started.first["fu"].variables)
    gave = {name: [trees.to_model(done.trained) for done in given] for name, given in started.rounds.items()}
    assert all(same(model, init) for model in (*gave["fu"], *gave["fu_last"]))
    assert not any(same(model, init) for model in gave["fu_fresh"])
    assert not same(*gave["fu_fresh"])


class Started:
    """`run_rounds`, noting from where and what each round gave."""

    def __init__(self, run_rounds):
        self.run_rounds, self.first, self.rounds = run_rounds, {}, {}

    def __call__(self, key, method, first, task, stages, *, folder, **options):
        name = folder.name.removesuffix("-seed0")
        self.first[name], self.rounds[name] = first, []
        for done in self.run_rounds(key, method, first, task, stages, folder=folder, **options):
            self.rounds[name].append(done)
            yield done

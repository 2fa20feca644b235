"""The language model at its smallest, on texts of the test's own."""

import jax
import numpy as np
import pytest

from experiments import language
from updcomp import partition, trees
from updcomp.training import text
from updcomp.wire.errors import DatasetError, Error

LITTLE = {
    "width": 8,
    "depth": 1,
    "heads": 2,
    "length": 8,
    "pretrain_characters": 2_000,
    "characters": 1_000,
    "validation_characters": 200,
    "test_characters": 301,
    "pretrain_epochs": 2,
    "epochs": 2,
    "learning_rate": 1e-2,
}


@pytest.fixture(autouse=True)
def texts(monkeypatch):
    def repeated(phrase):
        return lambda limit, seed: ((f"{phrase} {seed}\n") * 400)[:limit]

    monkeypatch.setattr(text, "topics_and_docstrings", repeated("an object is truthful"))
    monkeypatch.setattr(text, "sources", repeated("if self.x: return x"))


def little(**options):
    return language.Config(**{**LITTLE, "settings": ("low_rank:rank=1",), **options})


def test_a_run_gives_bits_per_character_of_which_fewer_are_better(tmp_path):
    config = little()
    full, small = language.run(config, tmp_path)
    metrics = full.metrics
    assert full.identity.model == "transformer-1x8"
    assert full.identity.about.keys() == {"documentation", "sources"}
    assert metrics["sent"]
    assert 0 < metrics["bits_per_character"] < metrics["deployed_bits_per_character"] < np.log2(text.VOCABULARY) + 2
    assert small.metrics["full_update_bits_per_character"] == metrics["bits_per_character"]
    assert small.metrics["update_bytes"] < metrics["update_bytes"]
    report = (tmp_path / "report.md").read_text()
    assert "bits per character" in report
    assert (tmp_path / "bits_per_character_vs_bytes.png").exists()


def test_a_world_has_disjoint_windows_and_attention_kernels_are_read_as_matrices():
    world = language.documented(little())(1)
    counts = [LITTLE["characters"], LITTLE["validation_characters"], LITTLE["test_characters"]]
    parts = [world.task.train, world.task.validation, world.test]
    assert [int(np.sum(part["mask"])) for part in parts] == [count - 1 for count in counts]
    leaves = partition.of(jax.eval_shape(world.init, jax.random.key(0)), axes=world.task.axes).leaves
    views = {leaf.name: leaf.view for leaf in leaves}
    assert views["blocks/0/attention/query/kernel"].in_axes == (0,)
    assert views["blocks/0/attention/out/kernel"].in_axes == (0, 1)
    assert trees.named_leaves(world.before.train)["tokens"].dtype == np.uint8


def test_the_same_settings_give_the_same_objective_and_each_seed_its_own_text():
    one, other = (language.documented(little())(seed) for seed in (0, 1))
    assert one.task.objective is other.task.objective
    assert one.score is other.score
    assert one.about != other.about


def test_settings_that_do_not_fit_are_errors():
    with pytest.raises(Error, match="width: expected a multiple of heads, 3, found 8"):
        little(heads=3)
    with pytest.raises(Error, match="--characters: expected at least --batch_size=16 samples"):
        little(characters=100)
    with pytest.raises(Error, match="--dropout: expected from 0 to below 1, found 1.0"):
        little(dropout=1.0)
    with pytest.raises(DatasetError, match="together at most"):
        language.documented(little(test_characters=10**6))(0)

"""Worlds: every shift of images, and a task that has none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compare, images, shifts
from experiments.settings import ComparisonConfig
from experiments.trainings import TrainingConfig, task_of
from experiments.worlds import Score, World
from tests.experiments.little import lines_of, little
from updcomp.training import data
from updcomp.training.objectives import Objective, make_score
from updcomp.wire.errors import Error


def classes(dataset):
    return set(np.asarray(dataset.labels).tolist())


@pytest.mark.parametrize("name", shifts.SHIFTS)
def test_every_shift_makes_a_world_of_disjoint_samples(name):
    config = little(shift=name, batch_size=25)
    source, shift = data.load("digits"), shifts.SHIFTS[name]
    world = images.shifted(config)(0)
    again = images.shifted(config)(0)
    for part, other in zip(jax.tree.leaves(world.test), jax.tree.leaves(again.test), strict=True):
        np.testing.assert_array_equal(part, other)
    assert world.test.images.dtype == np.uint8
    if shift.after is None:
        assert world.test.images.shape == source.test.images.shape
        np.testing.assert_array_equal(world.test.labels, source.test.labels)
        assert len(world.task.train.labels) == 100
    else:
        assert classes(world.before.train).isdisjoint(classes(world.task.train))
        assert classes(world.task.train) == classes(world.task.validation) == classes(world.test)
    if shift.images:
        assert len(world.before.train.labels) == 100
        assert np.mean(np.abs(world.test.images.astype(float) - source.test.images)) > 5
    else:
        assert classes(world.before.train) == classes(world.before.validation)
        assert classes(world.before.train) != classes(world.task.train)
    assert world.about == {"shift": name}
    variables = world.init(jax.random.key(0))
    assert variables["params"]["Dense_1"]["bias"].shape == (10,)  # all classes, whichever are there
    assert np.isfinite(world.score.of(variables, world.test))


def test_a_shift_takes_other_numbers():
    source = data.load("digits")
    turned = shifts.choose("rotation:low=90:high=90").after(source.test, source, jax.random.key(0))
    np.testing.assert_array_equal(turned.images, np.rot90(source.test.images, axes=(1, 2)))
    two = images.shifted(little(shift="classes:share=0.2", batch_size=10))(0)
    assert classes(two.before.train) == {0, 1}
    assert classes(two.task.train) == set(range(10))
    others = images.shifted(little(shift="other_classes:share=0.2", batch_size=10))(0)
    assert classes(others.before.train) == {0, 1}
    assert classes(others.task.train) == classes(others.test) == set(range(2, 10))


def test_other_classes_keep_their_labels_and_all_their_test_samples():
    source = data.load("digits")
    test = images.shifted(little(shift="other_classes", batch_size=25))(0).test
    expected = data.of_classes(source.test, range(5, 10))
    np.testing.assert_array_equal(test.labels, expected.labels)
    np.testing.assert_array_equal(test.images, expected.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 60}, "--pretrain_samples: expected at least --batch_size=60"),
        (
            {"batch_size": 25, "shift": "other_classes:share=0.9"},
            r"--samples: expected at least --batch_size=25 samples to train on, found \d+; use more samples",
        ),
        *(
            ({"shift": f"other_classes:share={share}"}, f"share: expected .* leaves some before .* found {share}")
            for share in ("0", "0.01", "0.99", "1", "nan")
        ),
        (
            {"shift": "other_classes:share=0.9", "batch_size": 1, "validation_samples": 1},
            "expected samples of the classes . to ., found none among 1 samples",
        ),
    ],
)
def test_classes_that_leave_too_few_samples_are_an_error(options, message):
    with pytest.raises(Error, match=message):
        images.shifted(little(**{"shift": "other_classes", **options}))(0)


def test_a_shift_without_options_takes_none():
    assert shifts.usual("inversion") == "inversion"
    with pytest.raises(Error, match="inversion takes no options; found 'low'"):
        shifts.choose("inversion:low=3")


def test_images_come_in_the_size_that_is_asked_for():
    assert images.shifted(little(image_size=12))(0).test.images.shape == (599, 12, 12, 1)


@dataclasses.dataclass(frozen=True)
class LineConfig(TrainingConfig, ComparisonConfig):
    """Lines."""

    learning_rate: float = 0.1
    epochs: int = 30
    batch_size: int = 16


def squared(variables, batch, key):
    return jnp.mean((batch["x"] @ variables["w"] - batch["y"]) ** 2)


def lines(config):
    objective = Objective(squared)
    error = make_score(objective)

    def world(seed):
        x = np.random.default_rng(seed).normal(size=(96, 4)).astype(np.float32)
        slopes = np.array([[1, 2, 3], [0, 1, 0], [2, 0, 1], [0, 0, 1]], np.float32)
        train, validation, test = ({"x": part, "y": part @ slopes} for part in np.split(x, 3))
        return World(
            dataset="lines",
            model="linear",
            title="Lines",
            init=lambda key: {"w": 0.1 * jax.random.normal(key, (4, 3))},
            before=None,
            task=task_of(config, objective, train, validation),
            test=test,
            score=Score("squared_error", lambda variables, data: -error(variables, data), 2, higher_is_better=False),
            about={"slopes": "small"},
        )

    return world


def test_a_world_need_not_be_of_images(tmp_path, capsys):
    config = LineConfig(settings=("low_rank:rank=1,3:bits=8",), seeds=2)
    rows = compare.run(config, tmp_path, experiment="lines", worlds=lines)
    assert {row.identity.dataset for row in rows} == {"lines"}
    full, thin, thick = (
        [r.metrics["squared_error"] for r in rows if r.identity.setting == s]
        for s in (
            {"bits": None},
            {"rank": 1, "bits": 8},
            {"rank": 3, "bits": 8},
        )
    )
    assert max(full) < 1 < min(row.metrics["deployed_squared_error"] for row in rows)
    assert np.mean(thick) < np.mean(thin)
    assert "| squared error " in capsys.readouterr().out
    assert (tmp_path / "squared_error_vs_bytes.png").exists()
    assert lines_of(tmp_path)[0]["about"] == {"slopes": "small"}

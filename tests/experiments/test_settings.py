"""What is compared at which settings, as flags and files say it, before anything loads."""

import dataclasses
import inspect
import re

import pytest

from experiments import EXPERIMENTS, config, flag_groups, settings, shifts, specs
from experiments.settings import ComparisonConfig, choose
from updcomp.methods import METHODS
from updcomp.wire.errors import Error


def keys(**options):
    return [(cell.method, cell.setting) for cell in choose(ComparisonConfig(**options)).cells]


def test_without_flags_every_usual_setting_is_compared_but_for_the_optional_methods():
    usual = [(name, options) for name, table in settings.DEFAULTS.items() for options in table]
    assert keys() == [key for key in usual if key[0] not in settings.OPTIONAL]
    assert keys()[0] == settings.REFERENCE


def test_usual_settings_are_of_methods_that_there_are():
    assert set(settings.DEFAULTS) <= set(METHODS)
    assert set(settings.DEFAULTS) > settings.OPTIONAL


def test_settings_are_every_combination_and_replace_the_usual_ones():
    found = keys(settings=("low_rank:rank=1,2:bits=2,4; partial:ratio=.01", "subspace:rank=8:aux=none"))
    assert found == [
        settings.REFERENCE,
        *[("low_rank", {"rank": rank, "bits": bits}) for rank in (1, 2) for bits in (2, 4)],
        ("partial", {"ratio": 0.01}),
        ("subspace", {"rank": 8, "aux": None}),
    ]


def test_methods_add_their_usual_settings_and_nothing_is_compared_twice():
    found = keys(methods=("low_rank",), settings=("low_rank:rank=1,3:bits=2:aux=4",))
    assert [options["rank"] for name, options in found if name == "low_rank"] == [1, 2, 4, 8, 3]


def test_a_settings_file_brings_settings_and_methods_of_its_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from updcomp.methods import low_rank\n"
        "METHODS = {'thin': lambda width=1: low_rank(rank=width), 'thick': lambda: low_rank(rank=8)}\n"
        "SETTINGS = {'thin': [{'width': 1}, {'width': 2}], 'subspace': [{'rank': 4}]}\n"
    )
    own = [("thin", {"width": 1}), ("thin", {"width": 2}), ("thick", {}), ("subspace", {"rank": 4})]
    chosen = choose(ComparisonConfig(settings_file=str(path), settings=("thin:width=3",)))
    assert chosen.from_file == own
    assert [(cell.method, cell.setting) for cell in chosen.cells] == [settings.REFERENCE, *own, ("thin", {"width": 3})]
    assert chosen.cells[2].make == METHODS["low_rank"](rank=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "medium_rank:rank=1",
            "--settings: expected a method of full, partial, .* found 'medium_rank'; write it as in",
        ),
        ("low_rank:ranks=1", r"--settings: low_rank: .*'ranks'; its options are rank=None, energy=None"),
        ("low_rank", "--settings: low_rank: rank: expected one of rank, energy and max_bytes"),
        ("low_rank:rank=two", "--settings: low_rank: rank: expected a whole number or none, found 'two'"),
        ("low_rank:rank=1.5", "rank: expected a whole number or none, found 1.5"),
        ("low_rank:rank=0", "--settings: low_rank: rank: expected .*found 0"),
        ("subspace:rank=4:bits=40", "--settings: subspace: .*40"),
        ("partial:ratio=2", "--settings: partial: ratio: expected .* found 2"),
        ("partial:ratio=.1:scores=loud", "--settings: partial: scores: expected one of .* found 'loud'"),
        ("full:start=zero", "--settings: full: start: expected none, found 'zero'"),
        ("low_rank:rank", "expected each option once, as OPTION=VALUE .* found 'rank' in 'low_rank:rank'; write it as"),
        ("low_rank:rank=1,", "found 'rank=1,'"),
        ("low_rank:rank=1:rank=2", "expected each option once"),
    ],
)
def test_settings_that_do_not_fit_are_reported_with_what_to_do(text, message):
    with pytest.raises(Error, match=message):
        choose(ComparisonConfig(settings=(text,)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot run it: FileNotFoundError"),
        ("1 / 0", "cannot run it: ZeroDivisionError: division by zero"),
        ("x = 1", "expected SETTINGS = .* found neither"),
        ("SETTINGS = ['low_rank']", "or something else under these names"),
        ("METHODS = {'mine': 3}", "or something else under these names"),
        ("SETTINGS = {'low_rank': [3]}", r"SETTINGS\['low_rank'\]: expected a list of dicts .*, found 3"),
        ("SETTINGS = {'low_rank': [{'rank': print}]}", "expected a list of dicts .*, found {'rank': <built-in"),
        ("SETTINGS = {'low_rank': [{'rank': -1}]}", "--settings_file: low_rank: rank: expected"),
        ("METHODS = {'mine': lambda width: None}", "--settings_file: mine: missing .*'width'"),
    ],
)
def test_settings_files_that_do_not_fit_are_reported(text, message, tmp_path):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Error, match=message) as raised:
        choose(ComparisonConfig(settings_file=str(path)))
    assert "--settings_file: " in str(raised.value)


def test_the_flags_of_what_was_compared_compare_the_same():
    options = {"methods": ("low_rank",), "settings": ("low_rank:rank=3,5:bits=2", "partial:ratio=0.01;full:bits=none")}
    for given in (options, {}, {"settings": ("full:bits=none",)}, {"methods": tuple(settings.DEFAULTS)}):
        compared = keys(**given)
        again = keys(**settings.flags_of(compared, [], settings.DEFAULTS))
        assert sorted(map(str, again)) == sorted(map(str, compared))
    assert settings.flags_of(keys(), [], settings.DEFAULTS) == {"methods": (), "settings": ()}


def test_values_of_every_kind_survive_text():
    options = {"a": 1, "b": 0.5, "c": None, "d": True, "e": "combined"}
    ((name, values),) = [specs.parse(specs.text_of("x", [options]), flag="--settings", example="")]
    assert (name, specs.combinations(values)) == ("x", [options])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flood", "--shift: expected one of rotation, contrast_noise, classes, .*, found 'flood'"),
        ("rotation:angle=3", "--shift: rotation takes low=30, high=45; found 'angle'"),
        ("rotation:low=1,2", "--shift: rotation: low: expected one number, found 1,2"),
        ("rotation:low=none", "expected one number, found None"),
    ],
)
def test_shifts_that_do_not_fit_are_reported(text, message):
    with pytest.raises(Error, match=message):
        shifts.choose(text)


@pytest.mark.parametrize("name", shifts.SHIFTS)
def test_the_options_of_a_shift_are_those_of_its_functions(name):
    shift = shifts.SHIFTS[name]
    for function in filter(None, (shift.images, shift.before, shift.after)):
        parameters = inspect.signature(function).parameters.values()
        assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(shift.options)
    assert shifts.choose(shifts.usual(name)).options == shift.options


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_defaults_of_every_experiment_pass_its_own_checks(experiment):
    made = flag_groups.configs()[experiment]()
    for field in dataclasses.fields(made):
        check = config.described(type(made), field.name).get("check")
        assert getattr(made, field.name) is None or check is None or check.holds(getattr(made, field.name))


def test_help_has_every_flag_with_its_defaults_every_experiment_and_every_preset():
    text = re.sub(r"\s+", " ", flag_groups.help_text())
    for name in flag_groups.define():
        assert f"--{name} " in text
    for name in (*EXPERIMENTS, *(path.stem for path in flag_groups.PRESETS.glob("*.flags"))):
        assert f" {name} " in text
    assert re.search(r" Training \(quickstart, compare,[^)]* rounds, neurons, bench_train, bench_neurons\): ", text)
    assert re.search(
        r"--learning_rate ((?!--).)*\(default 0.003 in quickstart; 0.001 in compare[,;]((?!--).)* 0.005 in rounds\)",
        text,
    )
    assert re.search(r"--optimizer ((?!--).)*\(default adam\)", text)


@pytest.mark.parametrize("path", sorted(flag_groups.PRESETS.glob("*.flags")), ids=lambda path: path.stem)
def test_presets_are_read_and_fit(path, monkeypatch):
    """All but the devices, of which a machine may have fewer."""
    values = flag_groups.define()
    values(["run.py", f"--flagfile={path}", "--devices=1"])
    made = flag_groups.configure(flag_groups.configs()[values.experiment], values.experiment, values)
    assert values.workdir == f"runs/{path.stem}"
    if isinstance(made, ComparisonConfig):
        choose(made)

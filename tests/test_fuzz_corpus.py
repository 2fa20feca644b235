import collections
import random

import pytest

from tests.fuzz import corpus, coverage, loop, mutation, target, targets
from updcomp.wire import container, errors, header, versions

INPUTS = 25  # of a short run, beside the seeds


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_input_of_the_corpus_gives_a_model_or_an_error(name):
    tested, outcomes = targets.TARGETS[name], collections.Counter()
    for data in [*tested.seeds(), *corpus.read(corpus.FOLDER / name)]:
        # As it was found, and with checksums and fingerprints as they would be today.
        for one in {data, tested.repair(data)}:
            outcome, finding = target.judge(tested, one)
            assert finding is None, f"{corpus.name_of(data)}: {finding.text}"
            outcomes[outcome] += 1
    assert outcomes["accepted"], "no input reaches the end: make the corpus anew with python -m tests.fuzz"


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_short_run_finds_nothing(name):
    report = loop.fuzz(targets.TARGETS[name], [], count=INPUTS, seed=0)
    assert not report.findings, "\n".join(finding.text for _, finding in report.findings.values())
    assert report.inputs > INPUTS
    assert report.outcomes["accepted"]
    assert len(report.outcomes) > 1


def test_the_corpus_is_small():
    folders = {folder.name: corpus.read(folder) for folder in corpus.FOLDER.iterdir()}
    assert folders.keys() <= targets.TARGETS.keys()
    for name, inputs in folders.items():
        assert len(inputs) <= corpus.MOST_FILES, name
        assert max(map(len, inputs)) <= mutation.MOST, name


@pytest.mark.parametrize("kind", [kind.name for kind in versions.NEWEST.kinds.values()])
def test_edits_of_updates_reach_behind_the_coder(kind):
    tested, rng = targets.TARGETS[kind], random.Random(0)
    said = {tested.content(data): data for data in tested.seeds()}
    for _ in range(60):
        data = tested.repair(tested.edit(rng.choice(list(said.values())), rng))
        if target.judge(tested, data)[0] == "accepted":
            said[tested.content(data)] = data
    assert len(said) > 10


def test_the_same_seed_gives_the_same_inputs():
    first, second = (loop.fuzz(targets.TARGETS["header"], [], count=60, seed=1).pool for _ in range(2))
    assert first == second


def raising(error):
    def parse(update):
        if len(update) > 300:
            raise error
        raise errors.CorruptUpdateError("short")

    return parse


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (IndexError("planted"), "IndexError in test_fuzz_corpus.py:parse"),
        (errors.Error("two\nlines"), "AssertionError in target.py:refused"),
        (errors.Error(""), "AssertionError in target.py:refused"),
    ],
)
def test_a_planted_error_is_found_and_trimmed(monkeypatch, error, kind):
    monkeypatch.setattr(header, "parse", raising(error))
    tested = targets.TARGETS["header"]
    report = loop.fuzz(tested, [], count=0, seed=0)
    data, finding = report.findings[kind]
    assert str(error).split("\n")[0] in finding.text
    shorter = corpus.trimmed(data, lambda one: target.judge(tested, one)[1] is not None, tested.repair)
    assert 300 < len(shorter) < 320


def test_memory_beyond_the_bound_is_found(monkeypatch):
    whole = container.apply_update

    def hungry(update, base, **options):
        bytearray(target.MEMORY + 1)
        return whole(update, base, **options)

    monkeypatch.setattr(container, "apply_update", hungry)
    report = loop.fuzz(targets.TARGETS["raw"], [], count=0, seed=0)
    assert list(report.findings) == ["memory after accepted"]


def test_a_model_of_another_shape_is_found(monkeypatch):
    def reshaped(_, base, **__):
        return {name: leaf[..., None] for name, leaf in base.items()}

    monkeypatch.setattr(container, "apply_update", reshaped)
    report = loop.fuzz(targets.TARGETS["raw"], [], count=0, seed=0)
    assert list(report.findings) == ["AssertionError in updates.py:apply"]


def test_more_lines_than_allowed_end_a_call():
    data = targets.TARGETS["container"].seeds()[0]
    answer = coverage.traced(lambda: targets.TARGETS["container"].run(data), most=100)
    assert isinstance(answer.error, coverage.Endless)
    assert answer.trace.lines == 101


def test_edges_say_what_was_taken():
    good = targets.TARGETS["header"].seeds()[0]
    whole, broken = (coverage.traced(lambda data=data: header.parse(data)) for data in (good, good[:-1]))
    assert whole.error is None
    assert isinstance(broken.error, errors.CorruptUpdateError)
    assert broken.trace.edges - whole.trace.edges
    assert {file for file, _, _ in whole.trace.edges} <= {"updcomp/wire/header.py"}


def test_few_inputs_take_every_edge():
    tested = targets.TARGETS["header"]
    inputs = [*tested.seeds(), b"", b"updc", b"xxxx", tested.seeds()[0][:-1]]
    chosen, edges = corpus.smallest(tested, inputs)
    assert set().union(*(target.watch(tested, data).trace.edges for data in chosen)) >= edges
    assert len(chosen) < len(inputs)


def test_a_folder_holds_the_last_inputs_and_every_crash(tmp_path):
    corpus.write(tmp_path, [b"a", b"b"])
    corpus.keep_crash(tmp_path, b"c")
    corpus.write(tmp_path, [b"b", b"d"])
    assert sorted(corpus.read(tmp_path)) == [b"b", b"c", b"d"]

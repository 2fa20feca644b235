import subprocess
import sys

import numpy as np
import pytest

from updcomp.training import text
from updcomp.wire.errors import DatasetError

SOURCE = '''"""What the module does."""
# a comment
import os


class Point:
    """A place.

    In two dimensions.
    """

    def norm(self):
        "Its length."
        return "no docstring"

    def one_line(self): "Kept, as it shares its line."
'''


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A standard library of three files that are read, and files that are not."""
    root = tmp_path_factory.mktemp("lib")
    files = {"a.py": SOURCE, "b.py": "x = 1\n", "deep/c.py": "# coding: latin-1\n# caf\xe9\n"}
    left_out = ("test/t.py", "site-packages/p/q.py", "json/tests/u.py", "_sysconfigdata_linux.py", "config-3/x.py")
    for name, content in {**files, **dict.fromkeys(left_out, "left = out\n")}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("latin-1"))
    return root


@pytest.fixture
def in_library(library, monkeypatch):
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: {"stdlib": str(library)}[name])


def test_sources_keep_comments_and_lose_docstrings(in_library):
    code = text.sources()
    kept = ["# a comment\nimport os\n", 'return "no docstring"', 'def one_line(self): "Kept', "x = 1", "# caf\xe9"]
    assert all(part in code for part in kept)
    lost = ["What the module does", "In two dimensions", "Its length", "left = out"]
    assert not any(part in code for part in lost)
    assert "class Point:\n\n    def norm(self):\n        return" in code


def test_docstrings_come_without_their_indentation_beside_the_topics(in_library):
    documentation = text.topics_and_docstrings()
    assert "What the module does.\n\nA place.\n\nIn two dimensions.\n\nIts length.\n\nKept, as it" in documentation
    assert "import os" not in documentation
    assert len(documentation) > 200_000  # the topics


def test_no_file_is_much_of_the_text(in_library, library, monkeypatch):
    monkeypatch.setattr(text, "_LONGEST", 6)
    assert sorted(text.sources().split("\n\n")) == ["", "# a co", "# codi", "x = 1"]


def test_the_text_is_the_same_in_every_process_and_a_limit_gives_its_beginning():
    code = (
        "from updcomp.training import text\n"
        "print(text.digest(text.sources(60_000)), text.digest(text.topics_and_docstrings(60_000)))"
    )
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    here = [text.digest(read(60_000)) for read in (text.sources, text.topics_and_docstrings)]
    assert other.stdout.split() == here
    assert here[0] != here[1]
    assert text.sources(70_000)[:60_000] == text.sources(60_000)


def test_another_seed_gives_other_documents_first(in_library):
    one, other = text.sources(seed=0), text.sources(seed=2)
    assert one != other
    assert sorted(one.split()) == sorted(other.split())


def test_a_python_without_its_sources_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path / "python311.zip"))
    for read in (text.sources, text.topics_and_docstrings):
        with pytest.raises(DatasetError, match=r"python311.zip: .* found none; use a Python whose standard library"):
            read()


def test_a_python_without_pydoc_data_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DatasetError, match=r"pydoc_data.topics: .* found no such module; use a Python"):
        text.topics_and_docstrings()


def test_printable_ascii_and_the_newline_have_tokens_of_their_own():
    printable = "\n" + "".join(map(chr, range(32, 127)))
    tokens = text.encode(printable)
    assert tokens.dtype == np.uint8
    assert sorted(tokens.tolist()) == list(range(text.VOCABULARY - 1))
    assert set(text.encode("\t\r\0\x7f\x80é€😀\ud800").tolist()) == {text.UNKNOWN}
    assert text.VOCABULARY <= 128


def test_split_gives_contiguous_parts():
    assert text.split("abcdefgh", (3, 0, 4)) == ("abc", "", "defg")
    with pytest.raises(DatasetError, match=r"together at most 3 characters, found \(2, 2\)"):
        text.split("abc", (2, 2))


@pytest.mark.parametrize("characters", [0, 1, 2, 5, 6, 7, 23])
def test_windows_predict_every_character_but_the_first_once(characters):
    content = "the quick brown fox jumps over"[:characters]
    batch = text.windows(content, 5)
    tokens, mask = batch["tokens"], batch["mask"]
    assert tokens.dtype == np.uint8
    assert tokens.shape == (len(mask), 6)
    np.testing.assert_array_equal(tokens[:, 1:][mask], text.encode(content)[1:])
    np.testing.assert_array_equal(tokens[:, :-1][mask], text.encode(content)[:-1])
    assert mask[:-1].all()
    assert (np.diff(mask[-1:].astype(int)) <= 0).all()
    assert mask.sum() == max(characters - 1, 0)


def test_windows_of_no_length_are_an_error():
    with pytest.raises(DatasetError, match="length: expected at least 1, found 0"):
        text.windows("abc", 0)

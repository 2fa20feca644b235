"""Text that every Python installation has, as windows of characters: documentation, and source code.

The documents, none of them long, come in an order that the SHA-256 of their names gives: any part of a text is a sample
of the whole, and the same one in every process. Another version of Python has other documents; `digest` tells texts
apart.
"""

import ast
import functools
import hashlib
import inspect
import os
import string
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from updcomp.wire.errors import DatasetError

_CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
UNKNOWN = len(_CHARACTERS)  # the token of every other character
VOCABULARY = UNKNOWN + 1

# Not the library itself (packages, tests, applications), or tables rather than text.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"}
_LEFT_OUT |= {"encodings", "pydoc_data"}
_LONGEST = 10_000  # characters of each document; otherwise a few long ones, such as tables, would be most of a part
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_ADVICE = "use a Python whose standard library is there in full and as files, such as one from python.org or pyenv"


def topics_and_docstrings(limit: int | None = None, *, seed: int = 0) -> str:
    """The topics of Python's `help()`, from its language reference, and the docstrings of the standard library.

    Args:
      limit: characters at most; None = all, about 1.5 million.
      seed: another one gives another order of the documents.

    Returns:
      The text; the docstrings of one file are one document.

    Raises:
      DatasetError: this Python has no `pydoc_data`, or no sources of its standard library.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DatasetError(
            f"pydoc_data.topics: expected in {sys.executable}, found no such module; {_ADVICE}"
        ) from None
    documents = {f"topics/{name}": functools.partial(str, topic) for name, topic in topics.items()}
    return _joined(documents | _each(_docstrings), limit, seed)


def sources(limit: int | None = None, *, seed: int = 0) -> str:
    """The source code of the standard library, with its comments and without its docstrings.

    Args:
      limit: characters at most; None = all, about 2.8 million.
      seed: another one gives another order of the files.

    Returns:
      The text.

    Raises:
      DatasetError: the standard library is not there as files with its sources.
    """
    return _joined(_each(_code), limit, seed)


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256, to tell whether two runs saw the same text.

    >>> digest("")
    'e3b0c44298fc1c14'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode(text: str) -> np.ndarray:
    r"""Characters as tokens: printable ASCII and the newline have one each, everything else shares `UNKNOWN`.

    Args:
      text: any text.

    Returns:
      uint8 (len(text),), below `VOCABULARY`.

    >>> encode("\n01é").tolist() == [0, 1, 2, UNKNOWN]
    True
    """
    table = np.full(129, UNKNOWN, np.uint8)
    table[[ord(character) for character in _CHARACTERS]] = np.arange(UNKNOWN, dtype=np.uint8)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return table[np.minimum(codes, 128)]


def split(text: str, counts: Sequence[int]) -> tuple[str, ...]:
    """Contiguous parts from the text's beginning, one after the other, that share no character.

    Args:
      text: n characters.
      counts: how many characters each part gets; together at most n.

    Returns:
      One text per count.

    Raises:
      DatasetError: the counts exceed the text.

    >>> split("abcdef", (2, 3))
    ('ab', 'cde')
    """
    if sum(counts) > len(text):
        found = f"expected counts of together at most {len(text)} characters, found {tuple(counts)}"
        raise DatasetError(f"split: {found}; ask for less")
    ends = np.cumsum(counts).tolist()
    return tuple(text[end - count : end] for count, end in zip(counts, ends, strict=True))


def windows(text: str, length: int) -> dict[str, np.ndarray]:
    """A text as the samples of a language model: every character but the first is predicted exactly once.

    Window i holds the characters from `i * length` to `(i + 1) * length`, inclusive: the first `length` of them are
    what the model reads, the last `length` what it predicts.

    Args:
      text: n characters.
      length: characters that a window predicts, at least 1.

    Returns:
      `{"tokens": uint8 (m, length + 1), "mask": bool (m, length)}` with m = ceil((n - 1) / length). The mask is False
      for predictions of the padding, which fills up the last window.

    Raises:
      DatasetError: `length` is below 1.

    >>> batch = windows("abcd", 2)
    >>> batch["tokens"].tolist() == [encode("abc").tolist(), [*encode("cd"), 0]]
    True
    >>> batch["mask"].tolist()
    [[True, True], [True, False]]
    """
    if length < 1:
        raise DatasetError(f"length: expected at least 1, found {length}")
    predicted = max(len(text) - 1, 0)
    count = -(-predicted // length)
    tokens = np.zeros(count * length + 1, np.uint8)
    tokens[: len(text)] = encode(text)
    starts = length * np.arange(count)[:, None]
    mask = starts + np.arange(length) < predicted
    return {"tokens": tokens[starts + np.arange(length + 1)], "mask": mask}


def _files() -> dict[str, Path]:
    """The files of the standard library that are read, by their path in its folder."""
    root = Path(sysconfig.get_path("stdlib"))
    files: dict[str, Path] = {}
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _LEFT_OUT and not name.startswith("config-")]
        # The settings of Python's build differ from machine to machine.
        paths = [Path(folder, name) for name in names if name.endswith(".py") and "_sysconfigdata" not in name]
        files |= {path.relative_to(root).as_posix(): path for path in paths}
    if not files:
        raise DatasetError(f"{root}: expected the standard library's sources (*.py), found none; {_ADVICE}")
    return files


def _each(read: Callable[[Path], str]) -> dict[str, Callable[[], str]]:
    return {name: functools.partial(read, path) for name, path in _files().items()}


def _joined(documents: Mapping[str, Callable[[], str]], limit: int | None, seed: int) -> str:
    """The documents' beginnings in the seed's order, a blank line between them, up to `limit` characters."""
    text, length = [], 0
    for name in sorted(documents, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        if limit is not None and length >= limit:
            break
        if document := documents[name]().strip()[:_LONGEST]:
            text.append(f"{document}\n\n")
            length += len(text[-1])
    return "".join(text)[:limit]


def _read(path: Path) -> tuple[str, list[ast.Expr]]:
    """A file's source, and its docstrings in their order."""
    with tokenize.open(path) as file:  # in the encoding that the file declares
        source = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the source, such as escapes that a later Python will not take
        tree = ast.parse(source)
    documented = (node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
    found = [node.body[0] for node in documented if ast.get_docstring(node, clean=False) is not None]
    return source, sorted((node for node in found if isinstance(node, ast.Expr)), key=lambda node: node.lineno)


def _docstrings(path: Path) -> str:
    """The docstrings of a file, without their indentation, a blank line between them."""
    texts = (node.value.value for node in _read(path)[1] if isinstance(node.value, ast.Constant))
    return "\n\n".join(inspect.cleandoc(text) for text in texts if isinstance(text, str))


def _code(path: Path) -> str:
    """The source of a file without the lines of its docstrings."""
    source, docstrings = _read(path)
    lines = source.split("\n")
    for node in reversed(docstrings):
        if not lines[node.lineno - 1][: node.col_offset].strip():  # else it shares its line with code
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines)

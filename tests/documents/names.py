"""What must hold for a path, or for Python within a line: what it names is there."""

import ast
import contextlib
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.documents.commands import ROOT

_CHAIN = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*/?")
_FILE = re.compile(r".*\.(?:py|md|txt|flags|png|svg|toml|ipynb|jsonl?|csv|html|upd|safetensors|npz)")
_ROOTS = {"updcomp", "experiments", "jax", "numpy", "optax", "flax", "jnp", "np", "lax"}
_SHORT = {"jnp": "jax.numpy", "np": "numpy", "lax": "jax.lax"}
_PREFIXES = ("", *(f"updcomp.{part}" for part in ("", "training.", "methods.", "wire.", "edge.")), "experiments.")


def is_path(span: str) -> bool:
    """Whether this is meant as a path: one that begins with a folder of the repository, or the name of a file."""
    return bool(_PATH.fullmatch(span) and (span.split("/")[0] in _top() or _FILE.fullmatch(span)))


def is_there(span: str, folder: Path, blocks: str) -> bool:
    """Whether a path is in the repository, or a bare name is that of a file which the page or the programs write.

    Args:
      span: the path.
      folder: of the page.
      blocks: the text of the page's blocks.

    Returns:
      Whether it is.
    """
    places = (ROOT, folder, ROOT / "tests", ROOT / "updcomp")
    if any(next(place.glob(span.rstrip("/")), None) for place in places):
        return True
    return "/" not in span and (span in _files() or span in _sources() or span in blocks)


@functools.cache
def _top() -> set[str]:
    return {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}


@functools.cache
def _files() -> set[str]:
    return {path.name for top in _top() - {"build", "runs"} for path in (ROOT / top).rglob("*.*")}


@functools.cache
def _sources() -> str:
    paths = [ROOT / "run.py", *(path for top in ("updcomp", "experiments") for path in (ROOT / top).rglob("*.*"))]
    return "".join(path.read_text() for path in paths if path.suffix in (".py", ".md", ".flags"))


@functools.cache
def _words() -> set[str]:
    return set(re.findall(r"\w+", _sources()))


def problems(span: str, defined: dict[str, Any], blocks: str) -> Iterator[str]:
    """What Python within a line names that is not there: dotted names, classes, functions, keywords, other words."""
    known, functions = _words() | set(re.findall(r"\w+", blocks)), set(re.findall(r" def (\w+)\(", blocks))
    plain = re.sub(r"\"[^\"]*\"|'[^']*'", '""', span)
    for chain in _CHAIN.findall(plain):
        if "." in chain:
            if resolve(chain, defined) is None:
                yield f"`{span}`: {chain}: no such name"
        elif chain not in known and resolve(chain, defined) is None:
            yield f"`{span}`: {chain}: no such word in the sources"
    with contextlib.suppress(SyntaxError):
        for call in ast.walk(ast.parse(plain, mode="eval")):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            function = None if name in functions else resolve(name, defined)
            if callable(function) and isinstance(call, ast.Call):
                taken = inspect.signature(function).parameters
                wrong = [k.arg for k in call.keywords if k.arg not in taken]
                yield from (f"`{span}`: {word}: no such argument" for word in wrong)


def resolve(name: str, defined: dict[str, Any] | None = None) -> Any:
    """What a dotted name stands for, written from any of the usual modules on; None if it stands for nothing."""
    root, *rest = name.split(".")
    if defined and root in defined:
        return _attribute(defined[root], rest)
    for full in (
        f"{prefix}{_SHORT.get(name, name)}".replace(f"{root}.", f"{_SHORT.get(root, root)}.", 1) for prefix in _PREFIXES
    ):
        parts = full.split(".")
        if parts[0] not in _ROOTS:
            continue
        for length in range(len(parts), 0, -1):
            with contextlib.suppress(ImportError):
                module = importlib.import_module(".".join(parts[:length]))
                found = _attribute(module, parts[length:])
                if found is not None:
                    return found
                break
    return None


def _attribute(found: Any, names: list[str]) -> Any:
    for name in names:
        fields = getattr(found, "__dataclass_fields__", {})
        found = getattr(found, name, fields.get(name))
    return found

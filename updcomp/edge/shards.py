"""Models in folders as Hugging Face has them: `.safetensors` shards and the index that says which leaf is in which.

A folder with one `.safetensors` file and no index is a model of one shard.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from updcomp.edge import objects
from updcomp.edge.reading import AnyPath, named, read_bytes
from updcomp.wire import dtypes, errors

SHARD, INDEX = ".safetensors", ".index.json"
"""Endings of the files' names."""

_FIRST = ("model.safetensors.index.json", "model.safetensors")
_MAP = "weight_map"
_LARGEST = 32 << 20  # bytes of an index; those of the largest models have 9 MB
_MOST_FIELDS = 64  # of an index, beside the places of leaves
_LONGEST_FIELD = 1 << 18  # characters: JSON that is read takes thirty times its size
_JSON = json.JSONDecoder()


class Index(NamedTuple):
    """An index, of which no shard has been opened."""

    name: str  # of its file
    content: bytes
    homes: dict[str, str]  # leaf name -> name of the shard's file


class Layout(NamedTuple):
    """Which files a model in a folder has, and what they hold beside the leaves."""

    homes: Mapping[str, str]  # leaf name -> name of the shard's file
    metadata: Mapping[str, Mapping[str, str]]  # name of the shard's file -> its texts
    index_file: Index | None  # None for a model of one shard


def is_folder(path: AnyPath) -> bool:
    """Whether a path is a folder with a shard or an index in it; another folder may be an Orbax model."""
    try:
        return any(name.endswith((SHARD, SHARD + INDEX)) for name in os.listdir(path))
    except (OSError, ValueError):
        return False


def is_index(path: AnyPath) -> bool:
    """Whether a path is meant as an index, by its name."""
    return os.fspath(path).endswith(INDEX)


def locate(path: AnyPath) -> Path:
    """The file that stands for a model: in a folder its index or only shard, anywhere else the path itself.

    Args:
      path: a folder, an index, or a model file.

    Returns:
      A path, which need not exist if it is no folder's.

    Raises:
      FileError: a folder has no such file, or several of which none has the usual name.
    """
    with named(path):
        if not os.path.isdir(path):
            return Path(path)
        names = sorted(os.listdir(path))
        usual = [name for name in names if name in _FIRST]
        others = [name for name in names if name.endswith(SHARD + INDEX)] or [
            name for name in names if name.endswith(SHARD)
        ]
        found = usual or others
        if not found:
            wanted = f"without {' or '.join(_FIRST)}, or another name with such an ending"
            raise errors.FileError(f"expected a file, found a folder {wanted}")
        if len(found) > 1:
            told = ", ".join(found)
            raise errors.FileError(f"expected a folder with one index or {SHARD} file, found {told}; name one of them")
        return Path(path, found[0])


def read_index(path: Path) -> Index:
    """Reads an index; what it says besides the places of leaves is kept as it is and not looked at.

    Args:
      path: the index's.

    Returns:
      What it says.

    Raises:
      FileError: it cannot be read, is no such index, or names a file that is no shard beside it.
    """
    content = read_bytes(path, most=_LARGEST)
    with named(path):
        homes = objects.parse(content, _fields(), what="index").get(_MAP)
        if not isinstance(homes, dict):
            raise errors.FileError(f"index: expected {_MAP}, an object of leaf names and file names")
    return Index(path.name, content, homes)


def _fields() -> objects.Value:
    """What reads the fields of one index."""
    left = iter(range(_MOST_FIELDS))

    def field(name: str, text: str, at: int) -> tuple[Any, int]:
        if name == _MAP and text[at : at + 1] == "{":
            return objects.read(text, at, _home, what=_MAP)
        if next(left, None) is None:
            raise errors.FileError(f"index: expected at most {_MOST_FIELDS} fields, found more")
        try:
            return None, at + _JSON.raw_decode(text[at : at + _LONGEST_FIELD])[1]
        except ValueError:
            raise errors.FileError(f"index: {name!r}: expected JSON of at most {_LONGEST_FIELD} characters") from None

    return field


def _home(leaf: str, text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] != '"':
        raise errors.FileError(f"{_MAP}: leaf {leaf!r}: expected the name of a file")
    home, end = objects.read_text(text, at)
    if home != os.path.basename(home) or not home.endswith(SHARD) or "\0" in home:
        wanted = f"expected the name of a {SHARD} file in the same folder"
        raise errors.FileError(f"{_MAP}: leaf {leaf!r}: {wanted}, found {home!r}")
    return sys.intern(home), end


def check(homes: Mapping[str, str], shards: Mapping[str, Iterable[str]]) -> None:
    """Checks that each leaf is in one shard, where the index says that it is.

    Args:
      homes: leaf name -> name of the shard's file, as the index says.
      shards: name of the shard's file -> names of its leaves.

    Raises:
      FileError: it is not; the message names the leaf.
    """
    found: dict[str, str] = {}
    for shard, leaves in shards.items():
        for leaf in leaves:
            if leaf in found:
                where = f"found in {found[leaf]} and in {shard}"
                raise errors.FileError(f"leaf {leaf!r}: expected in one shard, {where}")
            found[leaf] = shard
    for leaf in sorted(homes.keys() | found.keys()):
        if homes.get(leaf) != found.get(leaf):
            where = f"expected in {homes.get(leaf, 'no shard')} as {_MAP} says, found in {found.get(leaf, 'none')}"
            raise errors.FileError(f"leaf {leaf!r}: {where}")


def common(texts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The texts that every shard has: the metadata of the model, which travel.

    >>> common([{"format": "pt", "part": "1"}, {"format": "pt", "part": "2"}])
    {'format': 'pt'}
    """
    first, *others = list(texts) or [{}]
    return {name: text for name, text in first.items() if all(other.get(name) == text for other in others)}


def files_of(path: AnyPath) -> list[Path]:
    """All files of a model.

    Args:
      path: a folder, an index or a model file.

    Returns:
      The index and its shards, or the one file.

    Raises:
      FileError: as `locate` and `read_index`.
    """
    found = locate(path)
    shards = sorted(set(read_index(found).homes.values())) if is_index(found) else []
    return [found, *(found.parent / shard for shard in shards)]


def of_leaves(layout: Layout, before: Mapping[str, dtypes.Spec], specs: Mapping[str, dtypes.Spec]) -> Layout:
    """The layout for other leaves: each new one is in the last shard, and a shard without leaves is left out.

    Args:
      layout: of a model.
      before: its leaves.
      specs: those that the other model has.

    Returns:
      The layout; the same where the leaves are. A new index has the other's fields, the total size made anew.
    """
    if dict(before) == dict(specs):
        return layout
    last = max(layout.metadata)
    homes = {leaf: layout.homes.get(leaf, last) for leaf in specs}
    used = set(homes.values()) or {last}
    texts = {shard: found for shard, found in layout.metadata.items() if shard in used}
    index = layout.index_file
    if index is not None:
        told = json.loads(index.content)
        if isinstance(told.get("metadata"), dict) and "total_size" in told["metadata"]:
            told["metadata"]["total_size"] = sum(spec.nbytes for spec in specs.values())
        content = json.dumps({**told, _MAP: dict(sorted(homes.items()))}, indent=2).encode() + b"\n"
        index = Index(index.name, content, homes)
    return Layout(homes, texts, index)


def specs_by_shard(layout: Layout, specs: Mapping[str, dtypes.Spec]) -> dict[str, dict[str, dtypes.Spec]]:
    """The leaves of each shard, those without a leaf included."""
    found: dict[str, dict[str, dtypes.Spec]] = {shard: {} for shard in layout.metadata}
    for leaf, spec in specs.items():
        found[layout.homes[leaf]][leaf] = spec
    return found

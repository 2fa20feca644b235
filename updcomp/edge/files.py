"""Models in files: checked when read, leaf by leaf; whole or absent when written."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from updcomp.edge import folders, formats, replacing, safetensors, shards
from updcomp.edge.opening import FORMATS, check_suffix
from updcomp.edge.opening import SUFFIXES as SUFFIXES
from updcomp.edge.opening import ModelFile as ModelFile
from updcomp.edge.opening import open_model as open_model
from updcomp.edge.reading import AnyPath, is_standard, named
from updcomp.edge.reading import read_bytes as read_bytes
from updcomp.edge.reading import read_update as read_update
from updcomp.edge.replacing import replace_file as replace_file
from updcomp.edge.replacing import sweep as sweep
from updcomp.edge.replacing import write_bytes as write_bytes
from updcomp.wire import dtypes, errors


def keeps_metadata(path: AnyPath) -> bool:
    """Whether the path names a format that has metadata: a `.safetensors` file, or a folder of those."""
    return Path(path).suffix == ".safetensors" or shards.is_index(path) or shards.is_folder(path)


def makes_folder(old: AnyPath, new: AnyPath) -> bool:
    """Whether the model made of an old one is written as a folder: the old one is in one, and the name is no file's."""
    return not is_standard(new) and Path(new).suffix not in SUFFIXES and (os.path.isdir(old) or shards.is_index(old))


def check_output(new: AnyPath, old: AnyPath, *inputs: AnyPath) -> None:
    """Checks, before work goes into it, that a model can be written there and replaces nothing that it is made from.

    Args:
      new: of the output; `-` is standard output.
      old: the model that it is made from.
      *inputs: what else it is made from.

    Raises:
      FileError: it cannot, or has an unknown suffix.
    """
    if makes_folder(old, new):
        folders.check_new(new)
        return
    replacing.check_output(new, *shards.files_of(old), *inputs)
    if is_standard(new) and shards.is_index(shards.locate(old)):
        raise errors.FileError("-o: expected the name of a folder or model file, found -; a model of shards is no file")
    # Of a model that is not there nobody knows whether it would be in a folder.
    if not is_standard(new) and os.path.lexists(old):
        check_suffix(new)


def read_model(path: AnyPath) -> ModelFile:
    """Reads the whole of a model.

    Args:
      path: as `open_model` takes it.

    Returns:
      Its leaves as a dict, and its metadata.

    Raises:
      FileError: as `open_model`.
    """
    with open_model(path) as (model, metadata):
        return ModelFile(dict(model), metadata)


def write_model(path: AnyPath, model: dtypes.Model, metadata: dict[str, str] | None = None) -> None:
    """Writes a `.safetensors` or `.npz` file, whole or not at all.

    Args:
      path: the file's; an older file there is replaced.
      model: leaf name -> array; of a lazy one no more than a leaf is held at a time.
      metadata: texts to keep in a `.safetensors` file.

    Raises:
      FileError: it cannot be written; then nothing is left of it.
    """
    specs = dtypes.specs(model)
    write_leaves(path, specs, ((name, model[name]) for name in specs), metadata)


def write_leaves(
    path: AnyPath,
    specs: Mapping[str, dtypes.Spec],
    leaves: formats.Leaves,
    metadata: dict[str, str] | None = None,
    *,
    like: AnyPath | None = None,
    follow: bool = True,
) -> None:
    """Writes a `.safetensors` or `.npz` file of leaves that come one at a time; nothing, if they end in an error.

    Args:
      path: the file's; an older file there is replaced. `-` is standard output.
      specs: of all leaves.
      leaves: (name, leaf) of each of them once; the order is that of the members of an `.npz`.
      metadata: texts to keep in a `.safetensors` file.
      like: a path whose suffix says the format if that of `path` does not.
      follow: whether a symbolic link stays and its target is replaced, or the link itself.

    Raises:
      FileError: it cannot be written, or leaves are missing, twice there, or others than their specs say.
    """
    formatted = path if like is None else like
    check_suffix(formatted)
    with named("standard output" if is_standard(path) else path):
        write = FORMATS[Path(formatted).suffix].writer(dict(specs), metadata or {})
    replace_file(path, lambda file: write(file, _checked(specs, leaves)), follow=follow)


def write_folder(
    path: AnyPath,
    like: dtypes.Model,
    specs: Mapping[str, dtypes.Spec],
    leaves: formats.Leaves,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a model into a new folder, with the files of another one; nothing, if the leaves end in an error.

    The index is the other's, byte for byte: what it says holds for every model of the same leaves. Of one with others
    it is made anew.

    Args:
      path: of the folder; an empty one may be there.
      like: the other one, open, of a folder; leaves that it lacks go into its last shard.
      specs: of all leaves.
      leaves: (name, leaf) of each of them once.
      metadata: texts of every shard, beside those that only some have.

    Raises:
      FileError: as `write_leaves`, or something is in the place, or the other one is of no folder.
    """
    layout: shards.Layout | None = getattr(like, "layout", None)
    if layout is None:
        raise errors.FileError(f"{os.fspath(path)}: expected a model file ending in {' or '.join(SUFFIXES)}")
    shared, layout = shards.common(layout.metadata.values()), shards.of_leaves(layout, dtypes.specs(like), specs)
    with named(path):
        plans = {
            shard: safetensors.plan(part, _without(layout.metadata[shard], shared) | (metadata or {}))
            for shard, part in shards.specs_by_shard(layout, specs).items()
        }
    folders.write(path, layout, plans, _checked(specs, leaves))


def _without(texts: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if name not in others}


def _checked(specs: Mapping[str, dtypes.Spec], leaves: formats.Leaves) -> Iterator[tuple[str, dtypes.Array]]:
    """The leaves as `dtypes.hold` gives them."""
    missing = dict(specs)
    for name, leaf in leaves:
        held = dtypes.hold(leaf)
        found = dtypes.Spec(held.shape, held.dtype)
        if found != (expected := missing.pop(name, None)):
            raise errors.FileError(f"leaf {name!r}: expected {expected or 'no such leaf, or not twice'}, found {found}")
        yield name, held
    if missing:
        raise errors.FileError(f"leaf {min(missing)!r}: expected {missing[min(missing)]}, found no such leaf")

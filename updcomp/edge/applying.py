"""An update applied from file to file, a leaf at a time."""

import collections

from updcomp.edge import files, shards
from updcomp.edge.reading import AnyPath, is_standard
from updcomp.wire import container, errors


def apply_file(old: AnyPath, update: bytes, new: AnyPath, *, budget: float = 1.0, follow: bool = True) -> bool:
    """Makes the model NEW from the model OLD; NEW is there when it is whole and verified, or not at all.

    Args:
      old: `.safetensors` or `.npz`, or a folder or index of shards.
      update: an update file's bytes.
      new: `.safetensors` or `.npz`, which need not be as OLD; `-` is standard output, in OLD's format. Of a model in a
        folder any other name is that of a new folder, with the same files as OLD's.
      budget: what the update may cost, as a multiple of what a model of this size allows; `math.inf` for anything.
      follow: whether a symbolic link at NEW stays and its target is replaced, or the link itself.

    Returns:
      Whether NEW has the metadata that it should have: a `.npz` file neither hands on nor keeps any.

    Raises:
      FileError: a file cannot be read or written.
      WrongBaseError: the update starts from another model, or from other metadata.
      CorruptUpdateError: the update is damaged.
      CostError: it costs more than the budget.
    """
    like = shards.locate(old) if is_standard(new) else None
    in_folder = files.makes_folder(old, new)
    with files.open_model(old) as (model, found):
        metadata, is_whole = new_metadata(update, found if files.keeps_metadata(old) else None)
        specs = container.new_specs(update, model)
        leaves = container.apply_leaves(update, model, budget=budget)
        if in_folder:
            files.write_folder(new, model, specs, leaves, metadata)
        else:
            files.write_leaves(new, specs, leaves, metadata, like=like, follow=follow)
    return is_whole and (not metadata or in_folder or files.keeps_metadata(like or new))


def verify_file(old: AnyPath, update: bytes, *, budget: float = 1.0) -> bool:
    """Checks that an update makes of a model file what it promises; writes nothing.

    Args:
      old: as for `apply_file`.
      update: an update file's bytes.
      budget: as for `apply_file`.

    Returns:
      Whether that covers the metadata: of a `.npz` file they cannot be checked.

    Raises:
      FileError, WrongBaseError, CorruptUpdateError, CostError: as `apply_file`.
    """
    with files.open_model(old) as (model, found):
        _, is_whole = new_metadata(update, found if files.keeps_metadata(old) else None)
        collections.deque(container.apply_leaves(update, model, budget=budget), maxlen=0)
    return is_whole


def new_metadata(update: bytes, old: dict[str, str] | None) -> tuple[dict[str, str], bool]:
    """The metadata of the new model file.

    Args:
      update: an update file's bytes.
      old: those of the old one; None if it is of a format without.

    Returns:
      (metadata, whether they are what the update promises); it is False where the old file's format has none and the
      update starts from some.

    Raises:
      CorruptUpdateError: the update is damaged.
      WrongBaseError: the update starts from other metadata.
    """
    try:
        return container.new_metadata(update, old or {}), True
    except errors.WrongBaseError:
        if old is not None:
            raise
        return {}, False

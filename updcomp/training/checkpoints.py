"""Training states and models on disk, in Orbax folders: a kill at any moment leaves the last whole one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from updcomp import arrays, processes
from updcomp.wire.errors import FileError

PyTree = Any

SECONDS_BETWEEN = 60.0  # states that are saved now and then

_METADATA = "_METADATA"  # the file that Orbax puts beside the arrays of a tree


class Checkpoints:
    """The latest states of one training, in one folder, which all processes see; each writes what its devices hold.

    A state is written under a temporary name and then renamed; older ones go only after that. Any pytree of arrays
    can be a state: optax's named tuples, PRNG keys, numbers and arrays without elements included.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Checkpoints(folder).save(3, {"weights": jnp.ones(2), "key": jax.random.key(0)})
    ...     step, state = Checkpoints(folder).restore_latest({"weights": jnp.zeros(2), "key": jax.random.key(1)})
    >>> step, state["weights"].tolist()
    (3, [1.0, 1.0])
    """

    def __init__(self, folder: str | Path, *, keep: int = 1) -> None:
        """Opens the folder, which need not exist.

        Args:
          folder: where the states are; nothing else may be in it.
          keep: how many of the latest states stay.
        """
        self._folder = Path(folder).absolute()
        self._keep = keep
        self._last, self._has_saved = time.monotonic(), False

    def save(self, step: int, tree: PyTree) -> None:
        """Writes a state and waits until it is on disk.

        Args:
          step: counts the states; larger than that of any state in the folder.
          tree: the state.

        Raises:
          FileError: the folder cannot be written, or has a state of this step or a later one.
        """
        with self._manager() as manager:
            latest = manager.latest_step()
            if latest is not None and latest >= step:
                found = f"{self._folder}: expected a step above the saved {latest}, found {step}"
                raise FileError(f"{found}; restore the saved state first, or use another folder")
            manager.save(step, args=ocp.args.StandardSave(_named(tree)), force=True)

    def save_now_and_then(self, step: int, tree: PyTree, *, is_last: bool = False) -> None:
        """Writes a state when the last one has become old; the last state of a training that has others as well.

        Args:
          step: as in `save`.
          tree: as in `save`.
          is_last: whether no other state follows.

        Raises:
          PreemptedError: the machine of a process is about to be taken away; the state has been saved.
          FileError: as `save`.
        """
        is_preempted = processes.is_preempted()
        is_old = processes.in_any(time.monotonic() - self._last > SECONDS_BETWEEN)
        # Later trainings are saved under a digest of the last state, which other devices would not compute to the bit.
        if is_preempted or is_old or (is_last and self._has_saved):
            self.save(step, tree)
            self._last, self._has_saved = time.monotonic(), True
        if is_preempted:
            raise processes.PreemptedError(f"{self._folder}: saved state {step}; start again to go on from it")

    def restore_latest(self, like: PyTree) -> tuple[int, PyTree] | None:
        """Reads the last whole state.

        Args:
          like: a tree with the structure, shapes, dtypes and shardings of the state; its values are not used.

        Returns:
          (step, tree) as saved, or None if there is none.

        Raises:
          FileError: the state has another structure, shape or dtype, or cannot be read.
        """
        if not processes.from_first(self._folder.is_dir):
            return None
        with self._manager() as manager:
            step = manager.latest_step()
            if step is None:
                return None
            expected = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like))
            folder = self._folder / str(step) / "default"
            _check_same(folder, expected, ocp.PyTreeCheckpointHandler().metadata(folder).tree)
            saved = manager.restore(step, args=ocp.args.StandardRestore(expected))
        self._has_saved = True
        return step, jax.tree_util.tree_map_with_path(lambda path, leaf: _from_saved(saved[_name(path)], leaf), like)

    @contextmanager
    def _manager(self) -> Iterator[ocp.CheckpointManager]:
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, enable_async_checkpointing=False)
        with _as_file_errors(self._folder), ocp.CheckpointManager(self._folder, options=options) as manager:
            yield manager


def save_model(path: str | Path, variables: PyTree) -> None:
    """Writes a model as an Orbax folder.

    Args:
      path: the folder to make; it must not exist.
      variables: a nested dict of arrays.

    Raises:
      FileError: the path exists or cannot be written, or a leaf has no elements, which Orbax does not take.
    """
    folder = Path(path).absolute()
    if folder.exists():
        raise FileError(f"{folder}: expected a new folder, found an existing path; choose another or remove it")
    for name, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not np.size(leaf):
            found = f"expected at least one element, found shape {np.shape(leaf)}"
            raise FileError(f"{folder}: leaf {_name(name)!r}: {found}; use .safetensors or .npz for this model")
    with _as_file_errors(folder), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, variables)
        checkpointer.wait_until_finished()


def load_model(path: str | Path) -> dict[str, Any]:
    """Reads a model from an Orbax folder, made by any program.

    Args:
      path: a folder with one saved tree: of `save_model`, any Orbax checkpointer, or a step of a checkpoint manager.

    Returns:
      A nested dict of `np.ndarray`, with the dtypes as saved, bfloat16 and float8 included.

    Raises:
      FileError: the folder is not there, or is not such a folder, or cannot be read.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise FileError(f"{folder}: expected an Orbax folder, found {'a file' if folder.exists() else 'nothing'}")
    items = [folder] if (folder / _METADATA).is_file() else [child.parent for child in folder.glob(f"*/{_METADATA}")]
    if len(items) != 1:
        found = f"expected an Orbax folder with one saved tree ({_METADATA}), found {len(items)}"
        raise FileError(f"{folder}: {found}; name the folder of one step and one item")
    with _as_file_errors(folder):
        handler = ocp.PyTreeCheckpointHandler()
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(items[0]).tree)
        tree: dict[str, Any] = handler.restore(items[0], args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return tree


@contextmanager
def _as_file_errors(folder: Path) -> Iterator[None]:
    """Orbax and TensorStore report damaged and unwritable files by exceptions of any type."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise FileError(f"{folder}: expected to read or write an Orbax checkpoint, found: {reason}") from error


def _check_same(folder: Path, expected: dict[str, Any], saved: dict[str, Any]) -> None:
    """Before anything is read: Orbax itself would cast silently, and stop halfway at a shape."""
    for name in sorted(expected.keys() | saved.keys()):
        want, found = (
            f"{np.dtype(tree[name].dtype)} {tuple(tree[name].shape)}" if name in tree else "no such leaf"
            for tree in (expected, saved)
        )
        if want != found:
            advice = "restore into the state it was made from, or start in another folder"
            raise FileError(f"{folder}: leaf {name!r}: expected {want}, found {found}; {advice}")


def _named(tree: PyTree) -> dict[str, Any]:
    """The leaves by path, as arrays that Orbax takes; a flat dict, so that no container type matters."""
    return {_name(path): _to_saved(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _to_saved(leaf: Any) -> Any:
    """The leaf as an array that Orbax takes: a PRNG key as its bits, one element in place of none."""
    if arrays.is_key(leaf):
        return jax.random.key_data(leaf)
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return array if array.size else np.zeros(1, array.dtype)


def _from_saved(saved: Any, like: Any) -> Any:
    if arrays.is_key(like):
        return jax.random.wrap_key_data(saved, impl=jax.random.key_impl(like))
    return saved if np.size(like) else like

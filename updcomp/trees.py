"""Any pytree of arrays as named leaves, and as the `dict[str, np.ndarray]` that a device holds.

A leaf's name is its path joined by `/`, as in `blocks/0/kernel`. Leaves that are not arrays (activation functions,
strings, Python numbers) belong to the structure and never travel.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import arrays
from updcomp.wire import dtypes
from updcomp.wire.errors import LeafError
from updcomp.wire.structure import Structure

PyTree = Any


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic)


def _is_variable(node: Any) -> bool:
    """Whether this is a variable of flax nnx; no tree has one where nnx was never imported."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, nnx.Variable)


def _in_variable(path: Any, variable: Any) -> list[tuple[Any, Any]]:
    """A variable's one array has the variable's own path, as in `nnx.to_pure_dict`."""
    inner, _ = jax.tree_util.tree_flatten_with_path(variable)
    return [(path if len(inner) == 1 else (*path, *within), leaf) for within, leaf in inner]


def _paths(tree: PyTree) -> list[tuple[str, Any]]:
    """(name, leaf) of every leaf in flattening order; the names of arrays are unique."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for outer, held in flat
        for path, leaf in (_in_variable(outer, held) if _is_variable(held) else [(outer, held)])
    ]
    arrays = {name for name, leaf in named if _is_array(leaf)}
    for name, count in Counter(name for name, _ in named).items():
        if count > 1 and name in arrays:
            raise LeafError(f"leaf {name!r}: two leaves have this path; expected a path each; rename one of the keys")
    return named


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The arrays of a pytree by path, in sorted order of their names.

    Args:
      tree: any pytree; leaves that are not arrays are left out.

    Returns:
      A dict name -> leaf, sorted by name: position in it is the leaf's index on the wire.

    Raises:
      LeafError: two leaves have the same name.

    >>> list(named_leaves({"b": np.zeros(2), "a": {"kernel": np.ones((2, 3))}, "activation": "relu"}))
    ['a/kernel', 'b']
    """
    return dict(sorted((name, leaf) for name, leaf in _paths(tree) if _is_array(leaf)))


def check_arrays(tree: PyTree) -> None:
    """Checks that every leaf is an array, as functions that compile over a whole tree need.

    Raises:
      LeafError: a leaf is something else, such as a function.
    """
    for name, leaf in _paths(tree):
        if not _is_array(leaf):
            found = f"expected an array, found {type(leaf).__name__}"
            raise LeafError(f"leaf {name!r}: {found}; keep what is no array in the loss (as equinox.partition does)")


def replace(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The same tree with some leaves replaced, addressed by name.

    Args:
      tree: any pytree.
      leaves: name -> new leaf.

    Returns:
      A tree of the same structure; leaves that are not named are the same objects.

    Raises:
      LeafError: a name matches no leaf; the message lists the paths.

    >>> replace({"a": 1.0, "b": {"c": np.zeros(1)}}, {"b/c": "new"})
    {'a': 1.0, 'b': {'c': 'new'}}
    """
    named = _paths(tree)
    unknown = set(leaves) - {name for name, _ in named}
    if unknown:
        raise LeafError(f"leaf {min(unknown)!r}: no such path; expected one of {sorted(name for name, _ in named)}")
    structure = jax.tree.structure(tree)
    return jax.tree.unflatten(structure, [leaves.get(name, leaf) for name, leaf in named])


def is_collections(tree: PyTree) -> bool:
    """Whether a tree is a dict of flax collections: the leaves under "params" train, all others are state."""
    return isinstance(tree, Mapping) and "params" in tree


def parameters(tree: PyTree) -> tuple[str, PyTree]:
    """The part of a model that optimizers see, with what its leaves' names begin with: "params", or the whole tree."""
    return ("params/", tree["params"]) if is_collections(tree) else ("", tree)


def with_subtrees(tree: PyTree, subtrees: Mapping[str, PyTree], default: PyTree) -> PyTree:
    """The same tree with a subtree in the place of every leaf.

    Args:
      tree: any pytree.
      subtrees: name -> what stands there.
      default: what stands in the place of all other leaves.

    Returns:
      A tree of which `tree` is a prefix.

    >>> with_subtrees({"a": 1.0, "b": {"c": 2.0}}, {"b/c": (3, 4)}, None)
    {'a': None, 'b': {'c': (3, 4)}}
    """
    return jax.tree.unflatten(jax.tree.structure(tree), [subtrees.get(name, default) for name, _ in _paths(tree)])


def subtrees_at(tree: PyTree, subtrees: PyTree) -> dict[str, PyTree]:
    """What stands in the place of every leaf of a tree, by the leaf's name: the inverse of `with_subtrees`.

    >>> subtrees_at({"a": 1.0, "b": {"c": 2.0}}, {"a": None, "b": {"c": (3, 4)}})
    {'a': None, 'b/c': (3, 4)}
    """
    structure: Any = jax.tree.structure(tree)  # its stub lacks the method
    parts = structure.flatten_up_to(subtrees)
    return {name: part for (name, _), part in zip(_paths(tree), parts, strict=True)}


def numbers_at(tree: PyTree, numbers: PyTree) -> dict[str, np.ndarray]:
    """The numbers that a tree like a model has in the place of its leaves: one for a leaf, or an array.

    Args:
      tree: of arrays.
      numbers: of its structure.

    Returns:
      leaf name -> float array.

    Raises:
      LeafError: it has another structure, or what stands there is no number.

    >>> numbers_at({"w": np.zeros(2)}, {"w": 3})["w"].item()
    3.0
    """
    try:
        found = subtrees_at(tree, numbers)
        return {name: np.asarray(found[name]).astype(np.float32) for name in named_leaves(tree)}
    except (TypeError, ValueError) as error:
        raise LeafError(f"sensitivity: expected a tree of numbers like the model; {error}") from None


class HostModel(Mapping[str, np.ndarray]):
    """The device's form of a pytree, of which each leaf is brought to the host when it is asked for, and not kept.

    >>> import jax.numpy as jnp
    >>> HostModel({"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype.names
    ('bfloat16',)
    """

    def __init__(self, tree: PyTree) -> None:
        """Reads no leaf yet.

        Args:
          tree: any pytree of arrays, sharded in any way.
        """
        self._leaves = named_leaves(tree)
        self.specs = {name: _spec_of(leaf) for name, leaf in self._leaves.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if isinstance(leaf := self._leaves[name], jax.Array) and leaf.is_deleted():
            found = "expected an array that is there, found one that was donated or deleted"
            raise LeafError(f"leaf {name!r}: {found}; encode the packet before its models go")
        return dtypes.hold(arrays.to_host(self._leaves[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __contains__(self, name: object) -> bool:  # a Mapping's own would get the value
        return name in self._leaves

    def __len__(self) -> int:
        return len(self._leaves)


def to_model(tree: PyTree) -> dict[str, np.ndarray]:
    """The device's form of a pytree: NumPy arrays by name; a dtype that NumPy lacks is held as its bit pattern.

    Args:
      tree: any pytree of arrays; typed PRNG keys travel as their key data.

    Returns:
      name -> contiguous array, sorted by name. `HostModel` is the same, a leaf at a time.

    >>> import jax.numpy as jnp
    >>> to_model({"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype.names
    ('bfloat16',)
    """
    return dict(HostModel(tree))


def from_model(model: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
    """A device's model in the form of a pytree: the inverse of `to_model`.

    Args:
      model: name -> array with the shapes and dtypes of `like`.
      like: the pytree whose structure, array types and shardings the result takes.

    Returns:
      A tree like `like`: jax arrays where it has jax arrays (placed like them), NumPy arrays elsewhere.

    Raises:
      LeafError: a leaf is missing or has another shape.
    """
    for name in named_leaves(like):
        if name not in model:
            raise LeafError(f"leaf {name!r}: expected in the model, found only {sorted(model)}")
    return with_leaves(like, ((name, model[name]) for name in named_leaves(like)))


def with_leaves(tree: PyTree, leaves: Iterable[tuple[str, np.ndarray]]) -> PyTree:
    """A pytree with some leaves replaced by those of a device's model, each placed before the next is taken.

    Args:
      tree: any pytree.
      leaves: (name, array) of the leaves to replace, with their shapes and dtypes.

    Returns:
      A tree like it; what is replaced has the array type and sharding of what was there.

    Raises:
      LeafError: a leaf has another shape or dtype.
    """
    likes = named_leaves(tree)
    return replace(tree, {name: _restore_leaf(name, leaf, likes[name]) for name, leaf in leaves})


def rebuilt(tree: PyTree, leaves: Iterable[tuple[str, np.ndarray]], changed: Structure) -> PyTree:
    """Nested dicts with the leaves of a device's model, of which some come and some go.

    Args:
      tree: nested dicts with texts as keys.
      leaves: (name, array) of the leaves to replace and of those that come.
      changed: which ones come and go.

    Returns:
      A tree of dicts, sorted; what is replaced is as in `with_leaves`, what comes NumPy or, if the tree has some, JAX
      arrays.

    Raises:
      LeafError: the tree has other nodes than dicts.

    >>> tree, spec = {"a": {"b": np.zeros(1), "c": np.zeros(1)}}, dtypes.spec_of(np.ones(1))
    >>> rebuilt(tree, [("a/d", np.ones(1))], Structure({"a/d": spec}, ("a/c",)))
    {'a': {'b': array([0.]), 'd': array([1.])}}
    """
    if not _is_dicts(tree):
        raise LeafError(
            f"leaves {sorted(changed.added)}: expected a tree of dicts to add them to or take leaves from, found other "
            "nodes; apply the update to a model file, or to `trees.to_model(tree)`"
        )
    likes = named_leaves(tree)
    on_devices = any(isinstance(leaf, jax.Array) for leaf in likes.values())
    found = {name: leaf for name, leaf in likes.items() if name not in changed.removed}
    for name, leaf in leaves:
        if name not in changed.added:
            found[name] = _restore_leaf(name, leaf, likes[name])
        else:
            found[name] = _made(leaf, on_devices=on_devices)
    made = _empty_dicts(tree)
    for name, leaf in sorted(found.items()):
        *path, last = name.split("/")
        node = made
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise LeafError(f"leaf {name!r}: expected a place in a dict, found a leaf at {part!r}")
        node[last] = leaf
    return made


def _made(leaf: np.ndarray, *, on_devices: bool) -> Any:
    """A leaf that no array was there for; where JAX lacks its dtype, a NumPy array."""
    if leaf.dtype.names:
        try:
            leaf = leaf.view(jnp.dtype(leaf.dtype.names[0]))
        except TypeError:
            return leaf
    return jnp.asarray(leaf) if on_devices and jax.dtypes.canonicalize_dtype(leaf.dtype) == leaf.dtype else leaf


def _empty_dicts(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The dicts without any key, and those on the way to them."""
    parts = {key: part for key, part in tree.items() if isinstance(part, Mapping)}
    inner = {key: _empty_dicts(part) for key, part in parts.items()}
    return {key: found for key, found in inner.items() if found or not parts[key]}


def _is_dicts(tree: PyTree) -> bool:
    """Whether the paths of a tree say where its leaves are."""
    nodes = isinstance(tree, Mapping) and all(isinstance(key, str) and "/" not in key for key in tree)
    return nodes and all(_is_array(part) or _is_dicts(part) for part in tree.values())


def _spec_of(leaf: Any) -> dtypes.Spec:
    data = jax.eval_shape(jax.random.key_data, leaf) if arrays.is_key(leaf) else leaf
    return dtypes.Spec(tuple(data.shape), dtypes.hold(np.empty(0, data.dtype)).dtype)


def _restore_leaf(name: str, value: np.ndarray, like: Any) -> Any:
    data = jax.random.key_data(like) if arrays.is_key(like) else like
    dtype = np.dtype(data.dtype)
    held = dtypes.hold(np.empty(0, dtype)).dtype
    if (value.shape, value.dtype) != (data.shape, held):
        expected = f"{dtypes.name(held)} {data.shape}"
        raise LeafError(f"leaf {name!r}: expected {expected}, found {dtypes.name(value.dtype)} {value.shape}")
    if held.names:  # a bit pattern of a dtype that NumPy lacks
        value = value.view(dtype)
    value = value.astype(dtype, copy=False)  # big-endian, if the tree is
    if isinstance(like, np.generic):
        return value[()]
    if isinstance(like, np.ndarray):
        return value
    if arrays.is_key(like):
        key_data = arrays.to_devices(value, data.sharding)
        return jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(like))
    return arrays.to_devices(value, like.sharding) if isinstance(like, jax.Array) else value

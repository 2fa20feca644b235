"""Different methods for different leaves, by rules over their paths."""

import dataclasses
from collections.abc import Mapping

import jax

from updcomp import partition
from updcomp.methods import base, choosing
from updcomp.methods.base import Trained
from updcomp.methods.deep_partial_updating import Partial
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.packet import Packet


def by_path(rules: Mapping[str, Trained | Partial | None]) -> "ByPath":
    """One method for each leaf: `by_path({".*attention.*": low_rank(rank=4), ".*embedding.*": None})`.

    The first rule counts whose regular expression matches the whole path. Leaves without a rule, or with None, stay as
    deployed: no gradient is computed for them and nothing of them travels. All others are trained together. A rule's
    method says for kernels how they travel, and by its `aux` how the biases, norms and statistics do that it matches.

    Args:
      rules: regular expression -> method, or None. `partial` compares all weights with one another, so it stands alone,
        or beside None.

    Returns:
      A method; its first call raises an Error for a rule that matches no leaf.

    Raises:
      Error: there is no method among the rules, or `partial` stands beside another one.
    """
    methods = {method for method in rules.values() if method is not None}
    if not methods:
        raise Error("rules: expected at least one method, found none; give such as {'.*kernel': low_rank(rank=4)}")
    if foreign := [method for method in methods if not isinstance(method, Trained | Partial)]:
        raise Error(f"rules: expected methods of updcomp.methods, or None, found {type(foreign[0]).__name__}")
    if len(methods) > 1 and any(isinstance(method, Partial) for method in methods):
        raise Error("rules: expected partial alone or beside None, since it ranks all weights together; use one method")
    return ByPath(tuple(rules.items()))


@dataclasses.dataclass(frozen=True)
class ByPath:
    """A method by rules; see `by_path`."""

    rules: tuple[tuple[str, Trained | Partial | None], ...]

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """Trains an update of the leaves that have a method."""
        model = choosing.model_of(deployed, task)
        found = partition.match(dict(self.rules), (leaf.name for leaf in model.partition.leaves))
        chosen = {name: method for name, method in found.items() if method is not None}
        if partial := next((method for method in chosen.values() if isinstance(method, Partial)), None):
            return partial.update(key, task, model, chosen)
        trained = {name: method for name, method in chosen.items() if isinstance(method, Trained)}
        return base.train_forms(key, task, model, trained, name="by_path")

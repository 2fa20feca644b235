"""The blocks of an update, charged before they are decoded, and decoded one after another."""

from collections.abc import Mapping, Sequence
from typing import Any

from updcomp.wire import costs, dtypes, errors, header, streams, views
from updcomp.wire.kind import Block, Head, Later


def known_costs(parts: header.Parts, specs: Mapping[str, dtypes.Spec]) -> list[costs.Cost]:
    """What the blocks take whose headers say it: all of them, or in version 1 those without a size.

    Args:
      parts: of an update.
      specs: of the model's leaves, in sorted name order.

    Returns:
      A cost for each of them.

    Raises:
      CorruptUpdateError: a block does not fit its leaf.
    """
    names, found = list(specs), []
    for head in parts.heads:
        name = names[head.leaf]
        if _is_known(head):
            with errors.of_leaf(name):
                found.append(head.kind.cost(head, specs[name], parts.lanes))
    return found


def account(parts: header.Parts, update_bytes: int, specs: Mapping[str, dtypes.Spec], budget: float) -> costs.Account:
    """Charges what the headers say.

    Args:
      parts: of an update.
      update_bytes: its size.
      specs: of the model's leaves, in sorted name order.
      budget: factor of `costs.allowed`.

    Returns:
      An account for what they do not say.

    Raises:
      CostError: it is beyond the budget, or the update longer than any of such a model.
      CorruptUpdateError: a block does not fit its leaf.
    """
    if update_bytes > (longest := costs.largest_update(specs)):
        raise errors.CostError(
            f"update: expected at most {longest:,} bytes for this model, found {update_bytes:,}; "
            "send larger steps or Raw, or fewer metadata"
        )
    opened = costs.Account(specs, len(parts.extra), budget)
    known = known_costs(parts, specs)
    operations = sum(cost.operations for cost in known)
    opened.charge(costs.Cost(operations, max((cost.working_bytes for cost in known), default=0)))
    return opened


def have_default_views(heads: Sequence[Head], specs: Mapping[str, dtypes.Spec]) -> bool:
    """Whether every header says no view, or the default one of its leaf."""
    ranks = [len(spec.shape) for spec in specs.values()]
    defaults = {ndim: views.number(views.last_axis_out(ndim), ndim) for ndim in set(ranks)}
    return all(head.view in (None, defaults[ranks[head.leaf]]) for head in heads)


class Blocks:
    """The blocks of an update; every size is bounded by the leaf."""

    def __init__(self, parts: header.Parts, update_bytes: int, specs: Mapping[str, dtypes.Spec], budget: float) -> None:
        """At the first block, the budget charged with all that the header says.

        Args:
          parts: of the update.
          update_bytes: its size.
          specs: of the leaves of the model that it starts from.
          budget: factor of `costs.allowed`.

        Raises:
          CostError, CorruptUpdateError: as `account`.
        """
        names = list(specs)
        self.names = {names[head.leaf]: head for head in parts.heads}
        if parts.has_views and have_default_views(parts.heads, specs):
            raise errors.CorruptUpdateError("views: expected none where all are the default one, found some")
        self._account = account(parts, update_bytes, specs, budget)
        self._parts = parts
        self._specs = specs
        sections = (parts.raw, parts.extra, parts.lanes, parts.coded)
        self._reader = streams.Reader(*sections, short=parts.version.is_short, charge=self._account.charge)

    def read(self, name: str, old: dtypes.Array) -> Block:
        """The next block, that of this held leaf."""
        block = self.begin(name, old)
        if isinstance(block, Later):
            with errors.of_leaf(name):
                block = block.finish()
        return block

    def begin(self, name: str, old: dtypes.Array) -> Any:
        """The same, or what is left to do once the next may be read."""
        head = self.names[name]
        with errors.of_leaf(name):
            if not _is_known(head):
                head = head._replace(size=self._reader.number())
                self._account.charge(head.kind.cost(head, self._specs[name], self._parts.lanes))
            return head.kind.read(head, old, self._reader)

    def finish(self) -> None:
        """Checks that nothing is left."""
        self._reader.finish(idle_lanes=self._parts.version.idle_lanes)


def _is_known(head: Head) -> bool:
    """Whether a header says what its block takes."""
    return head.size is not None or not head.kind.sized

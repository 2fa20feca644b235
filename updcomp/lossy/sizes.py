"""What the coder takes for a block, from the coder itself."""

import numpy as np

from updcomp.wire import dtypes, streams, versions
from updcomp.wire.kind import Block, Later

HEADER_BITS = 40  # of a block: its kind, a step, a count or rank


def bits(block: Block, old: np.ndarray) -> float:
    """The bits of a block, its header counted roughly.

    Args:
      block: fits the leaf.
      old: held leaf.

    Returns:
      What the coder's models take for it; of a block that its kind would send raw, the leaf's own bits.

    >>> from updcomp.wire.kinds.dense import Dense
    >>> old = np.zeros(1000, np.float32)
    >>> bits(Dense(np.zeros(1000, np.int32), 0.5), old) < bits(Dense(np.arange(1000) % 7, 0.5), old) < 3200
    True
    """
    chosen = versions.kind_of(block)
    held = chosen.hold(block)
    writer = streams.Writer()
    written = chosen.head(held, old).kind.write(held, old, writer)
    if isinstance(written, Later):
        data = written.finish()
        written, cost = data is not None, 8.0 * len(data or b"")
    else:
        cost = writer.cost
    raw = 8.0 * dtypes.hold(old).nbytes
    return HEADER_BITS + (min(cost, raw) if written else raw)

"""The block that says a leaf's new bits, which two kinds code."""

from typing import NamedTuple

import numpy as np

from updcomp.wire import dtypes


class Exact(NamedTuple):
    """The leaf's new bits, lossless for every dtype."""

    new: np.ndarray  # shape and dtype of the leaf


def hold(block: Exact) -> Exact:
    """The block with a held leaf."""
    return block._replace(new=dtypes.hold(block.new))

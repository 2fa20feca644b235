"""The device's side: read a model, apply an update, write the new model. Needs NumPy and nothing else.

>>> import numpy as np
>>> from updcomp import edge
>>> apply(b"", {"w": np.zeros(3, np.float32)})
Traceback (most recent call last):
updcomp.wire.errors.CorruptUpdateError: not an update: expected it to begin with b'updc', found b''
"""

from updcomp.edge.applying import apply_file
from updcomp.edge.files import open_model, read_bytes, read_model, write_model
from updcomp.edge.health import TrialError
from updcomp.edge.locks import LockError
from updcomp.edge.state import RepeatError
from updcomp.edge.store import Store
from updcomp.wire.container import apply_update as apply
from updcomp.wire.errors import CorruptUpdateError, CostError, Error, FileError, WrongBaseError
from updcomp.wire.inspection import inspect

__all__ = [
    "CorruptUpdateError",
    "CostError",
    "Error",
    "FileError",
    "LockError",
    "RepeatError",
    "Store",
    "TrialError",
    "WrongBaseError",
    "apply",
    "apply_file",
    "inspect",
    "open_model",
    "read_bytes",
    "read_model",
    "write_model",
]

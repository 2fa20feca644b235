"""The one family of errors that bad input can raise."""

import contextlib
from collections.abc import Iterator

_LONGEST = 2000  # characters of a message
_END = 500


class Error(ValueError):
    """Bad input: the message names the leaf or flag, what was expected, what was found, and what to do.

    A message that what was found makes very long keeps its beginning and its end.
    """

    def __init__(self, message: str) -> None:
        """With a message of one line."""
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - _END - 5]} ... {message[-_END:]}"
        super().__init__(message)


@contextlib.contextmanager
def of_leaf(name: str) -> Iterator[None]:
    """Errors raised within begin with the leaf's name."""
    try:
        yield
    except Error as error:
        raise type(error)(f"leaf {name!r}: {error}") from None


class WrongBaseError(Error):
    """The model given is not the one that the update starts from."""


class CorruptUpdateError(Error):
    """The bytes are not a whole, undamaged update of a format version that this code reads."""


class LeafError(Error):
    """A leaf is missing, or has another shape or dtype than it must have."""


class DtypeError(LeafError, TypeError):
    """A leaf has a dtype that the operation does not take."""


class BudgetError(Error):
    """No update fits the budget; the message says the smallest possible one."""


class CostError(Error):
    """Applying an update would take more operations or memory than its model justifies; the message says how much."""


class NonFiniteError(Error):
    """A loss or a weight is NaN or infinite; the message says at which step or leaf."""


class DatasetError(Error):
    """A dataset is not there; the message says which command prepares it."""


class FileError(Error):
    """A file cannot be read or written as a model or an update."""

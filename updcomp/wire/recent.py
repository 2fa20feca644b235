"""A model whose last leaf is kept, for readers that ask for the same one in turn."""

from collections.abc import Iterator, Mapping

import numpy as np

from updcomp.wire import dtypes


class Recent(Mapping[str, dtypes.Array]):
    """A model whose last leaf is kept, so that whoever asks for the same one next need not read it again.

    >>> model = Recent({"w": np.zeros(2)})
    >>> model["w"] is model["w"]
    True
    """

    def __init__(self, model: dtypes.Model) -> None:
        """Reads nothing yet.

        Args:
          model: leaf name -> array, such as an open file's.
        """
        self.specs = dtypes.specs(model)
        self._model, self._name, self._leaf = model, "", np.empty(0)

    def __getitem__(self, name: str) -> dtypes.Array:
        if name != self._name or name not in self.specs:
            self._leaf = np.empty(0)  # before the next one takes its place
            self._leaf, self._name = self._model[name], name
        return self._leaf

    def __iter__(self) -> Iterator[str]:
        return iter(self._model)

    def __contains__(self, name: object) -> bool:  # a Mapping's own would get the value
        return name in self.specs

    def __len__(self) -> int:
        return len(self._model)

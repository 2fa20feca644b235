"""updcomp makes the smallest update that turns the model a device holds into the model it should hold.

Names load lazily: `import updcomp.edge` on a device loads NumPy and nothing else, and `import updcomp` reaches
`updcomp.methods`, `updcomp.training`, `updcomp.protocol` and the pure functions when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from updcomp.wire import release

if TYPE_CHECKING:
    from updcomp.api import apply, diff, encode, inspect, pack, squash
    from updcomp.wire.errors import Error

__version__ = release.VERSION

_HOMES = {
    "diff": "updcomp.api",
    "encode": "updcomp.api",
    "apply": "updcomp.api",
    "inspect": "updcomp.api",
    "pack": "updcomp.api",
    "squash": "updcomp.api",
    "Error": "updcomp.wire.errors",
}

_MODULES = (
    *(
        "contribution",
        "delta",
        "edge",
        "factorize",
        "methods",
        "partition",
        "processes",
        "protocol",
        "quantize",
        "selection",
    ),
    *("subspace", "training", "trees", "wire"),
)

__all__ = ["Error", "apply", "diff", "encode", "inspect", "pack", "squash"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"updcomp.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})

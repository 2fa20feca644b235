"""Ways to spend bytes that are compared as curves: each is a method at sizes, bits and rates that are all tried."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments import specs
from experiments.results import Row
from experiments.settings import Cell, Key, build, parts
from experiments.specs import Setting
from updcomp.wire.errors import Error

OWN, BASELINE, FLOAT, PEER = "own", "baseline", "float32 baseline", "peer"
KINDS = (OWN, BASELINE, FLOAT, PEER)
TUNING = 0  # the seed that settings are chosen on; the others measure
RATES = ("rate", "sparse_rate")  # options that multiply the learning rate
EXAMPLE = "--grids=low_rank:rank=1,2,4:bits=2,4:aux=none,4:rate=5,15"

_IN_FULL = ("full", "subsample", "stochastic_quantize", "truncated_svd")  # trained as the full update is
_COMMON = "bits=2,4:aux=none,4"
_VECTOR = "size=256,1024,4096"
_PLAIN = "bits=none:aux=none,16"

# What a curve tries is 24 settings: three sizes, bits, what happens to aux leaves, and rates; where there is nothing
# to try in one of them, there is more of another. subspace has six sizes at 2 bits in place of three at 2 and 4.
GRIDS: dict[str, tuple[str, str]] = {
    "subspace": (OWN, "subspace:rank=16,24,36,56,80,112:bits=2:rate=10,30:widen=false,true"),
    "partial": (OWN, f"partial:ratio=0.001,0.004,0.016:{_COMMON}:sparse_rate=3,10"),
    "low_rank": (BASELINE, f"low_rank:rank=1,2,4:{_COMMON}:rate=5,15"),
    "random_mask": (BASELINE, f"random_mask:ratio=0.001,0.004,0.016:{_COMMON}:rate=10,30"),
    "magnitude_mask": (BASELINE, f"magnitude_mask:ratio=0.001,0.004,0.016:{_COMMON}:rate=10,30"),
    "random_low_rank": (BASELINE, f"random_low_rank:rank=1,2,4:{_COMMON}:rate=30,100"),
    "subsample": (BASELINE, "subsample:ratio=0.01,0.04,0.16:bits=2,4:aux=none,4:unbiased=false,true:rate=1"),
    "stochastic_quantize": (
        BASELINE,
        "stochastic_quantize:bits=1,2,4:rotated=false,true:aux=none,4:rate=0.5,1",
    ),
    "truncated_svd": (BASELINE, f"truncated_svd:rank=1,4,16:{_COMMON}:rate=0.5,1"),
    "full": (BASELINE, "full:bits=2,3,4:aux=none,4:rate=0.3,0.5,1,2"),
    "aux_alone": (BASELINE, "random_mask:ratio=1e-6:bits=2:aux=4,8,16:rate=1,2,5,10,20,40,80,160"),
    "low_rank_float32": (FLOAT, f"low_rank:rank=1,2,4:{_PLAIN}:rate=2,5,10,20"),
    "random_mask_float32": (FLOAT, f"random_mask:ratio=0.001,0.004,0.016:{_PLAIN}:rate=5,10,20,40"),
    "random_low_rank_float32": (FLOAT, f"random_low_rank:rank=1,2,4:{_PLAIN}:rate=10,30,60,100"),
    "truncated_svd_float32": (FLOAT, f"truncated_svd:rank=1,4,16:{_PLAIN}:rate=0.3,0.5,1,2"),
    "LoRA-XS": (PEER, "subspace:rank=4,12,32:bits=none:aux=none,4:rate=5,10,20,40"),
    "vera": (PEER, f"vera:rank=16,64,256:{_COMMON}:rate=30,100"),
    "uni_lora": (PEER, f"uni_lora:{_VECTOR}:bits=2,4:rank=2,4:rate=30,100"),
    "tiny_lora": (PEER, "tiny_lora:size=64,256,1024:bits=2,4:rank=8,16:share=1:rate=30,100"),
    "nola": (PEER, "nola:size=64,256,1024:bits=2,4:rank=1,2:rate=30,100"),
    "pranc": (PEER, f"pranc:{_VECTOR}:bits=2,4:aux=none,4:rate=30,100"),
    "fourier": (PEER, "fourier:size=100,300,800:bits=2,4:aux=none,4:rate=30,100"),
}


class Curve(NamedTuple):
    """A way to spend bytes, at all settings that are tried."""

    name: str
    kind: str  # of `KINDS`
    cells: tuple[Cell, ...]
    tuned: bool = True  # whether some of the cells are chosen; else all of them are measured


def curves(names: Sequence[str], grids: Sequence[str], scale: float = 1.0) -> list[Curve]:
    """The curves that flags name.

    Args:
      names: among `GRIDS`.
      grids: further ones, as --settings has them; each is called after its method.
      scale: multiplies the rates of those in `GRIDS`, but for methods that train all weights.

    Returns:
      One curve a name and grid.

    Raises:
      Error: a name, an option or a value does not fit, or two curves have one name; names the flag.
    """
    if unknown := [name for name in names if name not in GRIDS]:
        raise Error(f"--curves: expected some of {', '.join(GRIDS)}, found {unknown[0]!r}; --grids takes further ones")
    found = [_curve("--curves", name, *GRIDS[name], scale) for name in names]
    for text in (part for value in grids for part in parts(value)):
        method = text.split(":")[0].strip()
        kinds = (kind for kind, known in GRIDS.values() if known.split(":")[0] == method)
        found.append(_curve("--grids", method, next(kinds, OWN), text, 1.0))
    return found


def check_names(found: Sequence[Curve]) -> None:
    """Checks that there are curves, and that no two have one name.

    Raises:
      Error: there are none, or two.
    """
    called = [curve.name for curve in found]
    if not called:
        raise Error("--curves: expected at least one, found none; give --curves or --grids")
    if twice := [name for name in called if called.count(name) > 1]:
        advice = "put all its settings in one grid, and leave it out of --curves"
        raise Error(f"--grids: expected curves of different methods, found {twice[0]!r} twice; {advice}")


def key_of(row: Row) -> Key:
    """The method and setting of a row."""
    return row.identity.method, row.identity.setting


def _curve(flag: str, name: str, kind: str, text: str, scale: float) -> Curve:
    method, values = specs.parse(text, flag=flag, example=EXAMPLE)
    scale = 1.0 if method in _IN_FULL else scale
    settings = [_scaled(setting, scale) for setting in specs.combinations(values)]
    return Curve(name, kind, tuple(Cell(method, setting, build(flag, method, setting)) for setting in settings))


def _scaled(setting: Setting, scale: float) -> Setting:
    if scale == 1:
        return setting
    rates = {name: float(f"{float(value or 0) * scale:.6g}") for name, value in setting.items() if name in RATES}
    return {**setting, **rates}

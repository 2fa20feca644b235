"""Changes of JSON that stay JSON, and what a reader of JSON may stumble over."""

import random
from typing import Any

from tests.fuzz import mutation

_HOSTILE = (
    *(None, True, -1, 1.5, 1e308, "", "x" * 300, "\ud800", "a\0b", "é\u2028", "/", "../x", [], [[]], {}, [[[[1]]]]),
    *(10**30, [1] * 40, [0, 1 << 62], [1 << 31, 1 << 31], [1 << 32, 1 << 32], [0], [1 << 63], [-1, -4]),
)
WORDS = (
    *b'"__metadata__" "dtype" "shape" "data_offsets" "F32" "BF16" "F64" "I8" "BOOL" "U64" "C64" "F8_E4M3" "F4" '
    b"[0,0] [0,4] null true 1e999 -1 NaN Infinity 0.0 1E2 , : { } [ ] \\u0000 \\ud800 \\n \xff \xef\xbb\xbf".split(),
    *(b" " * 100, b"[" * 500, b"9" * 500, b'"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'),
)


def edit_json(value: Any, rng: random.Random) -> Any:
    """A copy with one value somewhere replaced, removed or added."""
    if isinstance(value, dict) and value and rng.randrange(6):
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(6):
            case 0:
                changed[key] = rng.choice(_HOSTILE)
            case 1:
                del changed[key]
            case 2:
                changed[rng.choice([str(one) for one in (*_HOSTILE, *value)])] = changed.pop(key)
            case 3:
                changed[rng.choice(("x", "__metadata__", key + "2"))] = changed[key]
            case _:
                changed[key] = edit_json(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.randrange(4):
        at = rng.randrange(len(value))
        return [*value[:at], edit_json(value[at], rng), *value[at + rng.randrange(2) :]]
    if isinstance(value, int) and rng.randrange(3):
        return rng.choice((value + rng.randrange(-9, 10), value * 2, mutation.number(rng)))
    if isinstance(value, str) and rng.randrange(2):
        return rng.choice(("F32", "F16", "BF16", "F8_E8M0", "U8", "C64", "BOOL", value + "x", value[:-1]))
    return rng.choice(_HOSTILE)

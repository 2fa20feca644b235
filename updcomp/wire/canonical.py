"""JSON in one form of each value, compressed: sorted names, no spaces, in ASCII, by raw deflate."""

import json
import zlib
from typing import Any

from updcomp.wire import errors

LONGEST = 1 << 20  # bytes of the text, before compression
_RAW_DEFLATE = -15


def text_of(value: Any) -> bytes:
    """The text.

    >>> text_of({"b": 1, "a": None})
    b'{"a":null,"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def pack(value: Any, what: str) -> bytes:
    """The compressed text.

    Args:
      value: that JSON can say.
      what: it is, for the message.

    Raises:
      Error: the text is longer than 1 MiB.
    """
    text = text_of(value)
    if len(text) > LONGEST:
        raise errors.Error(f"{what}: expected at most {LONGEST} bytes, found {len(text)}; leave some out")
    compressor = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE)
    return compressor.compress(text) + compressor.flush()


def unpack(data: bytes) -> tuple[Any, bytes]:
    """The value and its text, which need not be the one of `text_of`.

    Raises:
      ValueError, RecursionError: there is none, or it is longer than 1 MiB.
    """
    decompressor = zlib.decompressobj(_RAW_DEFLATE)
    try:
        text = decompressor.decompress(data, LONGEST + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not decompressor.eof or decompressor.unused_data or len(text) > LONGEST:
        raise ValueError("another end")
    return json.loads(text), text

"""The block kinds, a file each: what a block says, what it costs, how it is written, read and applied.

A new kind is such a file and its name in `updcomp.wire.versions`.
"""

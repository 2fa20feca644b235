"""What an update says of itself, for people and reports."""

from collections import Counter
from typing import Any

from updcomp.wire import container, costs, decoding, dtypes, errors, fingerprint, header, metadata, structure, views
from updcomp.wire.kind import Head


def inspect(update: bytes, model: dtypes.Model | None = None) -> dict[str, Any]:
    """What an update says of itself, and with the model that it starts from also of which leaves.

    Args:
      update: the file's bytes.
      model: the base, or None.

    Returns:
      format_version, bytes, base and result (fingerprints in hex), seed, blocks (kind, leaf_index, step, size and
      number of the view of each that has them), kinds (how many of each), bytes_by_part (header with checksum, raw,
      extra_bits, coded), which add up to bytes. Where the update covers the metadata of the model's file, metadata has
      the texts that change, and bytes_by_part their size too. Where leaves come or go, added has the shape and dtype
      of each by name, and removed the names. With a model, blocks also have leaf, shape and dtype, and
      instead of view axes: its words; and where the header says all sizes (not in version 1), cost has operations and
      working_bytes of applying, and those allowed by default.

    Raises:
      CorruptUpdateError: damaged, truncated, or of a version or kind that this code does not know.
      WrongBaseError: the update starts from another model.
    """
    if model is not None:
        container.check_base(update, [fingerprint.of(model)])
    parts = header.parse(update, model)
    change = parts.change
    sections = {
        **({} if change is None else {"metadata": len(change.digest) + len(change.changes)}),
        "raw": len(parts.raw),
        "extra_bits": len(parts.extra),
        "coded": len(parts.coded),
    }
    told: dict[str, Any] = {
        "format_version": parts.version.number,
        "bytes": len(update),
        "base": parts.base.hex(),
        "result": parts.result.hex(),
        "seed": parts.seed,
        "blocks": [_block(head) for head in parts.heads],
        "kinds": dict(sorted(Counter(head.kind.name for head in parts.heads).items())),
        "bytes_by_part": {"header": len(update) - sum(sections.values()), **sections},
    }
    if change is not None:
        told["metadata"] = metadata.unpack(change)
    if parts.structure is not None:
        told["added"] = {name: _told(spec) for name, spec in parts.structure.added.items()}
        told["removed"] = list(parts.structure.removed)
    return told if model is None else told | _of_model(parts, structure.start(model, parts.structure))


def _told(spec: dtypes.Spec) -> dict[str, Any]:
    return {"shape": list(spec.shape), "dtype": dtypes.name(spec.dtype)}


def _block(head: Head) -> dict[str, Any]:
    said = {"kind": head.kind.name, "leaf_index": head.leaf}
    known = {"step": head.step if head.kind.stepped else None, "size": head.size, "view": head.view}
    return said | {name: value for name, value in known.items() if value is not None}


def _of_model(parts: header.Parts, model: dtypes.Model) -> dict[str, Any]:
    """The blocks with what the model says of them, and what applying them takes."""
    specs = dtypes.specs(model)
    names = list(specs)
    told: dict[str, Any] = {"blocks": [_block_of(head, names[head.leaf], specs) for head in parts.heads]}
    found = decoding.known_costs(parts, specs)
    if len(found) == len(parts.heads):
        working = len(parts.extra) + max((cost.working_bytes for cost in found), default=0)
        allowed = costs.allowed(specs, 1.0)
        told["cost"] = {
            "operations": sum(cost.operations for cost in found),
            "operations_allowed": allowed.operations,
            "working_bytes": working,
            "working_bytes_allowed": allowed.working_bytes,
        }
    return told


def _block_of(head: Head, name: str, specs: dict[str, dtypes.Spec]) -> dict[str, Any]:
    shape, said = specs[name].shape, _block(head) | {"leaf": name} | _told(specs[name])
    if said.pop("view", None) is not None:
        with errors.of_leaf(name):
            said["axes"] = views.words_of(views.of_number(head.view or 0, len(shape)), len(shape))
    return said

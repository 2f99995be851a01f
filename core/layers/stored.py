"""Quantized weights as checkpoints hold them: cut for a rank, and joined for a layer that computes several at once.

Tensors are in the neutral form of `core/ops/quantized.py`. Nothing here changes a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from mainspring.core.errors import ModelError
from mainspring.core.layers.weights import Cut, Stored
from mainspring.core.parallel.shard import Span

_SHARED = ("group_index", "input_scale")
"""What rows have in common, so that it is no matrix of rows."""
_BY_GROUP = ("scales", "zeros")


def cut_stored(stored: Stored, cut: Cut, name: str) -> Stored:
    """A rank's part of a weight. Raises `ModelError` where that would cut through inputs that share a scale."""
    if cut.columns is not None:
        return _columns(stored, cut.columns, name)
    if not cut.rows:
        return stored
    if any(first % stored.scheme.group_rows for first, _ in cut.rows):
        stored = _scales_of_rows(stored)
    size = stored.scheme.group_rows
    blocks = Cut([(first // size, -(-past // size)) for first, past in cut.rows])
    tensors = {**stored.tensors, "weight": cut.of(stored.tensors["weight"])}
    if stored.scheme.group_size != 0:
        tensors |= {kind: blocks.of(tensors[kind]) for kind in _BY_GROUP if kind in tensors}
    return Stored(stored.scheme, tensors)


def joined(parts: Iterable[Stored], takes: Callable[[Stored], bool]) -> list[Stored]:
    """Weights of the same inputs, one below the other, in as few pieces as what their rows share allows, and the device
    takes.
    """
    pieces: list[Stored] = []
    for part in parts:
        both = _pair(pieces[-1], part) if pieces else None
        if both is None or not takes(both):
            pieces.append(part)
        else:
            pieces[-1] = both
    return pieces


def _columns(stored: Stored, columns: Span, name: str) -> Stored:
    first, past = columns
    tensors, size = dict(stored.tensors), stored.scheme.group_size
    tensors["weight"] = tensors["weight"][:, first:past]
    if stored.scheme.scattered:
        tensors["group_index"] = tensors["group_index"][first:past]
    elif size and stored.scheme.packing == "plain":
        if first % size:
            raise ModelError(
                f"{name}: input features {first} to {past} of this rank begin inside a group of {size}; use a "
                "--num-shard that divides the groups, or a checkpoint with smaller ones"
            )
        groups = slice(first // size, -(-past // size))
        tensors |= {kind: tensors[kind][:, groups] for kind in _BY_GROUP if kind in tensors}
    return Stored(stored.scheme, tensors)


def _scales_of_rows(stored: Stored) -> Stored:
    """Scales of blocks as each row's own."""
    scales = stored.tensors["scales"].repeat_interleave(stored.scheme.group_rows, 0)
    tensors = {**stored.tensors, "scales": scales[: len(stored.tensors["weight"])]}
    return Stored(replace(stored.scheme, group_rows=1), tensors)


def _pair(above: Stored, below: Stored) -> Stored | None:
    """Two weights as one; None where their schemes, or what all rows must share, differ."""
    above, below = _one_a_channel(above), _one_a_channel(below)
    if above.scheme != below.scheme or above.tensors.keys() != below.tensors.keys():
        return None
    if len(above.tensors["weight"]) % above.scheme.group_rows:
        return None
    shared = [kind for kind in _SHARED if kind in above.tensors]
    if not all(torch.equal(above.tensors[kind], below.tensors[kind]) for kind in shared):
        return None
    tensors = {
        kind: tensor if kind in shared else torch.cat((tensor, below.tensors[kind]))
        for kind, tensor in above.tensors.items()
    }
    return Stored(above.scheme, tensors)


def _one_a_channel(stored: Stored) -> Stored:
    """One scale a tensor as one an output channel."""
    if stored.scheme.group_size != 0 or "scales" not in stored.tensors:
        return stored
    rows = len(stored.tensors["weight"])
    scales: dict[str, torch.Tensor] = {
        kind: stored.tensors[kind].expand(rows, 1) for kind in _BY_GROUP if kind in stored.tensors
    }
    return Stored(replace(stored.scheme, group_size=None), {**stored.tensors, **scales})

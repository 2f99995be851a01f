"""Weights of linear layers as checkpoints hold them: the neutral form under a scheme, cut for a rank, and joined.

Legend: K input features, N output features, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.errors import ModelError
from mainspring.core.layers.weights import Cut
from mainspring.core.ops.quantized import dequantize
from mainspring.core.parallel.shard import Span


@dataclass(frozen=True, slots=True)
class Stored:
    """One linear layer's quantized weight, or a part of it."""

    scheme: WeightScheme
    tensors: Mapping[str, Tensor]
    """The neutral form of `core/ops/quantized.py`, on the host; no bias."""

    def dequantized(self) -> Tensor:
        """[N, K] in float32."""
        return dequantize(self.scheme, self.tensors)

    def cut(self, cut: Cut, name: str) -> Stored:
        """A rank's part. Raises `ModelError` where that would cut through values that share a scale."""
        if cut.columns is not None:
            return self._columns(cut.columns, name)
        if not cut.rows:
            return self
        by_row = self if self.scheme.group_rows == 1 or _aligned(cut.rows, self.scheme.group_rows) else self._by_row()
        size = by_row.scheme.group_rows
        blocks = Cut([(first // size, -(-past // size)) for first, past in cut.rows])
        tensors = dict(by_row.tensors)
        tensors["weight"] = cut.of(tensors["weight"])
        if self.scheme.group_size != 0:
            tensors |= {kind: blocks.of(tensors[kind]) for kind in ("scales", "zeros") if kind in tensors}
        return Stored(by_row.scheme, tensors)

    def _by_row(self) -> Stored:
        """Scales of blocks as each row's own: the same values."""
        rows, held = self.scheme.group_rows, len(self.tensors["weight"])
        scales = self.tensors["scales"].repeat_interleave(rows, 0)[:held]
        return Stored(replace(self.scheme, group_rows=1), {**self.tensors, "scales": scales})

    def _columns(self, columns: Span, name: str) -> Stored:
        first, past = columns
        tensors, size = dict(self.tensors), self.scheme.group_size
        tensors["weight"] = tensors["weight"][:, first:past]
        if self.scheme.scattered:
            tensors["group_index"] = tensors["group_index"][first:past]
        elif size:
            if first % size:
                raise ModelError(
                    f"{name}: input features {first} to {past} of this rank begin inside a group of {size}; use a "
                    "--num-shard that divides the groups, or a checkpoint with smaller ones"
                )
            groups = slice(first // size, -(-past // size))
            tensors |= {kind: tensors[kind][:, groups] for kind in ("scales", "zeros") if kind in tensors}
        return Stored(self.scheme, tensors)


def joined(parts: Sequence[Stored]) -> list[Stored]:
    """Layers that read the same input, one below the other, in as few pieces as their schemes allow."""
    pieces = [parts[0]]
    for part in parts[1:]:
        both = _pair(pieces[-1], part)
        pieces[-1:] = [pieces[-1], part] if both is None else [both]
    return pieces


def _pair(above: Stored, below: Stored) -> Stored | None:
    """Two weights as one; None where their schemes, or what all rows must share, differ."""
    if above.scheme.group_size == 0:
        above, below = _by_channel(above), _by_channel(below)
    if above.scheme != below.scheme or above.tensors.keys() != below.tensors.keys():
        return None
    if len(above.tensors["weight"]) % above.scheme.group_rows:
        return None
    shared = ("group_index", "input_scale")
    if any(not torch.equal(above.tensors[kind], below.tensors[kind]) for kind in shared if kind in above.tensors):
        return None
    tensors = {
        kind: tensor if kind in shared else torch.cat((tensor, below.tensors[kind]))
        for kind, tensor in above.tensors.items()
    }
    return Stored(above.scheme, tensors)


def _by_channel(stored: Stored) -> Stored:
    """One scale a tensor as one an output channel: the same values."""
    if stored.scheme.group_size != 0:
        return stored
    rows = len(stored.tensors["weight"])
    scales = {kind: stored.tensors[kind].expand(rows, 1) for kind in ("scales", "zeros") if kind in stored.tensors}
    return Stored(replace(stored.scheme, group_size=None), {**stored.tensors, **scales})


def _aligned(spans: Sequence[Span], size: int) -> bool:
    return all(first % size == 0 for first, _ in spans)

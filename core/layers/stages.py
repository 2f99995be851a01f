"""The ends of a stack of layers that is cut into stages: what stands where another stage has the model's own end.

Hidden states travel outside the programs of a step (`core.execution.relay`), so that programs may be captured.

Legend: T packed tokens, E hidden size, M tokens of the largest step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mainspring.core.backend import Communicator
from mainspring.core.errors import ModelError
from mainspring.core.layers.embedding import Embedding, ReadRows
from mainspring.core.layers.vocabulary import Vocabulary
from mainspring.core.ops import Ops


class Arrived(nn.Module):
    """In place of the embedding: the stream as the stage before left it, in a room [M, E] that it is put into."""

    def __init__(self, room: Tensor) -> None:
        super().__init__()
        self._room = room

    def begin(self, tokens_T: Tensor) -> tuple[Tensor, Tensor]:
        """As `Embedding.begin`. Nothing is to be added: where norms sum over ranks, what is added is a rank's part."""
        stream_TE = self._room[: len(tokens_T)]
        return torch.zeros_like(stream_TE), stream_TE


class ArrivedAtTable(Embedding):
    """The same on a last stage whose head is the embedding's own table, which is therefore read here, too."""

    def __init__(self, room: Tensor, rows: Vocabulary, size: int, ops: Ops, read_rows: ReadRows) -> None:
        super().__init__(rows, size, ops, read_rows)
        self._arrived = Arrived(room)

    def begin(self, index_T: Tensor) -> tuple[Tensor, Tensor]:
        """As `Arrived.begin`."""
        return self._arrived.begin(index_T)


class Leaving(nn.Module):
    """In place of the final norm: the stream whole, for the next stage."""

    def __init__(self, group: Communicator | None) -> None:
        """`group`: the ranks whose parts are still to be summed."""
        super().__init__()
        self._group = group

    def add(self, x_TE: Tensor, residual_TE: Tensor) -> tuple[Tensor, Tensor]:
        """As `RMSNorm.add`, without the norm."""
        if self._group is not None:
            x_TE = self._group.all_reduce(x_TE)
        stream_TE = x_TE + residual_TE
        return stream_TE, stream_TE


class HeadElsewhere(nn.Module):
    """In place of the head, which the last stage holds."""

    def forward(self, hidden_NE: Tensor) -> Tensor:
        """Never called by what knows of stages."""
        raise ModelError("this stage has no head; the last one scores tokens")

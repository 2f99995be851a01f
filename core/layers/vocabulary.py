"""The rows of a model's two ends, and what ranks do when they are dealt out.

Legend: T packed tokens, N rows to score, E hidden size, V vocabulary, P rows of it that a rank has memory for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.core.backend import Communicator
from mainspring.core.layers.weights import WHOLE, Cut
from mainspring.core.parallel.shard import ALONE, Shard, part_of_vocabulary


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`size` rows, of which this rank holds a part; all of them without a `group`."""

    size: int
    shard: Shard = ALONE
    group: Communicator | None = None
    sums: bool = True
    """Whether looked-up rows are summed over ranks here, or by the norm behind them."""

    @property
    def held(self) -> int:
        """P: rows that this rank has memory for, padding included."""
        return part_of_vocabulary(self.size, self.shard.world)

    @property
    def cut(self) -> Cut:
        """The rows that are read."""
        return WHOLE if self.group is None else Cut((self.shard.vocabulary(self.size),))

    def filled_up(self, rows: Tensor) -> Tensor:
        """Rows that were read and zeros, [P, E]."""
        missing = self.held - rows.shape[0]
        return F.pad(rows, (0, 0, 0, missing)) if missing else rows

    def own(self, index_T: Tensor) -> tuple[Tensor, Tensor | None]:
        """(where the rows of these tokens stand here, [T]; which tokens are held here, [T, 1], None for all)."""
        if self.group is None:
            return index_T, None
        first, past = self.shard.vocabulary(self.size)
        here_T = (index_T >= first) & (index_T < past)
        return torch.where(here_T, index_T - first, 0), here_T[:, None]

    def summed(self, x_TE: Tensor, here_T1: Tensor | None) -> Tensor:
        """The rows that all ranks looked up: each token's from the one that holds it."""
        if self.group is None or here_T1 is None:
            return x_TE
        part_TE = torch.where(here_T1, x_TE, 0)
        return self.group.all_reduce(part_TE) if self.sums else part_TE

    def gathered(self, scores_NP: Tensor) -> Tensor:
        """[N, V], bit for bit the same on all ranks, so that they all choose the same tokens."""
        if self.group is None:
            return scores_NP
        return self.group.all_gather(scores_NP, dim=1)[:, : self.size].contiguous()

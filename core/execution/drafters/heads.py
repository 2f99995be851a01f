"""Heads at work: a line of tokens from the last good hidden state of each row.

Legend: R rows that draft, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mainspring.core.batch import Batch
from mainspring.core.execution.drafters.choosing import Drawing
from mainspring.core.execution.drafters.contract import DraftPlan, Ran
from mainspring.core.execution.table import StateTable
from mainspring.core.execution.upload import Upload
from mainspring.core.models.drafts.contract import Heads


class HeadsDrafter:
    """Drafts with heads that have no memory, so that nothing is done for rows that want no drafts."""

    def __init__(self, heads: Heads, table: StateTable, drawing: Drawing, count: int, upload: Upload) -> None:
        self._heads, self._table, self._drawing, self._upload = heads, table, drawing, upload
        self._count = count

    @property
    def count(self) -> int:
        """Tokens that are drafted at once."""
        return self._count

    def plan(self, batch: Batch, wanting: Sequence[int]) -> DraftPlan:
        """The table's rows, and how many admissions it has seen."""
        rows = np.array([batch.rows[place] for place in wanting], dtype=np.int64)
        return DraftPlan(tuple(wanting), (rows, self._table.admissions))

    def draft(self, plan: DraftPlan, ran: Ran) -> Tensor | None:
        """[R, count]."""
        if not plan.places:
            return None
        rows, admissions = plan.details
        sampling = self._drawing.of(rows, admissions)
        places_R = ran.inputs.positions[ran.last] + 1
        tokens_R = self._table.tokens[self._upload(rows), places_R]

        def choose(scores_RV: Tensor) -> Tensor:
            nonlocal places_R
            places_R = places_R + 1
            return self._drawing.draw(scores_RV, sampling, places_R)

        return torch.stack(list(self._heads.drafts(ran.hidden[ran.last], tokens_R, self._count, choose)), dim=1)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Nothing is cached."""

"""Heads at work: a line of tokens from the last good hidden state of each row.

Legend: R rows that draft, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mainspring.core.batch import Batch
from mainspring.core.execution.drafters.choosing import Drawing
from mainspring.core.execution.drafters.contract import DraftPlan, Ran
from mainspring.core.execution.table import StateTable
from mainspring.core.models.drafts.contract import Heads


class HeadsDrafter:
    """Drafts with heads that have no memory, so that nothing is done for rows that want no drafts."""

    def __init__(
        self,
        heads: Heads,
        table: StateTable,
        drawing: Drawing,
        count: int,
        *,
        flush: Callable[[], None],
        static: bool,
    ) -> None:
        """`static`: as many rows draft as the step's bucket has, nobody's among them."""
        self._heads, self._table, self._drawing = heads, table, drawing
        self._count, self._flush, self._static = count, flush, static

    @property
    def count(self) -> int:
        """Tokens that are drafted at once."""
        return self._count

    def plan(self, batch: Batch, wanting: Sequence[int]) -> DraftPlan:
        """The table's rows, and how many admissions it has seen."""
        rows = np.array([batch.rows[place] for place in wanting], dtype=np.int64)
        if self._static and batch.bucket is not None:
            spare = batch.bucket.sequences - len(rows)
            rows = np.pad(rows, (0, spare), constant_values=self._table.nobody)
        return DraftPlan(tuple(wanting), (rows, self._table.admissions))

    def draft(self, plan: DraftPlan, ran: Ran) -> Tensor | None:
        """[R, count]."""
        if not plan.places:
            return None
        rows, admissions = plan.details
        sampling = self._drawing.of(rows, admissions)
        places_R = ran.inputs.positions[ran.last] + 1
        tokens_R, hidden_RE = self._table.tokens[ran.inputs.token_rows[ran.last], places_R], ran.hidden[ran.last]
        self._flush()

        def choose(scores_RV: Tensor) -> Tensor:
            nonlocal places_R
            places_R = places_R + 1
            self._flush()
            drawn_R = self._drawing.draw(scores_RV, sampling, places_R)
            self._flush()
            return drawn_R

        return torch.stack(list(self._heads.drafts(hidden_RE, tokens_R, self._count, choose)), dim=1)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Nothing is cached."""

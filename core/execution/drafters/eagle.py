"""Heads of EAGLE's kind at work: over the target's own step, then on by themselves.

The head reads every token that the target computes, for its cache must have them all: a layer beside the target's many.
At each place it reads the state there and the token behind it, which at the last place is the target's latest choice.
Where a prompt's blocks come out of the prefix cache, the last of their slots was written with the token that followed
then, which may be another now. That can cost a draft, never a token.

Legend: T tokens of the target's step, R rows that draft, F features of the target's hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mainspring.core.batch import Batch
from mainspring.core.execution.drafters.continuing import Continuation, Line
from mainspring.core.execution.drafters.contract import Beside, DraftPlan, Ran
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models.drafts.contract import Recurrent


class EagleDrafter:
    """Drafts with a head that continues the target's states."""

    def __init__(self, head: Recurrent, beside: Beside) -> None:
        self._head, self._beside = head, beside
        self._line = Continuation(head, beside, reads_next=True)

    @property
    def count(self) -> int:
        """Tokens that are drafted at once."""
        return self._beside.count

    def plan(self, batch: Batch, wanting: Sequence[int]) -> DraftPlan:
        """The line of each row that wants one."""
        return DraftPlan(tuple(wanting), self._plan_line(batch, wanting) if wanting else None)

    def _plan_line(self, batch: Batch, wanting: Sequence[int]) -> Line:
        rows = np.array([batch.rows[place] for place in wanting], dtype=np.int64)
        ends = np.array([batch.starts[place] + batch.counts[place] for place in wanting], dtype=np.int32)
        return self._line.plan(rows, ends)

    def draft(self, plan: DraftPlan, ran: Ran) -> Tensor | None:
        """[R, count]."""
        inputs, beside = ran.inputs, self._beside
        step = AttentionStep(beside.kv, beside.device.prepare_attention(inputs.metadata, beside.kv))
        tokens_T = beside.table.tokens[inputs.token_rows, inputs.positions + 1]
        states_TE = self._head(tokens_T, self._head.features(ran.hidden), inputs.positions, step)
        if not plan.places:
            return None
        return self._line.draft(plan.details, states_TE[ran.last], inputs.positions[ran.last] + 1)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """As in the target's cache."""
        self._beside.device.copy_blocks(self._beside.kv, pairs)

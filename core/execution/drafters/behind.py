"""A drafter behind one step: from the step's plan to the drafts on the device.

How far the last drafts were right is found there, because what comes next is drafted from the last good token. The
scheduler finds the same when the step's tokens reach the host; a drafter cannot wait for that.

Legend: T tokens of a step, R rows that draft, D most drafts that a row had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mainspring.core.batch import Batch
from mainspring.core.execution.drafters.contract import Drafter, DraftPlan, Ran
from mainspring.core.execution.inputs import StepTensors
from mainspring.core.execution.upload import Upload


@dataclass(frozen=True, slots=True)
class Drafting:
    """What a drafter is to do behind one step."""

    plan: DraftPlan
    spans: npt.NDArray[np.int64]
    """[R, 1 + D] Of each row that drafts, which of the T tokens is its last known one, and its drafts behind that;
    filled up with what nobody chooses."""

    @classmethod
    def of(cls, drafter: Drafter, batch: Batch, *, rows: int | None = None) -> Drafting:
        """On the host, for every step: the state table must be up to date.

        With `rows`, steps of one bucket have one shape: so many rows, and as many drafts as the drafter ever makes.
        """
        plan = drafter.plan(batch, batch.wanting)
        shape = (rows, drafter.count) if rows is not None and plan.places else None
        return cls(plan, _spans(batch, plan.places, shape))

    def run(
        self, drafter: Drafter, inputs: StepTensors, hidden_TF: Tensor, tokens: Tensor, upload: Upload
    ) -> Tensor | None:
        """[R, count] behind the step, whose choices are in the token table; None where no row drafts."""
        last_R = last_good(upload(self.spans), inputs, tokens) if len(self.spans) else torch.empty(0)
        return drafter.draft(self.plan, Ran(inputs, hidden_TF, last_R))


def last_good(spans_RW: Tensor, inputs: StepTensors, tokens: Tensor) -> Tensor:
    """[R] int64: which of the T tokens is the last right one, given what `tokens` says was chosen behind each."""
    first_R, drafts_RD = spans_RW[:, 0], spans_RW[:, 1:]
    most = drafts_RD.shape[1]
    if not most:
        return first_R
    behind_RD = inputs.positions[first_R][:, None] + 1 + torch.arange(most, dtype=torch.int32, device=spans_RW.device)
    chosen_RD = tokens[inputs.token_rows[first_R][:, None], behind_RD.clamp(max=tokens.shape[1] - 1)]
    wrong_RD = (chosen_RD != drafts_RD).long().cumsum(dim=1)
    return first_R + (wrong_RD == 0).sum(dim=1)


def _spans(batch: Batch, places: Sequence[int], shape: tuple[int, int] | None) -> npt.NDArray[np.int64]:
    drafts = {draft.index: draft.tokens for draft in batch.drafts}
    past = np.cumsum(batch.counts)
    most = max((len(drafts.get(place, ())) for place in places), default=0)
    rows, most = (len(places), most) if shape is None else shape
    words = np.full((rows, 1 + most), -1, dtype=np.int64)
    words[len(places) :, 0] = 0
    for row, place in enumerate(places):
        own = drafts.get(place, ())
        words[row, 0] = past[place] - 1 - len(own)
        words[row, 1 : 1 + len(own)] = own
    return words

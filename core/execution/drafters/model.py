"""A draft model at work: it reads what it has missed of the sequences that want drafts, then runs on by itself.

It depends on tokens alone, so it may fall behind: while nobody wants drafts it computes nothing, and catches up when
somebody does (`coverage`). A sequence with more to catch up on than fits a step gets its drafts some steps later.

Legend: P tokens of the pass, R rows that draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mainspring.core.batch import Batch
from mainspring.core.execution.drafters import places
from mainspring.core.execution.drafters.continuing import Continuation, Line
from mainspring.core.execution.drafters.contract import Beside, DraftPlan, Ran
from mainspring.core.execution.drafters.coverage import Coverage
from mainspring.core.execution.inputs import StepShape, view
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models import CausalLM
from mainspring.core.models.drafts.contract import Recurrent


class Language(Recurrent):
    """A language model as a drafter: it reads tokens, and no features of anybody's."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model

    def features(self, hidden_TF: Tensor) -> Tensor:
        return hidden_TF

    def forward(self, tokens_T: Tensor, features_TE: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        hidden_TE: Tensor = self.model(tokens_T, positions_T, step)
        return hidden_TE

    def logits(self, states_RE: Tensor) -> Tensor:
        return self.model.logits(states_RE)


@dataclass(frozen=True, slots=True)
class Pass:
    """The tokens to read, packed, and the rows that are up to date behind them."""

    words: npt.NDArray[np.int32]
    shape: StepShape
    firsts: npt.NDArray[np.int32]
    """[R] Which of the P tokens would stand at position 0 of each row that drafts; may be negative."""
    line: Line | None


class ModelDrafter:
    """Drafts with a language model that shares the target's `num_blocks` block ids, and reads at most `max_tokens` of
    what it has missed behind one step.
    """

    def __init__(self, model: CausalLM, beside: Beside, num_blocks: int, max_tokens: int) -> None:
        self._model, self._beside, self._table = model, beside, beside.table
        self._coverage = Coverage(num_blocks, beside.table.block_size)
        self._line = Continuation(Language(model), beside, reads_next=False)
        self._max_tokens = max_tokens

    @property
    def count(self) -> int:
        """Tokens that are drafted at once."""
        return self._beside.count

    def plan(self, batch: Batch, wanting: Sequence[int]) -> DraftPlan:
        """What to read, at most `max_tokens`, and who is up to date behind that."""
        starts, counts = (np.array(each, dtype=np.int32) for each in (batch.starts, batch.counts))
        rows = np.array(batch.rows, dtype=np.int64)
        self._coverage.copied(batch.copies)
        self._coverage.overwritten(self._table.blocks, rows, starts, counts)
        if not wanting:
            return DraftPlan((), None)
        readers = np.array(wanting)
        ends = (starts + counts)[readers]
        begins, past = self._divided(rows[readers], ends)
        reading = past > begins
        readers, ends, begins, past = readers[reading], ends[reading], begins[reading], past[reading]
        ready = past == np.minimum(ends + 1, self._table.max_length)
        blocks = places.overlaid(self._table.blocks, rows[readers], ends, self._beside.scratch, self._table.block_size)
        words, shape = places.packed_pass(rows[readers], begins, past - begins, blocks, self._table.block_size)
        firsts = np.concatenate(([0], (past - begins).cumsum()[:-1])) - begins
        line = self._line.plan(rows[readers[ready]], ends[ready]) if ready.any() else None
        details = Pass(words, shape, firsts[ready].astype(np.int32), line)
        return DraftPlan(tuple(readers[ready].tolist()), details)

    def _divided(
        self, rows: npt.NDArray[np.int64], ends: npt.NDArray[np.int32]
    ) -> tuple[places.Integers, places.Integers]:
        """From where to where each row reads: what it missed and its latest choice, while the step has room."""
        begins, past = np.zeros_like(ends), np.zeros_like(ends)
        room, size = self._max_tokens, self._table.block_size
        for place, (row, end) in enumerate(zip(rows.tolist(), ends.tolist(), strict=True)):
            blocks = self._table.blocks[row]
            begins[place] = self._coverage.known(blocks, end)
            past[place] = min(end + 1, self._table.max_length, begins[place] + room)
            room -= past[place] - begins[place]
            # What stands in scratch is read again when its block has come.
            self._coverage.read(blocks, min(int(past[place]), -(-end // size) * size))
        return begins, past

    def draft(self, plan: DraftPlan, ran: Ran) -> Tensor | None:
        """[R, count]."""
        if plan.details is None:
            return None
        todo: Pass = plan.details
        beside = self._beside
        inputs = view(beside.upload(todo.words), todo.shape)
        tokens_P = self._table.tokens[inputs.token_rows, inputs.positions]
        step = AttentionStep(beside.kv, beside.device.prepare_attention(inputs.metadata, beside.kv))
        states_PE = self._model(tokens_P, inputs.positions, step)
        if todo.line is None:
            return None
        places_R = ran.inputs.positions[ran.last] + 1
        index_R = beside.upload(todo.firsts) + places_R.clamp(max=self._table.max_length - 1)
        return self._line.draft(todo.line, states_PE[index_R], places_R)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """As in the target's cache."""
        self._beside.device.copy_blocks(self._beside.kv, pairs)

"""Tokens chosen behind a program: from the logits that it left to the ids that the next step reads.

The stages, in their order: penalties, logit_bias and min_tokens (`sampling.py`), logits processors, the masks of
grammars, the op `sample`, and the log-probabilities of whoever asked. Programs that choose for themselves are
`programs.py`; rows that want more than those give are chosen for again here.

Legend: N rows that choose a token, G of them that follow a grammar, V vocabulary, W words of 32 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mainspring.core.backend import Capabilities, Device
from mainspring.core.batch import Admission, Batch
from mainspring.core.execution.inputs import StepShape, StepTensors
from mainspring.core.execution.pending import Enqueued
from mainspring.core.execution.relay import ONE_STAGE, Relay
from mainspring.core.execution.sampling import Rows, Selection, adjust
from mainspring.core.execution.scoring import blank
from mainspring.core.execution.table import StateTable
from mainspring.core.execution.upload import uploading
from mainspring.core.grammar.guides import NO_GUESSES, Guesses, Guiding
from mainspring.core.ops import Ops
from mainspring.core.ops.choose import not_finite
from mainspring.core.processors.stage import process


@dataclass(frozen=True, slots=True)
class Choice:
    """What choosing a step's tokens takes, host side done."""

    selection: Selection
    count: int
    """N: the program's rows that choose, padding included where shapes must not vary."""
    history: int
    """Tokens of a row that penalties may have to count."""
    guesses: Guesses


class Choosing:
    """Chooses tokens on one device. `plan` is the host's side of a step; all else runs in the order of the steps."""

    def __init__(
        self,
        table: StateTable,
        device: Device,
        *,
        capabilities: Capabilities,
        ops: Ops,
        guides: Guiding | None,
        share_masks: Callable[[Tensor], Tensor] | None,
        relay: Relay = ONE_STAGE,
    ) -> None:
        self._table = table
        self._device = device
        self._ops = ops
        self._guides = guides
        self._share_masks = share_masks
        self._relay = relay
        self._static = capabilities.shapes == "bucketed"
        self._upload = uploading(device)
        self._selected: tuple[tuple[int, bytes], Selection] | None = None

    def plan(self, batch: Batch, chosen: Rows, shape: StepShape) -> Choice | None:
        """How the step's tokens, those of the table's rows `chosen`, are to be chosen behind its program.

        None where the program chooses them all, or nobody does. The state table must be up to date.
        """
        if shape.samples == 0 or (shape.chooses and not self._table.sampling.demands(chosen)):
            return None
        longest, num_choices = self._table.max_length, len(chosen)
        if self._static:
            chosen = np.pad(chosen, (0, shape.samples - num_choices), constant_values=self._table.nobody)
        selection = self._select(chosen)
        guesses = _guesses(batch) if selection.guided_rows else NO_GUESSES
        if self._static:
            return Choice(selection, shape.samples, longest, guesses)
        return Choice(selection, num_choices, min(shape.max_kv, longest), guesses)

    def _select(self, chosen: Rows) -> Selection:
        """The step's sampling tensors, those of the step before when rows and requests are the same."""
        key = (self._table.admissions, chosen.tobytes())
        if self._selected is None or self._selected[0] != key:
            selection = self._table.sampling.select(chosen, self._upload, partition=not self._static)
            self._selected = (key, selection)
        return self._selected[1]

    def admit(self, admissions: Sequence[Admission]) -> None:
        """Sequences take rows: whatever follows their grammars starts behind what they have said."""
        if self._guides is not None:
            for admission in admissions:
                said = admission.tokens[admission.num_prompt_tokens :]
                self._guides.admit(admission.row, admission.params.grammar, said)

    def awaits_tokens(self, choice: Choice) -> bool:
        """Whether it has to see what the step before chose. Ranks that are told masks keep pace: theirs never wait."""
        return bool(choice.selection.guided_rows) and self._guides is not None and self._share_masks is None

    def catch_up(self) -> None:
        """Follows the tokens of the step before. At every step, once its program is with the device."""
        if self._guides is not None:
            self._guides.catch_up()

    def choose(self, choice: Choice, logits_NV: Tensor, inputs: StepTensors, results: Enqueued) -> None:
        """Chooses tokens, puts them where the next step reads them, and starts their way to the host."""
        selection, table, flush = choice.selection, self._table, self._device.flush
        logits_NV = logits_NV[: choice.count]
        rows_N, position_N = inputs.sample_rows[: choice.count], inputs.sample_positions[: choice.count]
        bad_N = not_finite(logits_NV).int()
        flush()
        adjusted_NV = adjust(logits_NV, selection, table.tokens, position_N, max_length=choice.history, flush=flush)
        if selection.processing:
            adjusted_NV = process(adjusted_NV, selection.processing, table.tokens, position_N, flush=flush)
            bad_N |= not_finite(adjusted_NV)
        adjusted_NV = self._guided(adjusted_NV, choice, results)
        ids_N = self._ops.sample(adjusted_NV, replace(selection.sampling, position=position_N))
        table.append(rows_N, position_N, ids_N)
        chosen_2N = torch.stack((ids_N, bad_N))
        flush()
        self._take(choice, self._relay.told(chosen_2N), results)
        self._tell(selection, logits_NV, adjusted_NV, ids_N, results=results)

    def hear(self, choice: Choice, inputs: StepTensors, results: Enqueued) -> None:
        """Likewise where the last stage chooses, and tells."""
        selection, device = choice.selection, self._device.torch_device
        rows_N, position_N = inputs.sample_rows[: choice.count], inputs.sample_positions[: choice.count]
        self._masks(choice, results)
        chosen_2N = self._relay.told(torch.zeros((2, choice.count), dtype=torch.int32, device=device))
        self._table.append(rows_N, position_N, chosen_2N[0])
        self._device.flush()
        self._take(choice, chosen_2N, results)
        if selection.logprob_index is not None:
            found = self._relay.told_all(blank(len(selection.logprob_index), selection.max_logprobs, device))
            results.take_logprobs(selection, found, self._device.pinned)

    def _take(self, choice: Choice, chosen_2N: Tensor, results: Enqueued) -> None:
        """What was chosen starts its way to the host, where grammars wait for it."""
        results.take(chosen_2N)
        selection = choice.selection
        if self._guides is not None and selection.guided_rows:
            self._guides.expect(selection.guided_rows, selection.guided_places, results.tokens, choice.guesses)

    def _guided(self, logits_NV: Tensor, choice: Choice, results: Enqueued) -> Tensor:
        """Logits that leave what the rows' grammars allow."""
        mask_GW, index_G = self._masks(choice, results), choice.selection.guided_index
        if mask_GW is None or index_G is None:
            return logits_NV
        logits_NV = self._ops.apply_bitmask(logits_NV, index_G, mask_GW)
        self._device.flush()
        return logits_NV

    def _masks(self, choice: Choice, results: Enqueued) -> Tensor | None:
        """Of the rows that follow a grammar, made while the device runs the program; None where none does."""
        selection = choice.selection
        if self._guides is None or selection.guided_index is None:
            return None
        masks_GW = self._guides.masks(selection.guided_rows, choice.guesses)
        results.astray = tuple(
            place
            for place, lost in zip(selection.guided_places, self._guides.lost(selection.guided_rows), strict=True)
            if lost
        )
        mask_GW = self._upload(masks_GW)
        return mask_GW if self._share_masks is None else self._share_masks(mask_GW)

    def _tell(
        self, selection: Selection, logits_NV: Tensor, adjusted_NV: Tensor, ids_N: Tensor, *, results: Enqueued
    ) -> None:
        """Log-probabilities of the rows that asked, of the logits as they came or of what all stages left."""
        asked = selection.logprob_index
        if asked is None:
            return
        if len(asked) < len(logits_NV):  # else they are all of them, in their order
            logits_NV, adjusted_NV, ids_N = logits_NV[asked], adjusted_NV[asked], ids_N[asked]
        if selection.logprob_adjusted is not None:
            logits_NV = torch.where(selection.logprob_adjusted, adjusted_NV, logits_NV)
        found = self._ops.logprobs(logits_NV, ids_N, selection.max_logprobs)
        self._device.flush()
        results.take_logprobs(selection, self._relay.told_all(found), self._device.pinned)


def _guesses(batch: Batch) -> Guesses:
    """By row of the table."""
    return {batch.rows[draft.index]: draft.tokens for draft in batch.drafts} if batch.drafts else NO_GUESSES

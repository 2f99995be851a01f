"""The drafts behind the first: a small decoder runs on, one token of each row at a time, without the host.

Legend: R rows that draft, E hidden size of the drafter, B blocks a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mainspring.core.backend import AttentionPlan, Program
from mainspring.core.batch import Bucket
from mainspring.core.execution.drafters import places
from mainspring.core.execution.drafters.contract import Beside
from mainspring.core.execution.inputs import StepShape, StepTensors, view
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models.drafts.contract import Recurrent


@dataclass(frozen=True, slots=True)
class Line:
    """What the host knows of a line of drafts before the step that it continues has run."""

    rows: npt.NDArray[np.int64]
    """[R] Rows of the state table."""
    words: npt.NDArray[np.int32]
    shape: StepShape
    bucket: Bucket | None
    """The program's, on devices that build one for such a shape."""
    admissions: int


@dataclass(frozen=True, slots=True)
class Captured:
    """A bucket's program, and its inputs, which stay where it found them."""

    run: Program
    buffer: Tensor
    inputs: StepTensors


class Continuation:
    """Runs a drafter on from the states that its first pass left at each row's last good place.

    `reads_next`: the drafter reads the token behind each place (EAGLE), not the one that stands there.
    """

    def __init__(self, module: Recurrent, beside: Beside, *, reads_next: bool) -> None:
        self._module, self._beside, self._table = module, beside, beside.table
        self._shift = 1 if reads_next else 0
        self._states: Tensor | None = None
        self._any_shape = beside.device.compile(self._program, None)
        self._captured: dict[Bucket, Captured] = {}

    def plan(self, rows: npt.NDArray[np.int64], ends: npt.NDArray[np.int32]) -> Line:
        """For rows whose blocks hold positions before `ends`."""
        size = self._table.block_size
        blocks_RB = places.overlaid(self._table.blocks, rows, ends, self._beside.scratch, size)
        count, width = blocks_RB.shape
        buckets = self._beside.buckets
        fitting = None if buckets is None else buckets.smallest(count, count, width, decode=True)
        if fitting is not None:
            count, width = fitting.sequences, fitting.blocks
        shape = places.decode_shape(count, width, size)
        words = places.packed_decode(rows, blocks_RB, shape, self._table.nobody)
        return Line(rows, words, shape, fitting, self._table.admissions)

    def draft(self, line: Line, states_RE: Tensor, places_R: Tensor) -> Tensor:
        """[R, count] from the states at each row's last good place, whose choice stands behind it, at `places_R`."""
        beside, rows, most = self._beside, len(line.rows), self._table.max_length
        sampling = beside.drawing.of(line.rows, line.admissions)
        run, inputs = self._load(line)
        self._kept(states_RE)[:rows] = states_RE
        scores_RV = self._module.logits(states_RE)
        found: list[Tensor] = []
        while True:
            places_R = places_R + 1
            found.append(beside.drawing.draw(scores_RV, sampling, places_R))
            if len(found) == beside.count:
                return torch.stack(found, dim=1)
            # A line may lead past the longest sequence; what is drafted there is of no use, and harms nobody.
            self._table.append(inputs.token_rows[:rows], places_R.clamp(max=most), found[-1])
            self._advance(inputs, (places_R - self._shift).clamp(max=most - 1))
            _, scores_NV, _ = run(inputs, beside.device.prepare_attention(inputs.metadata, beside.kv))
            scores_RV = scores_NV[:rows]

    def _kept(self, states_RE: Tensor) -> Tensor:
        """Where programs find each row's state, [rows of the table, E]: one memory for ever."""
        if self._states is None:
            self._states = states_RE.new_zeros((self._table.nobody + 1, states_RE.shape[1]))
        return self._states

    def _load(self, line: Line) -> tuple[Program, StepTensors]:
        """The program of the line's shape, and its inputs on the device but for what depends on positions."""
        words = self._beside.upload(line.words)
        if line.bucket is None:
            return self._any_shape, view(words, line.shape)
        if line.bucket not in self._captured:
            run = self._beside.device.compile(self._program, line.bucket)
            buffer = torch.zeros_like(words)
            self._captured[line.bucket] = Captured(run, buffer, view(buffer, line.shape))
        captured = self._captured[line.bucket]
        captured.buffer.copy_(words, non_blocking=True)
        return captured.run, captured.inputs

    def _advance(self, inputs: StepTensors, places_R: Tensor) -> None:
        """Each row computes the token at its place next."""
        rows = len(places_R)
        metadata = inputs.metadata
        inputs.positions[:rows] = places_R
        metadata.kv_length[:rows] = places_R + 1
        metadata.slot[:rows] = places.slots(metadata.block_table[:rows], places_R, self._table.block_size)

    def _program(self, inputs: StepTensors, plan: AttentionPlan) -> tuple[Tensor, Tensor, None]:
        """What a backend compiles, in the form of `Device.compile`; states stay where the next run reads them."""
        if self._states is None:
            raise RuntimeError("a line was continued before it had begun")
        states_RE = self._states[: len(inputs.positions)]
        tokens_R = self._table.tokens[inputs.token_rows, inputs.positions + self._shift]
        next_RE = self._module(tokens_R, states_RE, inputs.positions, AttentionStep(self._beside.kv, plan))
        states_RE.copy_(next_RE)
        return next_RE, self._module.logits(next_RE), None

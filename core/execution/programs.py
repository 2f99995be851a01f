"""The programs of one device, each for a shape: what a step computes there, and how its integers get to it.

A program reads input ids from the token table, runs the model, and gives the logits of the rows that choose; where the
device can, it chooses their tokens too. What is chosen behind programs is `choosing.py`, what comes before and after a
program in a step `runner.py`.

Legend: T packed tokens, N rows that choose a token, E hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.core.backend import AttentionPlan, Capabilities, Device, KVCache, Program
from mainspring.core.batch import Batch, Bucket
from mainspring.core.execution.inputs import StepShape, StepTensors, all_decode, moved, view
from mainspring.core.execution.table import StateTable
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models import CausalLM
from mainspring.core.ops import Ops

ProgramKey = tuple[Bucket | None, bool]
"""Bucket, and whether it is of the decode family; (None, False) is the one program for steps of any shape."""

Forwarded = tuple[Tensor, Tensor | None, Tensor | None]
"""What a program returns, hidden_TE, logits_NV and chosen_2N: see `Device.compile`."""


@dataclass(frozen=True, slots=True)
class BucketProgram:
    """A compiled program. A bucket's inputs live in one buffer for ever, so that a captured program finds them."""

    run: Program
    buffer: Tensor | None
    inputs: StepTensors | None


class Programs:
    """Compiled when their shape is first met, which is at warm-up for those that the device cannot do without."""

    def __init__(
        self,
        model: CausalLM,
        device: Device,
        table: StateTable,
        *,
        capabilities: Capabilities,
        ops: Ops,
        kv: KVCache,
        scores: bool = True,
    ) -> None:
        """`scores`: the model has a head here, and is not a stage before the last."""
        self._model = model
        self._device = device
        self._table = table
        self._ops = ops
        self._kv = kv
        self._scores = scores
        self._takes_arguments = capabilities.graphs == "ahead_of_time"
        self._programs: dict[ProgramKey, BucketProgram] = {}

    def run(self, batch: Batch, shape: StepShape, words: Tensor) -> tuple[StepTensors, Forwarded]:
        """Enqueues the program of a step on its integers, which are the first `shape.words` of `words`, pinned int32.

        What it returns may be overwritten when any program runs next. Whoever calls this flushes the device.
        """
        program = self._program((batch.bucket, batch.bucket is not None and all_decode(batch)), shape)
        inputs = self._load(program, words[: shape.words], shape)
        plan = self._device.prepare_attention(inputs.metadata, self._kv)
        return inputs, program.run(inputs, plan)

    def clear(self) -> None:
        """Lets go of all programs and of the memory that they captured."""
        self._programs.clear()

    def _load(self, program: BucketProgram, words: Tensor, shape: StepShape) -> StepTensors:
        """The one copy of a step to the device."""
        if self._takes_arguments:
            return moved(view(words, shape), self._device.torch_device)
        if program.buffer is None or program.inputs is None:
            return view(words.to(self._device.torch_device, non_blocking=True), shape)
        program.buffer.copy_(words, non_blocking=True)
        return program.inputs

    def _program(self, key: ProgramKey, shape: StepShape) -> BucketProgram:
        if key not in self._programs:
            run = self._device.compile(self._forward_and_choose if shape.chooses else self._forward, key[0])
            if key[0] is None or self._takes_arguments:
                self._programs[key] = BucketProgram(run, None, None)
            else:
                buffer = torch.zeros(shape.words, dtype=torch.int32, device=self._device.torch_device)
                self._programs[key] = BucketProgram(run, buffer, view(buffer, shape))
        return self._programs[key]

    def _forward(self, inputs: StepTensors, plan: AttentionPlan) -> Forwarded:
        """What a backend compiles: input ids from the token table, the model, logits [N, V] of the rows that choose.

        The hidden states [T, E] come out too, for prompts whose log-probabilities are wanted.
        """
        tokens_T = self._table.tokens[inputs.token_rows, inputs.positions]
        if inputs.guesses is not None:
            tokens_T = torch.where(inputs.guesses < 0, tokens_T, inputs.guesses)
            # What is chosen behind a guess may look at it as at any token before.
            self._table.append(inputs.token_rows, inputs.positions, tokens_T)
        hidden_TE = self._model.forward(tokens_T, inputs.positions, AttentionStep(self._kv, plan))
        if not self._scores or not inputs.sample_index.shape[0]:
            return hidden_TE, None, None
        return hidden_TE, self._model.logits(hidden_TE[inputs.sample_index]), None

    def _forward_and_choose(self, inputs: StepTensors, plan: AttentionPlan) -> Forwarded:
        """The same, and the tokens: chosen, and put where the next step reads them."""
        hidden_TE, logits_NV, _ = self._forward(inputs, plan)
        if logits_NV is None or inputs.sampling is None:
            return hidden_TE, logits_NV, None
        chosen_2N = self._ops.choose(logits_NV, inputs.sampling, self._table.tokens, inputs.sample_rows)
        return hidden_TE, logits_NV, chosen_2N

"""The default `Executor`: a batch becomes tensors, a program runs them, tokens are chosen and stay on the device.

Nothing here waits for the device before `StepPending.result`. On devices whose ops finish before they return, steps run
in order on one thread of their own instead, so that the host plans the next step meanwhile all the same.

Policy is elsewhere: which tokens to compute is the scheduler's, the integers of a step `inputs.py`, sequences'
state `table.py`, choosing tokens `sampling.py`, putting an executor together `loading.py`.

Legend: T packed tokens, N rows that choose a token, E hidden size, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mainspring.core.backend import (
    AttentionPlan,
    Capabilities,
    Device,
    KVCache,
    KVSpec,
    Program,
    ProgressCallback,
)
from mainspring.core.batch import Batch, Bucket, Buckets
from mainspring.core.errors import DeviceOutOfMemory
from mainspring.core.execution.drafters.behind import Drafting
from mainspring.core.execution.drafters.contract import Drafter
from mainspring.core.execution.inputs import (
    StepShape,
    StepTensors,
    all_decode,
    exact_shape,
    fill,
    moved,
    padded_shape,
    view,
)
from mainspring.core.execution.memory import is_out_of_memory
from mainspring.core.execution.pending import Enqueued, Staging, StepPending
from mainspring.core.execution.sampling import Rows, Selection, adjust
from mainspring.core.execution.scoring import Scoring, plan_scoring, score
from mainspring.core.execution.table import StateTable
from mainspring.core.execution.warmup import (
    Pace,
    drafting_batches,
    dummy_batches,
    one_for_each_count,
    sampling_variants,
    shaped_batches,
    shaped_variants,
)
from mainspring.core.grammar.guides import NO_GUESSES, Guesses, Guiding
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models import CausalLM
from mainspring.core.ops import Ops
from mainspring.core.ops.choose import not_finite
from mainspring.core.processors.stage import process
from mainspring.core.request import SamplingParams

ProgramKey = tuple[Bucket | None, bool]
"""Bucket, and whether it is of the decode family; (None, False) is the one program for steps of any shape."""


Forwarded = tuple[Tensor, Tensor | None, Tensor | None]
"""What a program returns: see `Device.compile`."""


@dataclass(frozen=True, slots=True)
class BucketProgram:
    """A compiled program. A bucket's inputs live in one buffer for ever, so that a captured program finds them."""

    run: Program
    buffer: Tensor | None
    inputs: StepTensors | None


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step whose host work is done."""

    batch: Batch
    shape: StepShape
    staging: Staging
    selection: Selection | None
    num_samples: int
    scoring: Scoring | None
    drafting: Drafting | None


class GraphExecutor:
    """Runs batches of one model on one device, over groups A to F of the contract."""

    def __init__(
        self,
        model: CausalLM,
        device: Device,
        table: StateTable,
        *,
        capabilities: Capabilities,
        ops: Ops,
        spec: KVSpec,
        num_blocks: int,
        kv: KVCache,
        buckets: Buckets | None,
        name: str,
        guides: Guiding | None = None,
        share_masks: Callable[[Tensor], Tensor] | None = None,
        drafter: Drafter | None = None,
        speculates: bool = False,
    ) -> None:
        self._model = model
        self._device = device
        self._table = table
        self._ops = ops
        self._spec = spec
        self._num_blocks = num_blocks
        self._kv = kv
        self._buckets = buckets
        self._name = name
        self._guides = guides
        self._share_masks = share_masks
        self._drafter = drafter
        self._speculates = speculates
        self._static = capabilities.shapes == "bucketed"
        self._ahead_of_time = capabilities.graphs == "ahead_of_time"
        self._copies_later = capabilities.asynchronous and not capabilities.copies_async
        self._chooses = capabilities.samples_in_program
        self._worker = None if capabilities.asynchronous else ThreadPoolExecutor(1, thread_name_prefix="device")
        self._programs: dict[ProgramKey, BucketProgram] = {}
        self._idle: list[Staging] = []
        self._selected: tuple[tuple[int, bytes], Selection] | None = None
        self._pace = Pace()

    # --- what the engine sees ---

    def execute(self, batch: Batch) -> StepPending:
        """Enqueues one step and returns at once."""
        step = self._plan(batch)
        if self._worker is not None:
            return StepPending(self._worker.submit(self._run, step), step.staging, self._idle)
        future: Future[Enqueued | DeviceOutOfMemory] = Future()
        future.set_result(self._run(step))
        return StepPending(future, step.staging, self._idle)

    def kv_spec(self) -> KVSpec:
        """Shape of the KV cache."""
        return self._spec

    def num_blocks(self) -> int:
        """Blocks of the KV cache, block 0 included."""
        return self._num_blocks

    def buckets(self) -> Buckets | None:
        """Shapes that `execute` takes; None for any."""
        return self._buckets

    def device_name(self) -> str:
        """As the vendor prints it."""
        return self._name

    def step_seconds(self, batch: Batch) -> float:
        """A generous bound on the step's duration, scaled from what warm-up measured."""
        tokens = batch.bucket.tokens if batch.bucket is not None else batch.num_tokens
        context = max(map(int.__add__, batch.starts, batch.counts), default=0)
        return self._pace.bound(tokens, context)

    def close(self) -> None:
        """Waits for the step that runs, drops those behind it, and gives the device back."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        self._programs.clear()
        self._device.close()

    def warmup(self, progress: ProgressCallback, max_tokens: int) -> None:
        """Runs every bucket, or one decode and one prefill step of at most `max_tokens`, with inert rows.

        Each program runs twice, since the first run may compile; the second tells the device's pace.
        """
        batches = dummy_batches(self._buckets, self._table, max_tokens)
        for done, batch in enumerate(batches):
            progress("warm-up", done, len(batches))
            self.execute(batch).result()
            began = time.monotonic()
            self.execute(batch).result()
            self._pace = self._pace.seen(batch.num_tokens, time.monotonic() - began)
        if self._drafter is not None:
            drafting = list(drafting_batches(batches, every=self._static))
            for batch in drafting:
                self.execute(batch).result()
            batches = drafting if self._static else batches
        if self._static:
            for batch in shaped_batches(batches, self._table):
                self.execute(batch).result()
            for rows, batch in one_for_each_count(batches).items():
                self._warm_up_choices(batch, (*shaped_variants(rows), *self._table.sampling.processors.variants()))
        else:
            self._warm_up_choices(batches[-1], sampling_variants())
        progress("warm-up", len(batches), len(batches))

    def _warm_up_choices(self, batch: Batch, variants: Iterable[SamplingParams]) -> None:
        nobody = self._table.nobody
        for params in (*variants, SamplingParams()):
            self._table.sampling.admit(nobody, params, seed=0, num_prompt_tokens=0)
            self._table.admissions += 1  # so that nobody keeps what was selected before
            self.execute(batch).result()

    # --- host side: where execute() was called ---

    def _plan(self, batch: Batch) -> PlannedStep:
        self._table.update(batch)
        if batch.bucket is None:
            shape = exact_shape(batch, self._spec.block_size)
        else:
            shape = padded_shape(
                batch.bucket, self._spec.block_size,
                decode=all_decode(batch), chooses=self._chooses, verifies=self._speculates,
            )  # fmt: skip
        staging = self._take_staging(shape)
        chosen = fill(staging.words, batch, self._table, shape)
        selection = self._select(chosen, shape) if self._selects(chosen, shape) else None
        scoring = plan_scoring(batch, self._upload, padded=self._static) if batch.prompt_logprobs else None
        drafting = None
        if self._drafter is not None:
            drafting = Drafting.of(self._drafter, batch, rows=shape.sequences if self._static else None)
        return PlannedStep(batch, shape, staging, selection, len(chosen), scoring, drafting)

    def _selects(self, chosen: Rows, shape: StepShape) -> bool:
        """Whether tokens are chosen behind the program, for want of a choice in it or because some row needs more."""
        return shape.samples > 0 and (not shape.chooses or self._table.sampling.demands(chosen))

    def _select(self, chosen: Rows, shape: StepShape) -> Selection:
        """The step's sampling tensors, those of the step before when rows and requests are the same."""
        if self._static:
            chosen = np.pad(chosen, (0, shape.samples - len(chosen)), constant_values=self._table.nobody)
        key = (self._table.admissions, chosen.tobytes())
        if self._selected is None or self._selected[0] != key:
            selection = self._table.sampling.select(chosen, self._upload, partition=not self._static)
            self._selected = (key, selection)
        return self._selected[1]

    def _take_staging(self, shape: StepShape) -> Staging:
        """Host buffers that no step in flight uses."""
        if self._idle:
            staging = self._idle.pop()
            if staging.fits(shape.words, shape.samples):
                return staging
        # Rounded up, so that a context that grows does not allocate pinned memory at every step.
        words, samples = 1 << shape.words.bit_length(), 1 << shape.samples.bit_length()
        return Staging(self._device.pinned((words,), torch.int32), self._device.pinned((2 * samples,), torch.int32))

    def _upload(self, array: npt.NDArray[np.generic]) -> Tensor:
        host = torch.from_numpy(np.ascontiguousarray(array))
        pinned = self._device.pinned(host.shape, host.dtype)
        pinned.copy_(host)
        return pinned.to(self._device.torch_device, non_blocking=True)

    # --- device side: in the order of execute(), on the worker if there is one ---

    def _run(self, step: PlannedStep) -> Enqueued | DeviceOutOfMemory:
        try:
            with torch.inference_mode():
                return self._enqueue(step)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # Returned without its traceback, whose frames would keep the step's tensors alive.
            return DeviceOutOfMemory(f"a step of {step.batch.num_tokens} tokens did not fit: {error}")

    def _enqueue(self, step: PlannedStep) -> Enqueued:
        batch = step.batch
        if batch.copies:
            self._device.copy_blocks(self._kv, batch.copies)
            if self._drafter is not None:
                self._drafter.copy_blocks(batch.copies)
            self._device.flush()
        self._admit(batch)
        program = self._program((batch.bucket, batch.bucket is not None and all_decode(batch)), step.shape)
        inputs = self._load(program, step)
        plan = self._device.prepare_attention(inputs.metadata, self._kv)
        hidden_TE, logits_NV, chosen_2N = program.run(inputs, plan)
        self._device.flush()
        results = Enqueued(step.num_samples, self._device.event(), copies_later=self._copies_later)
        if self._guides is not None:
            self._guides.catch_up()
        if step.selection is not None:
            self._choose(logits_NV, inputs, step, results)
        elif chosen_2N is not None:
            results.take(chosen_2N, step.staging)
        del logits_NV  # scored in the memory that they leave
        if step.scoring is not None:
            found = []
            for part in score(step.scoring, hidden_TE, self._table.tokens, self._model.logits, self._ops.logprobs):
                self._device.flush()
                found.append(part)
            results.take_prompt_logprobs(step.scoring, found, self._device.pinned)
        if self._drafter is not None and step.drafting is not None:
            # Last, for its programs may overwrite what the step's returned.
            drafts_RK = step.drafting.run(self._drafter, inputs, hidden_TE, self._table.tokens, self._upload)
            self._device.flush()
            results.take_drafts(batch.wanting, step.drafting.plan.places, drafts_RK, self._device.pinned)
        results.event.record()
        return results

    def _admit(self, batch: Batch) -> None:
        if self._guides is not None:
            for admission in batch.admissions:
                said = admission.tokens[admission.num_prompt_tokens :]
                self._guides.admit(admission.row, admission.params.grammar, said)
        if self._static:
            for admission in batch.admissions:
                self._table.write_tokens([admission], self._upload, width=self._table.max_length)
                self._device.flush()
        else:
            self._table.write_tokens(batch.admissions, self._upload)

    def _load(self, program: BucketProgram, step: PlannedStep) -> StepTensors:
        """The one copy of a step to the device."""
        words = step.staging.buffer[: step.shape.words]
        if self._ahead_of_time:
            return moved(view(words, step.shape), self._device.torch_device)
        if program.buffer is None or program.inputs is None:
            return view(words.to(self._device.torch_device, non_blocking=True), step.shape)
        program.buffer.copy_(words, non_blocking=True)
        return program.inputs

    def _program(self, key: ProgramKey, shape: StepShape) -> BucketProgram:
        if key not in self._programs:
            run = self._device.compile(self._forward_and_choose if shape.chooses else self._forward, key[0])
            if key[0] is None or self._ahead_of_time:
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
        if not inputs.sample_index.shape[0]:
            return hidden_TE, None, None
        return hidden_TE, self._model.logits(hidden_TE[inputs.sample_index]), None

    def _forward_and_choose(self, inputs: StepTensors, plan: AttentionPlan) -> Forwarded:
        """The same, and the tokens: chosen, and put where the next step reads them."""
        hidden_TE, logits_NV, _ = self._forward(inputs, plan)
        if logits_NV is None or inputs.sampling is None:
            return hidden_TE, logits_NV, None
        chosen_2N = self._ops.choose(logits_NV, inputs.sampling, self._table.tokens, inputs.sample_rows)
        return hidden_TE, logits_NV, chosen_2N

    def _choose(self, logits_NV: Tensor | None, inputs: StepTensors, step: PlannedStep, results: Enqueued) -> None:
        """Chooses tokens, puts them where the next step reads them, and starts their way to the host."""
        selection, table = step.selection, self._table
        if selection is None or logits_NV is None:
            return
        count = step.shape.samples if self._static else step.num_samples
        logits_NV = logits_NV[:count]
        rows_N, position_N = inputs.sample_rows[:count], inputs.sample_positions[:count]
        history = table.max_length if self._static else min(step.shape.max_kv, table.max_length)
        flush, bad_N = self._device.flush, not_finite(logits_NV).int()
        flush()
        adjusted_NV = adjust(logits_NV, selection, table.tokens, position_N, max_length=history, flush=flush)
        if selection.processing:
            adjusted_NV = process(adjusted_NV, selection.processing, table.tokens, position_N, flush=flush)
            bad_N |= not_finite(adjusted_NV)
        adjusted_NV = self._guided(adjusted_NV, selection, step.batch, results)
        ids_N = self._ops.sample(adjusted_NV, replace(selection.sampling, position=position_N))
        table.append(rows_N, position_N, ids_N)
        chosen_2N = torch.stack((ids_N, bad_N))
        flush()
        results.take(chosen_2N, step.staging)
        if self._guides is not None and selection.guided_rows:
            self._guides.expect(selection.guided_rows, selection.guided_places, results.tokens, _guesses(step.batch))
        if selection.logprob_index is not None:
            asked = selection.logprob_index
            told_NV = logits_NV[asked]
            if selection.logprob_adjusted is not None:
                told_NV = torch.where(selection.logprob_adjusted, adjusted_NV[asked], told_NV)
            found = self._ops.logprobs(told_NV, ids_N[asked], selection.max_logprobs)
            flush()
            results.take_logprobs(selection, found, self._device.pinned)

    def _guided(self, logits_NV: Tensor, selection: Selection, batch: Batch, results: Enqueued) -> Tensor:
        """Logits that leave what the rows' grammars allow. The masks are made while the device runs the program."""
        if self._guides is None or selection.guided_index is None:
            return logits_NV
        masks_GW = self._guides.masks(selection.guided_rows, _guesses(batch))
        results.astray = tuple(
            place
            for place, lost in zip(selection.guided_places, self._guides.lost(selection.guided_rows), strict=True)
            if lost
        )
        mask_GW = self._upload(masks_GW)
        if self._share_masks is not None:
            mask_GW = self._share_masks(mask_GW)
        logits_NV = self._ops.apply_bitmask(logits_NV, selection.guided_index, mask_GW)
        self._device.flush()
        return logits_NV


def _guesses(batch: Batch) -> Guesses:
    """By row of the table."""
    return {batch.rows[draft.index]: draft.tokens for draft in batch.drafts} if batch.drafts else NO_GUESSES

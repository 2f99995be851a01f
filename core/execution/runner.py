"""The default `Executor`: a batch becomes tensors, a program runs them, tokens are chosen and stay on the device.

Nothing here waits for the device before `StepPending.result`. On devices whose ops finish before they return, steps run
in order on one thread of their own instead, so that the host plans the next step meanwhile all the same.

This is the order of a step; its parts are elsewhere: which tokens to compute is the scheduler's, the integers of a step
`inputs.py`, sequences' state `table.py`, what a device runs `programs.py`, choosing tokens behind it `choosing.py`,
results on their way back `pending.py`, putting an executor together `loading.py`.

Legend: T packed tokens, N rows that choose a token, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from mainspring.core.backend import Capabilities, Device, KVCache, KVSpec, ProgressCallback
from mainspring.core.batch import Batch, Buckets
from mainspring.core.errors import DeviceOutOfMemory
from mainspring.core.execution.choosing import Choice, Choosing
from mainspring.core.execution.drafters.behind import Drafting
from mainspring.core.execution.drafters.contract import Drafter
from mainspring.core.execution.inputs import StepShape, StepTensors, all_decode, exact_shape, fill, padded_shape
from mainspring.core.execution.memory import is_out_of_memory
from mainspring.core.execution.pending import Enqueued, Staging, StepPending
from mainspring.core.execution.programs import Programs
from mainspring.core.execution.relay import ONE_STAGE, Relay
from mainspring.core.execution.scoring import Scoring, plan_scoring, score, unscored
from mainspring.core.execution.table import StateTable
from mainspring.core.execution.upload import uploading
from mainspring.core.execution.warmup import Pace, warm_up
from mainspring.core.grammar.guides import Guiding
from mainspring.core.models import CausalLM
from mainspring.core.ops import Ops

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step whose host work is done."""

    batch: Batch
    shape: StepShape
    staging: Staging
    choice: Choice | None
    num_samples: int
    scoring: Scoring | None
    drafting: Drafting | None


@dataclass(slots=True)
class BegunStep:
    """A step whose program the device has. Its tokens may have to wait for those of the step before."""

    step: PlannedStep
    inputs: StepTensors
    hidden: Tensor
    """[T, E]"""
    logits: Tensor | None
    """[N, V]; None where nobody chooses, or another stage does."""
    chosen: Tensor | None
    """[2, N], where the program chose."""


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
        relay: Relay = ONE_STAGE,
    ) -> None:
        self._device = device
        self._table = table
        self._logits = model.logits
        self._logprobs = ops.logprobs
        self._spec = spec
        self._num_blocks = num_blocks
        self._kv = kv
        self._buckets = buckets
        self._name = name
        self._drafter = drafter
        self._speculates = speculates
        self._static = capabilities.shapes == "bucketed"
        self._copies_later = capabilities.asynchronous and not capabilities.copies_async
        self._chooses = capabilities.samples_in_program
        self._worker = None if capabilities.asynchronous else ThreadPoolExecutor(1, thread_name_prefix="device")
        self._relay = relay
        self._programs = Programs(model, device, table, capabilities=capabilities, ops=ops, kv=kv, scores=relay.scores)
        self._choosing = Choosing(
            table, device, capabilities=capabilities, ops=ops, guides=guides, share_masks=share_masks, relay=relay
        )
        self._upload = uploading(device)
        self._idle: list[Staging] = []
        self._begun: tuple[BegunStep, Future[Enqueued | DeviceOutOfMemory]] | None = None
        self._pace = Pace()

    # --- what the engine sees ---

    def execute(self, batch: Batch) -> StepPending:
        """Enqueues one step and returns at once.

        Where masks follow from the tokens of the step before, which are not awaited here, the choice is left until the
        next step comes or this one's result is wanted. The device has a whole program to run until then.
        """
        self._finish_begun()
        step = self._plan(batch)
        if self._worker is not None:
            return StepPending(self._worker.submit(self._run, step), step.staging, self._idle)
        future: Future[Enqueued | DeviceOutOfMemory] = Future()
        begun = self._guarded(step.batch, partial(self._begin, step))
        if isinstance(begun, DeviceOutOfMemory):
            future.set_result(begun)
        else:
            self._begun = begun, future
            if step.choice is None or not self._choosing.awaits_tokens(step.choice):
                self._finish_begun()
        return StepPending(future, step.staging, self._idle, self._finish_begun)

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
        self._pace = warm_up(
            self.execute,
            self._table,
            self._buckets,
            progress,
            max_tokens=max_tokens,
            static=self._static,
            drafts=self._drafter is not None,
            verifies=self._speculates,
        )

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
        choice = self._choosing.plan(batch, chosen, shape)
        scoring = plan_scoring(batch, self._upload, padded=self._static) if batch.prompt_logprobs else None
        drafting = None
        if self._drafter is not None:
            drafting = Drafting.of(self._drafter, batch, rows=shape.sequences if self._static else None)
        return PlannedStep(batch, shape, staging, choice, len(chosen), scoring, drafting)

    def _take_staging(self, shape: StepShape) -> Staging:
        """Host buffers that no step in flight uses."""
        if self._idle:
            staging = self._idle.pop()
            if staging.fits(shape.words, shape.samples):
                return staging
        # Rounded up, so that a context that grows does not allocate pinned memory at every step.
        words, samples = 1 << shape.words.bit_length(), 1 << shape.samples.bit_length()
        return Staging(self._device.pinned((words,), torch.int32), self._device.pinned((2 * samples,), torch.int32))

    # --- device side: in the order of execute(), on the worker if there is one ---

    def _run(self, step: PlannedStep) -> Enqueued | DeviceOutOfMemory:
        return self._guarded(step.batch, lambda: self._finish(self._begin(step)))

    def _finish_begun(self) -> None:
        if self._begun is not None:
            (begun, future), self._begun = self._begun, None
            future.set_result(self._guarded(begun.step.batch, partial(self._finish, begun)))

    def _guarded(self, batch: Batch, work: Callable[[], Outcome]) -> Outcome | DeviceOutOfMemory:
        try:
            with torch.inference_mode():
                return work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # Returned without its traceback, whose frames would keep the step's tensors alive.
            return DeviceOutOfMemory(f"a step of {batch.num_tokens} tokens did not fit: {error}")

    def _begin(self, step: PlannedStep) -> BegunStep:
        self._change(step.batch)
        self._relay.receive(step.shape.tokens)
        inputs, forwarded = self._programs.run(step.batch, step.shape, step.staging.buffer)
        self._device.flush()
        self._relay.send(forwarded[0])
        return BegunStep(step, inputs, *forwarded)

    def _finish(self, begun: BegunStep) -> Enqueued:
        step, inputs, event = begun.step, begun.inputs, self._device.event()
        results = Enqueued(step.num_samples, event, step.staging, copies_later=self._copies_later)
        self._choosing.catch_up()
        if step.choice is not None and begun.logits is not None:
            self._choosing.choose(step.choice, begun.logits, inputs, results)
        elif step.choice is not None:
            self._choosing.hear(step.choice, inputs, results)
        elif begun.chosen is not None:
            results.take(begun.chosen)
        begun.logits = None  # scored in the memory that they leave
        if step.scoring is not None:
            self._score_prompts(step.scoring, begun.hidden, results)
        if self._drafter is not None and step.drafting is not None:
            # Last, for its programs may overwrite what the step's returned.
            drafts_RK = step.drafting.run(self._drafter, inputs, begun.hidden, self._table.tokens, self._upload)
            self._device.flush()
            results.take_drafts(step.batch.wanting, step.drafting.plan.places, drafts_RK, self._device.pinned)
        event.record()
        return results

    def _change(self, batch: Batch) -> None:
        """What changes before the step: blocks are copied, sequences admitted."""
        if batch.copies:
            self._device.copy_blocks(self._kv, batch.copies)
            if self._drafter is not None:
                self._drafter.copy_blocks(batch.copies)
            self._device.flush()
        self._choosing.admit(batch.admissions)
        if self._static:
            for admission in batch.admissions:
                self._table.write_tokens([admission], self._upload, width=self._table.max_length)
                self._device.flush()
        else:
            self._table.write_tokens(batch.admissions, self._upload)

    def _score_prompts(self, scoring: Scoring, hidden_TE: Tensor, results: Enqueued) -> None:
        found, parts = [], unscored(scoring, self._device.torch_device)
        if self._relay.scores:
            parts = score(scoring, hidden_TE, self._table.tokens, self._logits, self._logprobs)
        for part in parts:
            self._device.flush()
            found.append(self._relay.told_all(part))
        results.take_prompt_logprobs(scoring, found, self._device.pinned)

"""A tiny model end to end: the core's executor and scheduler over the device, against an oracle.

What ops cannot show one by one shows here: that a program finds each step's integers, that buckets are honoured and
each is compiled once, that a captured program computes what the eager one does, and that what a freed block held does
not matter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mainspring.core.architectures import read_model_config
from mainspring.core.backend import Capabilities, Device, DeviceInfo, KVCache, KVSpec, Program
from mainspring.core.batch import Batch, Bucket
from mainspring.core.config import EngineConfig
from mainspring.core.conformance import tiny_llama, workload
from mainspring.core.conformance.cases import limits
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import TOLERANCES, Check, Tolerance, Trial, coarsest
from mainspring.core.conformance.workload import Answer
from mainspring.core.errors import StartupError
from mainspring.core.execution.loading import build_executor
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.ops import resolve
from mainspring.core.plan import Plan, draft
from mainspring.core.request import TokenLogprobs

THROUGH = 4
"""Times an op's tolerance that logits may be off: rounding of two layers and a head adds up."""


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """The model, and what its steps show."""
    yield Check("model", partial(_logits, capabilities))
    yield Check("model, freed blocks", partial(_freed_blocks, capabilities))
    yield Check("programs", partial(_programs, capabilities))
    if capabilities.graphs == "capture":
        yield Check("captured equals eager", partial(_captured, capabilities))


class Watched:
    """A device whose `compile` and cache can be looked at. Everything else is the device's own; closing it is not."""

    def __init__(self, device: Device, watch: Callable[[Program, Bucket | None], Program]) -> None:
        self._device = device
        self._watch = watch
        self.kv: KVCache = None
        self.compiled: list[Bucket | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        self.compiled.append(bucket)
        return self._watch(program, bucket)

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> KVCache:
        self.kv = self._device.allocate_kv(spec, num_blocks)
        return self.kv

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Served:
    """A tiny model on a device, ready."""

    executor: GraphExecutor
    plan: Plan
    directory: Path
    mixes: bool

    def answers(
        self,
        *,
        prefix_caching: bool,
        logprobs: int | None = None,
        before: Callable[[Batch], None] = lambda batch: None,
    ) -> list[Answer]:
        """The workload's."""
        scheduler = workload.scheduler_for(self.executor, prefix_caching=prefix_caching, mixes=self.mixes)
        wanted = workload.prompts(self.plan.kv.block_size, tiny_llama.VOCABULARY)
        return workload.serve(self.executor, scheduler, wanted, logprobs=logprobs, before=before)

    @property
    def tolerance(self) -> Tolerance:
        worst = coarsest(self.plan.dtype, self.plan.kv.dtype)
        return Tolerance(
            THROUGH * worst.allowed, f"{worst.reason}; {THROUGH} times that, through two layers and a head"
        )


@contextmanager
def served(device: Watched, capabilities: Capabilities) -> Iterator[Served]:
    """The tiny model behind the core's executor, warmed up. Raises `StartupError` when it cannot be served."""
    with tempfile.TemporaryDirectory(prefix="conformance") as name:
        directory = Path(name)
        tiny_llama.write(directory, min(capabilities.head_dims, default=16))
        size = capabilities.block_sizes[0]
        config = EngineConfig(
            model=name,
            max_sequences=workload.MAX_SEQUENCES,
            max_batch_tokens=workload.max_batch_tokens(size),
            max_length=workload.LENGTH_BLOCKS * size,
            num_blocks=workload.NUM_BLOCKS,
        )
        model = read_model_config(directory)
        info = DeviceInfo(0, "under test", "", device.memory()[1])
        plan = draft(config, model, capabilities, info)
        if plan.reasons:
            raise StartupError(plan.reasons)
        executor = build_executor(
            config,
            model,
            plan,
            cast("Device", device),
            info=info,
            capabilities=capabilities,
            progress=lambda phase, done, total: None,
        )
        try:
            yield Served(executor, plan, directory, capabilities.mixes_prefill_and_decode)
        finally:
            executor.close()


def _logits(capabilities: Capabilities, device: Device) -> Finding:
    """Prompts in chunks, with prefixes from the cache, beside each other: each as if alone."""
    return _against_oracle("model", Watched(device, device.compile), capabilities, prefix_caching=True)


def _freed_blocks(capabilities: Capabilities, device: Device) -> Finding:
    """Blocks hold NaN whenever a sequence gets them."""
    watched = Watched(device, device.compile)
    write = resolve(device.ops()).kv_write

    def poison(batch: Batch, plan: Plan) -> None:
        handed = [block for admission in batch.admissions for block in admission.blocks]
        handed += [block for _, _, block in batch.new_blocks]
        spec, count = plan.kv, _write_tokens(device, capabilities)
        slots = [block * spec.block_size + place for block in handed for place in range(spec.block_size)]
        nothing = torch.full((count, spec.heads, spec.head_dim), float("nan"), dtype=getattr(torch, plan.dtype))
        x_TKD = nothing.to(device.torch_device)
        for low in range(0, len(slots), count):
            part = slots[low : low + count]
            slot_T = torch.tensor([*part, *[-1] * (count - len(part))]).to(device.torch_device)
            for layer in range(spec.layers):
                write(x_TKD, x_TKD, watched.kv, layer, slot_T)
        device.synchronize()

    return _against_oracle("model, freed blocks", watched, capabilities, prefix_caching=False, poison=poison)


def _write_tokens(device: Device, capabilities: Capabilities) -> int:
    """Tokens that are written at once: a bucket's, or a block's."""
    size = capabilities.block_sizes[0]
    buckets = device.buckets(limits(size))
    return size if buckets is None or not buckets.prefill else buckets.prefill[-1].tokens


def _against_oracle(
    subject: str,
    watched: Watched,
    capabilities: Capabilities,
    *,
    prefix_caching: bool,
    poison: Callable[[Batch, Plan], None] | None = None,
) -> Finding:
    trial = Trial(subject, "native")
    with served(watched, capabilities) as tiny:
        logprobs, note = tiny_llama.oracle(tiny.directory)

        def before(batch: Batch) -> None:
            if poison is not None:
                poison(batch, tiny.plan)

        found = tiny.answers(prefix_caching=prefix_caching, logprobs=tiny_llama.VOCABULARY, before=before)
        for answer in found:
            name = f"prompt of {len(answer.prompt)} tokens; {tiny.plan.dtype}"
            if answer.error:
                trial.require(name, False, answer.error)
                continue
            trial.run(name, partial(_pair, answer, logprobs), tiny.tolerance)
    return trial.finding(f"against {note}")


def _pair(answer: Answer, logprobs: tiny_llama.Oracle) -> tuple[Tensor, Tensor]:
    """Log-probabilities of every token at every position that was generated, the device's and the oracle's.

    Choices must be the likeliest by the device's own numbers; those are then compared with the oracle's.
    """
    expected_TV = logprobs([*answer.prompt, *answer.tokens])
    found_TV = torch.stack([_dense(entry) for entry in answer.logprobs])
    wrong = [token for token, row_V in zip(answer.tokens, found_TV, strict=True) if row_V[token] < row_V.max()]
    if wrong:
        raise ValueError(f"tokens {wrong} were chosen greedily and are not the likeliest")
    first = len(answer.prompt) - 1
    return found_TV, expected_TV[first : first + len(answer.tokens)]


def _dense(entry: TokenLogprobs) -> Tensor:
    row_V = torch.full((tiny_llama.VOCABULARY,), float("nan"))
    row_V[torch.tensor(entry.top_ids)] = torch.tensor(entry.top_logprobs)
    return row_V


def _programs(capabilities: Capabilities, device: Device) -> Finding:
    """All is compiled at warm-up, each bucket once; a captured program is not run in Python again.

    But for buckets that are optional (`Buckets.any_shape`), which may be compiled when they are first met.
    Plain requests: how many log-probabilities one may ask for, warm-up cannot know.
    """
    trial = Trial("programs", "native" if type(device).compile is not Device.compile else "default")
    calls: list[Bucket] = []

    def count(program: Program, bucket: Bucket | None) -> Program:
        def counted(*arguments: Any) -> Any:
            if bucket is not None:
                calls.append(bucket)
            return program(*arguments)

        return device.compile(counted, bucket)

    watched = Watched(device, count)
    with served(watched, capabilities) as tiny:
        at_start, built = list(watched.compiled), device.compilations()
        calls.clear()
        for answer in tiny.answers(prefix_caching=True):
            trial.require(f"prompt of {len(answer.prompt)} tokens", not answer.error, answer.error)
        buckets = tiny.executor.buckets()
    warm = len(at_start)
    family = () if buckets is None else (*buckets.decode, *buckets.prefill)
    optional = buckets.prefill if buckets is not None and buckets.any_shape else ()
    strange = [bucket for bucket in watched.compiled if bucket is not None and bucket not in family]
    trial.require("buckets", not strange, f"compiled for {strange}, which are no buckets of it")
    most = len(family) + 1
    trial.require("warm-up", warm <= most, f"{warm} programs for {most} shapes")
    later = sum(bucket not in optional for bucket in watched.compiled[warm:])
    trial.require("after warm-up", later == 0, f"{later} more programs were asked for")
    more = device.compilations() - built
    trial.require("after warm-up", more == 0 or bool(optional), f"the compiler built {more} more programs")
    calls = [bucket for bucket in calls if bucket not in optional]
    replays = capabilities.graphs != "capture" or not calls
    trial.require("captured", replays, f"{len(calls)} steps ran in Python, and graphs are declared captured")
    return trial.finding(f"{warm} programs at warm-up, {later + more} after it")


def _captured(capabilities: Capabilities, device: Device) -> Finding:
    """Each step of a bucket also runs eagerly; writing the same keys and values twice changes nothing."""
    trial = Trial("captured equals eager", "declared")
    tolerance = TOLERANCES[getattr(torch, capabilities.compute_dtypes[0])]

    def both(program: Program, bucket: Bucket | None) -> Program:
        compiled = device.compile(program, bucket)
        if bucket is None:
            return compiled

        def run(*arguments: Any) -> Any:
            captured = tuple(x if x is None else x.clone() for x in compiled(*arguments))
            eager = program(*arguments)
            for mine, theirs in zip(captured, eager, strict=True):
                if mine is not None and theirs is not None:
                    trial.run(str(bucket), partial(_same, mine, theirs), tolerance)
            return captured

        return run

    with served(Watched(device, both), capabilities) as tiny:
        tiny.answers(prefix_caching=True)
    return trial.finding()


def _same(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    return mine, theirs

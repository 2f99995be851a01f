"""Checks of a backend whose executor owns the whole model: no op to compare, but sequences must not disturb each other.

A tiny model's requests run beside each other, in chunks, with prefixes from the cache and blocks that run out; then
each runs alone. Greedy tokens must be the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mainspring.core.architectures import read_model_config
from mainspring.core.backend import Backend, Capabilities, DeviceInfo, Executor, ExecutorRequest
from mainspring.core.config import EngineConfig
from mainspring.core.conformance import tiny_llama, workload
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import Trial
from mainspring.core.errors import BackendError
from mainspring.core.plan import draft


def findings(backend: Backend, info: DeviceInfo, capabilities: Capabilities) -> tuple[Finding, ...]:
    """What can be said of an executor, and that its ops are its own affair."""
    ops = Finding(subject="ops", origin="unchecked", note="not applicable: its executor owns the model")
    try:
        return ops, *_executor(backend, info, capabilities)
    except Exception as error:  # noqa: BLE001  whatever a backend under test raises is a finding about it
        problem = f"raised {type(error).__name__}: {error}"
        return ops, Finding(subject="executor", origin="native", problems=(problem,))


def _executor(backend: Backend, info: DeviceInfo, capabilities: Capabilities) -> Iterator[Finding]:
    answers, shape = Trial("executor", "native"), Trial("executor, what it says", "native")
    mixes = capabilities.mixes_prefill_and_decode
    with _opened(backend, info, capabilities) as executor:
        size = executor.kv_spec().block_size
        shape.require("block size", size == capabilities.block_sizes[0], f"{size} instead of the declared")
        shape.require("blocks", executor.num_blocks() > 1, f"{executor.num_blocks()} blocks serve nobody")
        buckets = executor.buckets()
        for problem in [] if buckets is None else buckets.check():
            shape.refuse("buckets", problem)
        shape.require("name", bool(executor.device_name()), "the device has none")
        wanted = workload.prompts(size, tiny_llama.VOCABULARY)
        together = workload.serve(executor, workload.scheduler_for(executor, prefix_caching=True, mixes=mixes), wanted)
    for answer in together:
        with _opened(backend, info, capabilities) as executor:
            scheduler = workload.scheduler_for(executor, prefix_caching=False, mixes=mixes)
            (alone,) = workload.serve(executor, scheduler, [answer.prompt])
        problem = answer.error or f"{answer.tokens} among others and {alone.tokens} alone"
        answers.require(f"prompt of {len(answer.prompt)} tokens", answer.tokens == alone.tokens, problem)
    yield answers.finding()
    yield shape.finding()


@contextmanager
def _opened(backend: Backend, info: DeviceInfo, capabilities: Capabilities) -> Iterator[Executor]:
    with tempfile.TemporaryDirectory(prefix="conformance") as name:
        tiny_llama.write(Path(name), min(capabilities.head_dims, default=16))
        size = capabilities.block_sizes[0]
        config = EngineConfig(
            model=name,
            backend=backend.name,
            max_sequences=workload.MAX_SEQUENCES,
            max_batch_tokens=workload.max_batch_tokens(size),
            max_length=workload.LENGTH_BLOCKS * size,
            num_blocks=workload.NUM_BLOCKS,
        )
        model = read_model_config(Path(name))
        plan = draft(config, model, capabilities, info)
        executor = backend.executor(ExecutorRequest(model, config, plan.max_length, plan.kv, plan.num_blocks, info))
        if executor is None:
            raise BackendError(f"backend {backend.name!r} overrides `executor` and gives none")
        try:
            yield executor
        finally:
            executor.close()

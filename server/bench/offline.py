"""`bench latency` and `bench throughput`: a model in an engine of this process's own, without HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import msgspec

from mainspring.core.request import SamplingParams
from mainspring.server.bench.prompts import Prompt
from mainspring.server.bench.summary import Distribution, distribution
from mainspring.server.offline import LLM, Output


class LatencyResult(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that starts together, from submission to the last token of its last sequence."""

    batch_size: int
    input_tokens: int
    output_tokens: int
    runs: int
    e2e: Distribution
    seconds_per_token: float
    """Median batch time over output tokens: what one decode step takes, its share of the prefill included."""
    device: str


class ThroughputResult(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that are all there at once, from the first submission to the last token."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    device: str


def measure_latency(
    llm: LLM, batches: Sequence[Sequence[Prompt]], warmup: int, done: Callable[[], None]
) -> LatencyResult:
    """Runs each batch; the first `warmup` of them are not counted. All batches have one size and one length."""
    seconds = []
    for number, batch in enumerate(batches):
        began = perf_counter()
        _generate(llm, batch)
        if number >= warmup:
            seconds.append(perf_counter() - began)
        done()
    e2e = distribution(seconds)
    if e2e is None:
        raise ValueError(f"{len(batches)} runs, all of them for warming up: nothing is left to measure")
    first = batches[0][0]
    return LatencyResult(
        batch_size=len(batches[0]),
        input_tokens=len(first.token_ids),
        output_tokens=first.output_tokens,
        runs=len(seconds),
        e2e=e2e,
        seconds_per_token=e2e.p50 / 1000 / first.output_tokens,
        device=llm.ready.device,
    )


def measure_throughput(llm: LLM, prompts: Sequence[Prompt]) -> ThroughputResult:
    """Runs all prompts at once."""
    began = perf_counter()
    outputs = _generate(llm, prompts)
    seconds = perf_counter() - began
    prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    output_tokens = sum(len(output.token_ids) for output in outputs)
    return ThroughputResult(
        requests=len(outputs),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        seconds=seconds,
        requests_per_second=len(outputs) / seconds,
        output_tokens_per_second=output_tokens / seconds,
        total_tokens_per_second=(prompt_tokens + output_tokens) / seconds,
        device=llm.ready.device,
    )


def _generate(llm: LLM, prompts: Sequence[Prompt]) -> list[Output]:
    params = [SamplingParams(max_tokens=prompt.output_tokens, ignore_eos=True) for prompt in prompts]
    return llm.generate([list(prompt.token_ids) or prompt.text for prompt in prompts], params)

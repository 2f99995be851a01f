"""TGI's numbers about batches, from the engine's reports."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from mainspring.core.errors import ErrorKind
from mainspring.core.metrics import Stats
from mainspring.core.request import Delta, FinishReason, RequestId, StepOutput
from mainspring.server.telemetry.step_metrics import StepMetrics
from tests.support.tgi_rows import tgi

OUT_OF_MEMORY = Delta(RequestId(1), 0, [], FinishReason.ERROR, error=ErrorKind.OUT_OF_MEMORY)


def output(stats: Stats, *deltas: Delta) -> StepOutput:
    return StepOutput(stats.steps, list(deltas), stats, 1.0)


@tgi("2.1 tgi_batch_inference_count", "2.1 tgi_batch_inference_success", "2.1 tgi_batch_inference_failure")
@tgi("2.1 tgi_batch_next_size", "2.1 tgi_batch_inference_duration", "2.1 tgi_batch_forward_duration")
@tgi("2.1 tgi_batch_concat")
def test_steps_are_counted_by_what_they_computed() -> None:
    now = [100.0]
    steps = StepMetrics(lambda: now[0])
    registry = CollectorRegistry()
    registry.register(steps)
    reports = [
        (0.0, output(Stats())),  # a heartbeat
        (0.5, output(Stats(steps=1, running=2, prompt_tokens=9))),
        (0.25, output(Stats(steps=2, running=2, prompt_tokens=9, generated_tokens=2))),
        (9.0, output(Stats(steps=2, running=2, prompt_tokens=9, generated_tokens=2))),  # another
        (0.25, output(Stats(steps=3, running=1, prompt_tokens=9, generated_tokens=3))),
        (0.25, output(Stats(steps=4, running=1, prompt_tokens=12, generated_tokens=3), OUT_OF_MEMORY)),
    ]
    for seconds, report in reports:
        now[0] += seconds
        steps.observe(report)

    def value(name: str, method: str) -> float | None:
        return registry.get_sample_value(name, {"method": method})

    counted = {
        method: [value(f"tgi_batch_inference_{kind}", method) for kind in ("count", "success", "failure")]
        for method in ("prefill", "decode")
    }
    assert counted == {"prefill": [2, 1, 1], "decode": [2, 2, 0]}
    for name in ("tgi_batch_inference_duration", "tgi_batch_forward_duration"):
        assert [value(f"{name}_sum", method) for method in ("prefill", "decode")] == [0.5, 0.5]
    assert registry.get_sample_value("tgi_batch_next_size_sum") == 5
    assert registry.get_sample_value("tgi_batch_next_size_bucket", {"le": "1.0"}) == 1
    assert registry.get_sample_value("tgi_batch_concat", {"reason": "chunking"}) == 1


def test_every_chunk_of_a_prompt_is_prefill() -> None:
    steps = StepMetrics()
    registry = CollectorRegistry()
    registry.register(steps)
    steps.observe(output(Stats(steps=1, running=1, batch_tokens=1, prompt_tokens=5)))
    steps.observe(output(Stats(steps=2, running=2, batch_tokens=2048, prompt_tokens=5005)))
    steps.observe(output(Stats(steps=3, running=2, batch_tokens=2048, prompt_tokens=5005)))
    steps.observe(output(Stats(steps=4, running=2, batch_tokens=2, prompt_tokens=5005)))
    counted = [
        registry.get_sample_value("tgi_batch_inference_count", {"method": method}) for method in ("prefill", "decode")
    ]
    assert counted == [3, 1]


@tgi("2.1 tgi_batch_decode_duration", "2.1 tgi_batch_filter_duration", "2.1 tgi_batch_concat_duration")
def test_what_has_no_counterpart_is_there_by_name() -> None:
    registry = CollectorRegistry()
    registry.register(StepMetrics())
    for name in ("decode", "filter"):
        for method in ("prefill", "decode"):
            assert registry.get_sample_value(f"tgi_batch_{name}_duration_count", {"method": method}) == 0
    assert registry.get_sample_value("tgi_batch_concat_duration_count", {"method": "decode"}) == 0

"""TGI's `tgi_batch_*` numbers, from what the engine says after each of its steps.

A step of this engine computes prompt chunks and single tokens together; one with any prompt token in it counts as
`prefill`. Batches are never filtered or concatenated between steps, so TGI's numbers about that have nothing to tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from mainspring.core.errors import ErrorKind
from mainspring.core.metrics import Stats
from mainspring.core.request import StepOutput

_METHODS = ("prefill", "decode")
_SECONDS = [0.00015 * 1.5**power for power in range(35)]
_SIZES = [float(2**power) for power in range(11)]
_BATCH_FAILURES = (ErrorKind.OUT_OF_MEMORY, ErrorKind.ENGINE_DEAD)


class StepMetrics(Collector):
    """Counts steps as they are reported. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen = Stats()
        self._reported = clock()
        self._counts = {(name, method): 0 for name in _COUNTERS for method in _METHODS}
        self._size = _histogram("tgi_batch_next_size", "Sequences in a step", _SIZES)
        durations = {name: _histogram(name, text, _SECONDS, "method") for name, text in _DURATIONS.items()}
        self._durations = {method: [made.labels(method) for made in durations.values()] for method in _METHODS}
        self._histograms = [self._size, *durations.values()]

    def observe(self, output: StepOutput) -> None:
        """For the engine's client: called with everything that the engine says."""
        now = self._clock()
        seconds = now - self._reported
        stats, before = output.stats, self._seen
        self._reported, self._seen = now, stats
        if stats.steps == before.steps:
            return  # a heartbeat, or a step that has just begun
        method = "prefill" if stats.prompt_tokens > before.prompt_tokens else "decode"
        self._counts["tgi_batch_inference_count", method] += 1
        if any(delta.error in _BATCH_FAILURES for delta in output.deltas):
            self._counts["tgi_batch_inference_failure", method] += 1
            return
        self._counts["tgi_batch_inference_success", method] += 1
        self._size.observe(stats.running)
        for histogram in self._durations[method]:
            histogram.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        for name, text in _COUNTERS.items():
            # TGI's counters lack the `_total` that the client library puts behind every counter's name.
            family = Metric(name, text, "unknown")
            for method in _METHODS:
                family.add_sample(name, {"method": method}, self._counts[name, method])
            yield family
        for histogram in self._histograms:
            yield from histogram.collect()


def _histogram(name: str, text: str, buckets: list[float], *labels: str) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=None)


_COUNTERS = {
    "tgi_batch_inference_count": "Steps, by what they computed",
    "tgi_batch_inference_success": "Steps whose tokens were taken",
    "tgi_batch_inference_failure": "Steps whose requests failed",
}
_DURATIONS = {
    "tgi_batch_inference_duration": "Seconds from one step's result to the next",
    "tgi_batch_forward_duration": "Seconds from one step's result to the next; sampling is part of a step",
}

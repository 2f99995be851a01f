"""TGI's `tgi_batch_*` numbers, from what the engine says after each of its steps.

A step of this engine computes prompt chunks and single tokens together; one with a prompt in it counts as `prefill`.
A sequence joins or leaves when a step is planned, without a pass of its own over the batch, and text is made by the
streams: what TGI timed there exists by name, for the dashboards that ask for it, and stays empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

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
        self._joined = 0
        self._size = _histogram("tgi_batch_next_size", "Sequences in a step", _SIZES)
        durations = [_timed(name, text, _METHODS) for name, text in _DURATIONS.items()]
        self._durations = {method: [made.labels(method) for made in durations] for method in _METHODS}
        unused = [_timed(name, text, methods) for name, (text, methods) in _UNUSED_DURATIONS.items()]
        self._histograms = [self._size, *durations, *unused]

    def observe(self, output: StepOutput) -> None:
        """For the engine's client: called with everything that the engine says."""
        now = self._clock()
        seconds = now - self._reported
        stats, before = output.stats, self._seen
        self._reported, self._seen = now, stats
        if stats.steps == before.steps:
            return  # a heartbeat, or a step that has just begun
        admitted = stats.prompt_tokens > before.prompt_tokens
        self._joined += admitted and before.running > 0
        # Without a prompt in it, a step has at most a token for each sequence.
        method = "prefill" if admitted or stats.batch_tokens > stats.running else "decode"
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
        joined = Metric("tgi_batch_concat", "Steps in which requests joined others that ran", "unknown")
        joined.add_sample("tgi_batch_concat", {"reason": "chunking"}, self._joined)
        yield joined
        for histogram in self._histograms:
            yield from histogram.collect()


def _histogram(name: str, text: str, buckets: list[float], *labels: str) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=None)


def _timed(name: str, text: str, methods: Sequence[str]) -> Histogram:
    histogram = _histogram(name, text, _SECONDS, "method")
    for method in methods:
        histogram.labels(method)  # there from the start, with nothing in it
    return histogram


_COUNTERS = {
    "tgi_batch_inference_count": "Steps, by what they computed",
    "tgi_batch_inference_success": "Steps whose tokens were taken",
    "tgi_batch_inference_failure": "Steps whose requests failed",
}
_DURATIONS = {
    "tgi_batch_inference_duration": "Seconds from one step's result to the next",
    "tgi_batch_forward_duration": "Seconds from one step's result to the next; sampling is part of a step",
}
_UNUSED_DURATIONS = {
    "tgi_batch_decode_duration": ("Empty: text is made by each stream, not by a step", _METHODS),
    "tgi_batch_filter_duration": ("Empty: sequences leave when a step is planned", _METHODS),
    "tgi_batch_concat_duration": ("Empty: sequences join when a step is planned", ("decode",)),
}

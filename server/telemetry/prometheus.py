"""Numbers for Prometheus: TGI's names, and vLLM's names under our prefix (and, by flag, under vLLM's own).

Each `Metrics` has its own registry. Gauges and counters of the engine are read from its last `Stats` when scraped;
histograms are fed by the server. Names: TGI router/src/server.rs; docs.vllm.ai/en/latest/usage/metrics.html.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from mainspring.core.errors import ErrorKind
from mainspring.core.metrics import Stats
from mainspring.core.request import Ready

PREFIX = "mainspring_"
VLLM_PREFIX = "vllm:"

_TGI_SECONDS = [0.00015 * 1.5**power for power in range(35)]
_TOKENS = [float(mantissa * 10**power) for power in range(6) for mantissa in (1, 2, 5)] + [1e6]
_TTFT_SECONDS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80]
_GAP_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5]
_LAG_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 5]
_LATENCY_SECONDS = [0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920]

_TGI_FAILURES = {
    ErrorKind.INVALID: "validation",
    ErrorKind.OVERLOADED: "overloaded",
    ErrorKind.SHUTTING_DOWN: "dropped",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One finished request. Durations in seconds, each from one monotonic clock."""

    prompt_tokens: int
    generated_tokens: int
    max_tokens: int
    total_seconds: float
    validation_seconds: float
    queue_seconds: float
    inference_seconds: float
    decode_seconds: float
    """The part of the inference after the first token."""
    finish_reasons: Sequence[str]
    """One for each sequence."""

    @property
    def seconds_per_output_token(self) -> float | None:
        """Of the tokens after each sequence's first; None where there are no such tokens."""
        following = self.generated_tokens - len(self.finish_reasons)
        return self.decode_seconds * len(self.finish_reasons) / following if following > 0 else None


class TokenGaps:
    """The one histogram that is fed with every token, so without the client library's lock around each number."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_GAP_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one gap. All calls come from the event loop's thread, and so do scrapes."""
        self._counts[bisect_left(_GAP_SECONDS, seconds)] += 1
        self._sum += seconds

    def family(self, name: str, labels: Mapping[str, str]) -> Metric:
        """As of now."""
        family = HistogramMetricFamily(name, "ITL", labels=list(labels))
        bounds = [*(str(float(bound)) for bound in _GAP_SECONDS), "+Inf"]
        buckets = [(bound, float(count)) for bound, count in zip(bounds, accumulate(self._counts), strict=True)]
        family.add_metric(list(labels.values()), buckets, self._sum)
        return family


class Metrics:
    """The server's numbers. `engine` tells the engine's state at each scrape, None while it loads."""

    def __init__(self, model_id: str, engine: Callable[[], tuple[Stats, Ready] | None], vllm_names: bool) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        PlatformCollector(registry=self.registry)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._counts: dict[tuple[str, str], int] = {}
        self._prefixes = [PREFIX, VLLM_PREFIX] if vllm_names else [PREFIX]
        self._model_id = model_id
        self._tgi = {name: self._tgi_histogram(name) for name in _TGI_HISTOGRAMS}
        self._loop_lag = Histogram(
            f"{PREFIX}event_loop_lag_seconds",
            "By how much the server's event loop was late",
            buckets=_LAG_SECONDS,
            registry=self.registry,
        )
        self._gaps = TokenGaps()
        self._shared = {name: self._shared_histograms(name) for name in _SHARED_HISTOGRAMS}
        self.registry.register(_Snapshot(self, engine))

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes (format 0.0.4)."""
        return generate_latest(self.registry)

    def count(self, name: str, label: str = "") -> None:
        """Add one to a counter of `_TGI_COUNTERS` or to `request_success`."""
        self._counts[name, label] = self._counts.get((name, label), 0) + 1

    def failed(self, kind: ErrorKind) -> None:
        """A request ended with an error."""
        self.count("tgi_request_failure", _TGI_FAILURES.get(kind, "generation"))

    def first_token(self, seconds: float) -> None:
        """Time to first token, from the arrival of the request's last byte."""
        self._observe("time_to_first_token_seconds", seconds)

    def token_gap(self, seconds: float) -> None:
        """Time between two deltas of one sequence."""
        self._gaps.observe(seconds)

    def loop_lag(self, seconds: float) -> None:
        """How late the event loop woke somebody."""
        self._loop_lag.observe(seconds)

    def finished(self, record: RequestRecord) -> None:
        """A request ended with a result."""
        self.count("tgi_request_success")
        for reason in record.finish_reasons:
            self.count("request_success", reason)
        per_token = record.inference_seconds / max(record.generated_tokens, 1)
        self._tgi["tgi_request_duration"].observe(record.total_seconds)
        self._tgi["tgi_request_validation_duration"].observe(record.validation_seconds)
        self._tgi["tgi_request_queue_duration"].observe(record.queue_seconds)
        self._tgi["tgi_request_inference_duration"].observe(record.inference_seconds)
        self._tgi["tgi_request_mean_time_per_token_duration"].observe(per_token)
        self._tgi["tgi_request_input_length"].observe(record.prompt_tokens)
        self._tgi["tgi_request_generated_tokens"].observe(record.generated_tokens)
        self._tgi["tgi_request_max_new_tokens"].observe(record.max_tokens)
        self._observe("e2e_request_latency_seconds", record.total_seconds)
        self._observe("request_queue_time_seconds", record.queue_seconds)
        self._observe("request_inference_time_seconds", record.inference_seconds)
        self._observe("request_prompt_tokens", record.prompt_tokens)
        self._observe("request_generation_tokens", record.generated_tokens)
        self._observe("request_prefill_time_seconds", record.inference_seconds - record.decode_seconds)
        self._observe("request_decode_time_seconds", record.decode_seconds)
        if record.seconds_per_output_token is not None:
            self._observe("request_time_per_output_token_seconds", record.seconds_per_output_token)
        self._observe("request_params_max_tokens", record.max_tokens)
        self._observe("request_params_n", len(record.finish_reasons))

    def _observe(self, name: str, value: float) -> None:
        for histogram in self._shared[name]:
            histogram.observe(value)

    def _tgi_histogram(self, name: str) -> Histogram:
        text, buckets = _TGI_HISTOGRAMS[name]
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def _shared_histograms(self, name: str) -> list[Histogram]:
        text, buckets = _SHARED_HISTOGRAMS[name]
        return [
            Histogram(prefix + name, text, ["model_name", "engine"], buckets=buckets, registry=self.registry).labels(
                self._model_id, "0"
            )
            for prefix in self._prefixes
        ]

    def families(self, state: tuple[Stats, Ready] | None) -> Iterable[Metric]:
        """All that is not a histogram, as of now."""
        for name, (text, label) in _TGI_COUNTERS.items():
            yield self._tgi_counter(name, text, label)
        for prefix in self._prefixes:
            yield self._gaps.family(
                prefix + "inter_token_latency_seconds", {"model_name": self._model_id, "engine": "0"}
            )
        if state is None:
            return
        stats, ready = state
        for name, text, gauge in _tgi_gauges(stats, ready):
            yield GaugeMetricFamily(name, text, gauge)
        yield SummaryMetricFamily(
            "tgi_request_skipped_tokens", "Guessed tokens that were right, of a sequence in a step",
            count_value=stats.draft_rows, sum_value=stats.accepted_tokens,
        )  # fmt: skip
        for prefix in self._prefixes:
            yield from self._engine_families(prefix, stats, ready)

    def _tgi_counter(self, name: str, text: str, label: str) -> Metric:
        # TGI's counters lack the `_total` that the client library puts behind every counter's name.
        family = Metric(name, text, "unknown")
        counted = {key[1]: value for key, value in self._counts.items() if key[0] == name}
        for value, number in (counted or ({} if label else {"": 0})).items():
            family.add_sample(name, {label: value} if label else {}, number)
        return family

    def _engine_families(self, prefix: str, stats: Stats, ready: Ready) -> Iterable[Metric]:
        names, labels = ["model_name", "engine"], [self._model_id, "0"]
        usage = stats.blocks_used / max(stats.blocks_total, 1)
        gauges = [
            ("num_requests_running", "Sequences that hold KV blocks", stats.running),
            ("num_requests_waiting", "Sequences that wait for admission", stats.waiting),
            ("kv_cache_usage_perc", "Used share of the KV blocks, 0 to 1", usage),
        ]
        if prefix == VLLM_PREFIX:
            gauges.append(("gpu_cache_usage_perc", "Older name of kv_cache_usage_perc", usage))
        for name, text, gauge in gauges:
            family = GaugeMetricFamily(prefix + name, text, labels=names)
            family.add_metric(labels, gauge)
            yield family
        counters = [
            ("prompt_tokens", "Prompt tokens computed", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated", stats.generated_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.prefix_hits),
            ("num_preemptions", "Sequences that gave their blocks up to others", stats.preemptions),
            ("nan_rows", "Rows of logits that were not finite", stats.nan_rows),
            ("requests_aborted", "Requests ended by their clients", stats.requests_aborted),
            ("spec_decode_num_drafts", "Steps of a sequence that verified guesses", stats.draft_rows),
            ("spec_decode_num_draft_tokens", "Tokens guessed", stats.draft_tokens),
            ("spec_decode_num_accepted_tokens", "Guessed tokens that were right", stats.accepted_tokens),
        ]
        if prefix == VLLM_PREFIX:  # routers and dashboards of its first versions
            counters += [(f"gpu_{name}", text, number) for name, text, number in counters if name in _ONCE_GPU]
        for name, text, number in counters:
            counter = CounterMetricFamily(prefix + name, text, labels=names)
            counter.add_metric(labels, number)
            yield counter
        success = CounterMetricFamily(
            prefix + "request_success", "Sequences that ended well", labels=[*names, "finished_reason"]
        )
        for (name, reason), number in self._counts.items():
            if name == "request_success":
                success.add_metric([*labels, reason], number)
        yield success
        info = GaugeMetricFamily(prefix + "cache_config_info", "KV cache", labels=["block_size", "num_gpu_blocks"])
        info.add_metric([str(ready.block_size), str(ready.num_blocks)], 1)
        yield info


class _Snapshot(Collector):
    """Reads the engine's state once a scrape."""

    def __init__(self, metrics: Metrics, engine: Callable[[], tuple[Stats, Ready] | None]) -> None:
        self._metrics = metrics
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families(self._engine())


def _tgi_gauges(stats: Stats, ready: Ready) -> list[tuple[str, str, int]]:
    return [
        ("tgi_queue_size", "Sequences that wait", stats.waiting),
        ("tgi_batch_current_size", "Sequences that run", stats.running),
        (
            "tgi_batch_current_max_tokens",
            "Tokens in blocks in use",
            stats.blocks_used * ready.block_size,
        ),
        ("tgi_batch_max_total_tokens", "Tokens the KV cache holds", ready.num_blocks * ready.block_size),
    ]


_ONCE_GPU = ("prefix_cache_queries", "prefix_cache_hits")
_TGI_COUNTERS = {
    "tgi_request_count": ("Requests received", ""),
    "tgi_request_success": ("Requests answered", ""),
    "tgi_request_failure": ("Requests that failed, by reason", "err"),
}
_TGI_HISTOGRAMS = {
    "tgi_request_duration": ("Seconds from arrival to the end", _TGI_SECONDS),
    "tgi_request_validation_duration": ("Seconds of templating and tokenising", _TGI_SECONDS),
    "tgi_request_queue_duration": ("Seconds in the queue", _TGI_SECONDS),
    "tgi_request_inference_duration": ("Seconds from the first step to the end", _TGI_SECONDS),
    "tgi_request_mean_time_per_token_duration": ("Seconds of inference a generated token", _TGI_SECONDS),
    "tgi_request_input_length": ("Prompt tokens", _TOKENS),
    "tgi_request_generated_tokens": ("Generated tokens", _TOKENS),
    "tgi_request_max_new_tokens": ("Tokens asked for", _TOKENS),
}
_SHARED_HISTOGRAMS = {
    "time_to_first_token_seconds": ("TTFT", _TTFT_SECONDS),
    "e2e_request_latency_seconds": ("Seconds from arrival to the end", _LATENCY_SECONDS),
    "request_queue_time_seconds": ("Seconds in the queue", _LATENCY_SECONDS),
    "request_inference_time_seconds": ("Seconds from the first step to the end", _LATENCY_SECONDS),
    "request_prompt_tokens": ("Prompt tokens", _TOKENS),
    "request_generation_tokens": ("Generated tokens", _TOKENS),
    "request_prefill_time_seconds": ("Seconds from the first step to the first token", _LATENCY_SECONDS),
    "request_decode_time_seconds": ("Seconds from the first token to the end", _LATENCY_SECONDS),
    "request_time_per_output_token_seconds": ("TPOT", _GAP_SECONDS),
    "request_params_max_tokens": ("Tokens asked for", _TOKENS),
    "request_params_n": ("Sequences asked for", [1.0, 2.0, 5.0, 10.0, 20.0]),
}

"""Outcomes to numbers: percentiles, rates, goodput. Definitions: docs/benchmarking.md."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from mainspring.server.bench.outcome import Outcome


class Distribution(msgspec.Struct, frozen=True):
    """Of one measure over requests (or, of ITL, over all gaps), in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Objectives(msgspec.Struct, frozen=True, omit_defaults=True):
    """Service level objectives in milliseconds; a request is good when it keeps every one that is given."""

    ttft: float = math.inf
    tpot: float = math.inf
    e2e: float = math.inf

    def kept_by(self, outcome: Outcome) -> bool:
        """Whether this request was good. One with an error never is."""
        if outcome.error:
            return False
        measured = (outcome.ttft, outcome.tpot or 0.0, outcome.e2e)
        return all(seconds * 1000 <= limit for seconds, limit in zip(measured, self.limits, strict=True))

    @property
    def limits(self) -> tuple[float, float, float]:
        """In the order of the fields."""
        return self.ttft, self.tpot, self.e2e


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one load against one server."""

    requests: int
    completed: int
    seconds: float
    """From the first request that was due to the end of the last answer."""
    requests_per_second: float
    """Completed ones."""
    output_tokens_per_second: float
    total_tokens_per_second: float
    """Prompt tokens too."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens from the server's prefix cache, where it tells them."""
    output_tokens: int
    tokens_per_event: float
    """Above 1 where the server merges tokens; ITL is then the time between merged ones."""
    counted: bool
    """Whether every number of tokens is the server's own."""
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None
    goodput: float | None
    """Requests a second that kept the objectives; None where none were given."""
    good_share: float | None
    """Of all requests, those with errors among them."""
    latest_send: float
    """Milliseconds by which the client sent its latest request after it was due; above a few it is the limit."""
    errors: dict[str, int]


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the nearest two of the sorted values, as numpy and most peers do."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    lower = math.floor(place)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (place - lower)


def distribution(seconds: Sequence[float]) -> Distribution | None:
    """None of nothing."""
    if not seconds:
        return None
    milliseconds = [1000 * value for value in seconds]
    return Distribution(
        mean=math.fsum(milliseconds) / len(milliseconds),
        p50=percentile(milliseconds, 0.50),
        p90=percentile(milliseconds, 0.90),
        p99=percentile(milliseconds, 0.99),
        max=max(milliseconds),
    )


def summarize(outcomes: Sequence[Outcome], objectives: Objectives) -> Summary:
    """The numbers of a run with at least one request."""
    completed = [outcome for outcome in outcomes if not outcome.error]
    seconds = max(outcome.ended for outcome in outcomes) - min(outcome.due for outcome in outcomes)
    prompt_tokens = sum(outcome.prompt_tokens for outcome in completed)
    output_tokens = sum(outcome.output_tokens for outcome in completed)
    num_events = sum(len(outcome.arrivals) for outcome in completed)
    good = None if objectives == Objectives() else sum(map(objectives.kept_by, outcomes))
    return Summary(
        requests=len(outcomes),
        completed=len(completed),
        seconds=seconds,
        requests_per_second=len(completed) / seconds,
        output_tokens_per_second=output_tokens / seconds,
        total_tokens_per_second=(prompt_tokens + output_tokens) / seconds,
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(outcome.cached_tokens for outcome in completed),
        output_tokens=output_tokens,
        tokens_per_event=output_tokens / max(num_events, 1),
        counted=all(outcome.counted for outcome in completed),
        ttft=distribution([outcome.ttft for outcome in completed]),
        tpot=distribution([tpot for outcome in completed if (tpot := outcome.tpot) is not None]),
        itl=distribution([gap for outcome in completed for gap in outcome.gaps]),
        e2e=distribution([outcome.e2e for outcome in completed]),
        goodput=None if good is None else good / seconds,
        good_share=None if good is None else good / len(outcomes),
        latest_send=max(1000 * (outcome.sent - outcome.due) for outcome in outcomes),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
    )

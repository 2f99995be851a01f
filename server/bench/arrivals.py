"""When requests are sent: an open loop, in which a slow server does not slow its load down."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second. Infinite ones come all at once."""

    begin: float = math.inf
    end: float = math.inf
    """Another than `begin` is a ramp: the rate changes evenly in time until the last request."""

    def __post_init__(self) -> None:
        infinite = math.isinf(self.begin) or math.isinf(self.end)
        if not (self.begin > 0 and self.end > 0) or (infinite and self.begin != self.end):
            raise ValueError(f"{self} requests a second; rates are above 0, a ramp's finite, and inf is all at once")

    @classmethod
    def parse(cls, text: str) -> Rate:
        """`4`, `inf`, or a ramp: `1:16`. Raises ValueError."""
        begin, _, end = text.partition(":")
        return cls(float(begin), float(end or begin))

    def __str__(self) -> str:
        if math.isinf(self.begin):
            return "all at once"
        return f"{self.begin:g}/s" if self.begin == self.end else f"{self.begin:g} to {self.end:g}/s"


def arrival_times(count: int, rate: Rate, seed: int) -> list[float]:
    """Seconds from the start at which each of `count` requests is due: a Poisson process.

    The same seed gives the same times, so that peers meet the same load.
    """
    if math.isinf(rate.begin):
        return [0.0] * count
    draws = random.Random(seed)  # noqa: S311  a load, no secret
    growth = (rate.end**2 - rate.begin**2) / (2 * count)
    times, expected = [], 0.0
    for _ in range(count):
        # When so many are expected: the integral begin * t + growth / 2 * t^2, solved for t.
        times.append(2 * expected / (rate.begin + math.sqrt(max(rate.begin**2 + 2 * growth * expected, 0.0))))
        expected += draws.expovariate(1.0)
    return times

"""When requests are sent: an open loop, in which a slow server does not slow its load down."""

from __future__ import annotations

import math
import random


def arrival_times(count: int, rate: float, seed: int) -> list[float]:
    """Seconds from the start at which each of `count` requests is due: a Poisson process of `rate` requests a second.

    An infinite rate sends all at once. The same seed gives the same times, so that peers meet the same load.
    """
    if rate <= 0:
        raise ValueError(f"a rate of {rate} requests a second; it must be above 0, or inf for all at once")
    if math.isinf(rate):
        return [0.0] * count
    draws = random.Random(seed)  # noqa: S311  a load, no secret
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += draws.expovariate(rate)
    return times

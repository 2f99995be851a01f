"""A device made of arithmetic: no weights, a latency model, injected faults. For tests, load tests and what-ifs.

It answers every prompt with tokens that depend on the prompt alone, at the speed of a machine of your choice, and gives
wrong tokens as soon as the engine's plan is wrong. `device.py` lists machines and options.
"""

from __future__ import annotations

from mainspring.backends.sim.device import SimBackend
from mainspring.core.plugins import hookimpl


@hookimpl
def mainspring_backends() -> list[SimBackend]:
    return [SimBackend()]

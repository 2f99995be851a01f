"""Faults on order: each strikes at a step or a token that the option names, so that a test can wait for it.

    fault=slow@120:5.0,nan@777,oom@300,crash@500,hang@900,segfault@1000

`slow` adds seconds to a step, legally: the step's bound grows with it. `nan` is about every sequence whose prompt holds
that token id. The others strike when the result of a step with that number (`Batch.step`) is awaited.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

from mainspring.core.errors import BackendError, DeviceOutOfMemory, unknown

_AT_STEP = ("crash", "hang", "oom", "segfault")


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, and when."""

    slow: dict[int, float] = field(default_factory=dict)
    """Step to additional seconds."""
    nan_tokens: frozenset[int] = frozenset()
    at_step: dict[int, str] = field(default_factory=dict)

    def loses(self, step: int) -> bool:
        """Whether the step's results are lost, though the device lives on."""
        return self.at_step.get(step) == "oom"

    def strike(self, step: int) -> None:
        """What awaiting the step's result does besides."""
        match self.at_step.get(step):
            case "oom":
                raise DeviceOutOfMemory(f"step {step} is out of memory, as ordered")
            case "crash":
                raise RuntimeError(f"step {step} crashes, as ordered")
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                while True:
                    time.sleep(3600)


def parse_faults(text: str) -> Faults:
    """Faults from the option's value. Raises `BackendError` for one that it does not know or cannot read."""
    slow: dict[int, float] = {}
    nan_tokens: set[int] = set()
    at_step: dict[int, str] = {}
    for order in filter(None, text.split(",")):
        name, _, rest = order.strip().partition("@")
        where, _, amount = rest.partition(":")
        if name not in (*_AT_STEP, "slow", "nan"):
            raise BackendError(unknown("fault", name, (*_AT_STEP, "slow", "nan")))
        try:
            number = int(where)
            if name == "slow":
                slow[number] = float(amount)
            elif name == "nan":
                nan_tokens.add(number)
            else:
                at_step[number] = name
        except ValueError:
            raise BackendError(
                f"fault {order!r} cannot be read; it is a name, @ and a number, as in crash@500 or slow@120:5.0"
            ) from None
    return Faults(slow, frozenset(nan_tokens), at_step)

"""How one request ended, in numbers and names: what the log and the traces tell, never its content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mainspring.core.errors import ErrorKind
from mainspring.core.request import SamplingParams
from mainspring.server.telemetry.logs import event


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A request that has ended, one way or another. Instants are monotonic seconds; 0 is one that never came."""

    model: str
    params: SamplingParams | None
    """None for a request that ended before it was understood."""
    choices: int
    """Sequences that were asked for."""
    received: float
    first_token: float
    ended: float
    validation_seconds: float
    queue_seconds: float
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    finish_reasons: Sequence[str]
    error: ErrorKind | None
    aborted: bool = False
    """The client left or took nothing."""

    @property
    def failure(self) -> str | None:
        """A word for why there is no result; None where there is one."""
        if self.aborted:
            return "aborted"
        return None if self.error is None else self.error.value

    def log(self) -> None:
        """One line."""
        name = "request finished"
        if self.failure is not None:
            name = "request aborted" if self.aborted else "request failed"
        event(
            name,
            model=self.model,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.generated_tokens,
            cached_tokens=self.cached_tokens,
            queue_ms=_milliseconds(self.queue_seconds),
            ttft_ms=_milliseconds(self.first_token - self.received) if self.first_token else None,
            e2e_ms=_milliseconds(self.ended - self.received),
            finish_reason=",".join(self.finish_reasons) or None,
            reason=self.failure,
        )


class Spans(Protocol):
    """Who is told of every request that has ended."""

    def record(self, outcome: Outcome) -> None: ...


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)

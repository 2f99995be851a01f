"""What became of one request of a load, as its client saw it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """Times in seconds of one monotonic clock."""

    due: float
    """When the request was to be sent. All durations count from here, so a client that is late hides nothing."""
    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    """When each event that brought tokens arrived."""
    ended: float = 0.0
    """When the answer was complete."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, those that the server had computed before; 0 also where it does not tell."""
    counted: bool = False
    """Whether the server told the numbers of tokens; else an event counts as one token and the prompt as none."""
    error: str = ""
    """Why there is no whole answer; empty when there is one."""

    @property
    def ttft(self) -> float:
        """Time to first token. Only for requests with a token."""
        return self.arrivals[0] - self.due

    @property
    def e2e(self) -> float:
        """From when it was due to the end of its answer."""
        return self.ended - self.due

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None for fewer than two tokens."""
        if self.output_tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Between one event with tokens and the next: inter-token latencies."""
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]

"""Reads one answer: thoughts first, then words and calls, each by the machine of the model's format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mainspring.server.text.machine import Arguments, CallStart, Event, Text, TextMachine, joined


class AnswerReader:
    """Up to two machines in a row: what the first says as words, the second reads."""

    def __init__(self, machines: Sequence[TextMachine], *, parallel: bool = True) -> None:
        self._machines = tuple(machines)
        self._parallel = parallel
        self._num_calls = 0

    def push(self, text: str) -> list[Event]:
        """What new text makes certain."""
        return self._kept(self._through(0, [Text(text)], ended=False))

    def finish(self) -> list[Event]:
        """What was held back, now that the answer is over."""
        return self._kept(self._through(0, [], ended=True))

    def _through(self, number: int, events: Iterable[Event], *, ended: bool) -> list[Event]:
        if number == len(self._machines):
            return joined(list(events))
        machine, found = self._machines[number], list[Event]()
        for event in events:
            found += machine.push(event.text) if isinstance(event, Text) else [event]
        if ended:
            found += machine.finish()
        return self._through(number + 1, found, ended=ended)

    def _kept(self, events: list[Event]) -> list[Event]:
        """Without calls after the first, where the request wants one at a time."""
        kept: list[Event] = []
        for event in events:
            self._num_calls += isinstance(event, CallStart)
            if self._parallel or self._num_calls < 2 or not isinstance(event, (CallStart, Arguments)):
                kept.append(event)
        return kept

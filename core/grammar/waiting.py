"""Requests whose grammars are being read: they wait here, before the scheduler knows of them, so that no step waits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.grammar.protocol import GrammarError
from mainspring.core.grammar.store import Grammars
from mainspring.core.request import Cancel, RequestId, Submit


@dataclass(slots=True)
class _Waiting:
    submit: Submit
    reading: Future[None]
    cancels: list[Cancel] = field(default_factory=list)


class GrammarQueue:
    """In the order of their arrival, but whose grammar is read goes first."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._waiting: dict[RequestId, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, submit: Submit) -> bool:
        """Whether the request has to wait; False for one without a grammar. Raises `RequestError`."""
        grammar = submit.params.grammar
        if grammar is None:
            return False
        if not self._grammars.followed:
            raise RequestError(ErrorKind.INVALID, "this engine follows no grammars")
        self._waiting[submit.request_id] = _Waiting(submit, self._grammars.prepare(grammar))
        return True

    def cancel(self, cancel: Cancel) -> bool:
        """Whether the request waits here; it is cancelled when it comes out."""
        waiting = self._waiting.get(cancel.request_id)
        if waiting is not None:
            waiting.cancels.append(cancel)
        return waiting is not None

    def ready(self) -> Iterator[tuple[Submit, RequestError | None, list[Cancel]]]:
        """Requests that need to wait no longer: why they cannot be served, and what was cancelled of them meanwhile."""
        for request_id in [request_id for request_id, waiting in self._waiting.items() if waiting.reading.done()]:
            waiting = self._waiting.pop(request_id)
            problem = waiting.reading.exception()
            if problem is not None and not isinstance(problem, GrammarError):
                raise problem
            yield (
                waiting.submit,
                None if problem is None else RequestError(ErrorKind.INVALID, f"the grammar cannot be read: {problem}"),
                waiting.cancels,
            )

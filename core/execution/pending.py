"""Steps in flight: the host buffers that they own and the way from the device's results to a `StepResult`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mainspring.core.backend import Event
from mainspring.core.batch import PromptRange, StepResult
from mainspring.core.errors import DeviceOutOfMemory
from mainspring.core.execution.sampling import Selection
from mainspring.core.execution.scoring import Found, Scoring
from mainspring.core.request import TokenLogprobs

Pinned = Callable[[Sequence[int], torch.dtype], Tensor]


class Staging:
    """Host memory of one step: its inputs on their way to the device, and its tokens on their way back."""

    def __init__(self, buffer: Tensor, results: Tensor) -> None:
        self.buffer = buffer
        """int32, pinned."""
        self.words: npt.NDArray[np.int32] = buffer.numpy()
        """The same memory."""
        self.results = results
        """int32, pinned: token ids of N rows, then whether each row's logits were bad. Flat, because a copy is only
        asynchronous when both its sides are contiguous."""

    def fits(self, words: int, samples: int) -> bool:
        """Whether a step of this size has room here."""
        return words <= self.buffer.numel() and 2 * samples <= self.results.numel()


class Enqueued:
    """What a step that was given to the device will yield once its event has come."""

    def __init__(self, num_samples: int, event: Event, staging: Staging, *, copies_later: bool = False) -> None:
        self.event = event
        self._num_samples = num_samples
        self._staging = staging
        self._copies_later = copies_later
        self._results: Tensor | None = None
        self._logprobs: _Logprobs | None = None
        self._prompt_logprobs: _Logprobs | None = None
        self._ranges: Sequence[PromptRange] = ()
        self._drafts: Tensor | None = None
        self._drafted: Sequence[int] = ()
        self._wanting: Sequence[int] = ()
        self.astray: tuple[int, ...] = ()
        """For `StepResult.astray`."""

    def take(self, chosen_2N: Tensor) -> None:
        """Starts the copy of ids and bad rows, [2, N] int32, to the host; `copies_later` leaves it to `collect`."""
        if self._copies_later:
            self._results = chosen_2N
            return
        self._results = self._staging.results[: chosen_2N.numel()].view(chosen_2N.shape)
        self._results.copy_(chosen_2N, non_blocking=True)

    def take_logprobs(self, selection: Selection, found: Found, pinned: Pinned) -> None:
        """Starts the copy of what the op `logprobs` gave for `selection.logprob_rows`."""
        parts = (self._to_host(found, pinned),)
        self._logprobs = _Logprobs(selection.logprob_rows, selection.logprob_counts, parts)

    def take_prompt_logprobs(self, scoring: Scoring, found: Sequence[Found], pinned: Pinned) -> None:
        """Starts the copies of what `score` gave, padding included."""
        self._ranges = scoring.ranges
        counts = [asked.top for asked in scoring.ranges for _ in range(asked.count)]
        parts = [self._to_host(part, pinned) for part in found]
        self._prompt_logprobs = _Logprobs(range(len(counts)), counts, parts)

    def take_drafts(
        self, wanting: Sequence[int], places: Sequence[int], drafts_RK: Tensor | None, pinned: Pinned
    ) -> None:
        """Starts the copy of what a drafter guessed for `places`, which are among `wanting`."""
        self._wanting, self._drafted = wanting, places
        if drafts_RK is None or self._copies_later:
            self._drafts = drafts_RK
            return
        self._drafts = pinned(drafts_RK.shape, drafts_RK.dtype)
        self._drafts.copy_(drafts_RK, non_blocking=True)

    def _to_host(self, found: Found, pinned: Pinned) -> Found:
        if self._copies_later:
            return found
        chosen, top_ids, top = (pinned(tensor.shape, tensor.dtype) for tensor in found)
        hosts = (chosen, top_ids, top)
        for host, tensor in zip(hosts, found, strict=True):
            host.copy_(tensor, non_blocking=True)
        return hosts

    def tokens(self) -> list[int]:
        """Waits for the device and reads the tokens alone; may be called again."""
        self.event.synchronize()
        return [] if self._results is None else self._results[0, : self._num_samples].tolist()

    def collect(self) -> StepResult:
        """Waits for the device and reads the results."""
        self.event.synchronize()
        result = self._collect_chosen()
        if self._prompt_logprobs is not None:
            entries = (entry for _, entry in self._prompt_logprobs.entries())
            result.prompt_logprobs = [list(islice(entries, asked.count)) for asked in self._ranges]
        if self._wanting:
            lines = [] if self._drafts is None else self._drafts.tolist()
            found = dict(zip(self._drafted, lines, strict=False))  # padding may stand at the end
            result.drafts = [found.get(place, []) for place in self._wanting]
        return result

    def _collect_chosen(self) -> StepResult:
        if self._results is None:
            return StepResult([])
        tokens, flags = (row[: self._num_samples] for row in self._results.tolist())
        bad = tuple(index for index, flag in enumerate(flags) if flag)
        if self._logprobs is None:
            return StepResult(tokens, None, bad, astray=self.astray)
        logprobs: list[TokenLogprobs | None] = [None] * len(tokens)
        for row, entry in self._logprobs.entries():
            if row < len(tokens) and row not in bad:
                logprobs[row] = entry
        return StepResult(tokens, logprobs, bad, astray=self.astray)


@dataclass(frozen=True, slots=True)
class _Logprobs:
    rows: Sequence[int]
    counts: Sequence[int]
    parts: Sequence[Found]
    """What the op gave, in pieces; padding may stand at the end."""

    def entries(self) -> Iterator[tuple[int, TokenLogprobs]]:
        """(row, its log-probabilities) of the rows that asked."""
        columns = [chain.from_iterable(map(Tensor.tolist, pieces)) for pieces in zip(*self.parts, strict=True)]
        for row, count, chosen, ids, top in zip(self.rows, self.counts, *columns, strict=False):
            if count >= 0:
                yield row, TokenLogprobs(chosen, ids[:count], top[:count])


class StepPending:
    """The `Pending` of the core's executor."""

    def __init__(
        self,
        future: Future[Enqueued | DeviceOutOfMemory],
        staging: Staging,
        idle: list[Staging],
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """`finish` enqueues what was left of the step, if anything."""
        self._future = future
        self._finish = finish
        self._staging = staging
        self._idle = idle
        self._result: StepResult | None = None

    def done(self) -> bool:
        """Whether `result` would return at once."""
        if not self._future.done():
            return False
        if self._future.cancelled() or self._future.exception() is not None:
            return True
        outcome = self._future.result()
        return isinstance(outcome, DeviceOutOfMemory) or outcome.event.query()

    def result(self) -> StepResult:
        """Waits for the step; may be called again. Raises `DeviceOutOfMemory` when it did not fit."""
        if self._result is None:
            if not self._future.done():
                self._finish()
            outcome = self._future.result()
            if isinstance(outcome, DeviceOutOfMemory):
                raise outcome
            self._result = outcome.collect()
            self._idle.append(self._staging)
        return self._result

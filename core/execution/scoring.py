"""Log-probabilities of prompts on the device: a few rows of logits at a time, never [prompt, vocabulary].

Legend: T packed tokens of a step, M tokens to score in it, C of them at a time (`SCORED_ROWS`), E hidden size, V
vocabulary, k likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from mainspring.core.batch import Batch, PromptRange
from mainspring.core.execution.sampling import likeliest
from mainspring.core.execution.upload import Upload
from mainspring.core.plan import SCORED_ROWS

Found = tuple[Tensor, Tensor, Tensor]
"""What the op `logprobs` gives."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Which tokens of a step's prompts are scored, and from where."""

    ranges: Sequence[PromptRange]
    places: Sequence[Tensor]
    """[3, C] int64 each, on the device: the packed token whose hidden state tells; table row and position of the token.
    """
    top: int
    """k: the most that any range asks for, rounded up so that few shapes occur."""


def plan_scoring(batch: Batch, upload: Upload, *, padded: bool) -> Scoring:
    """The integers of a batch whose `prompt_logprobs` is not empty; `padded` fills M up to a multiple of C."""
    first_token = [past - count for past, count in zip(accumulate(batch.counts), batch.counts, strict=True)]
    columns = []
    for asked in batch.prompt_logprobs:
        places = np.arange(asked.start, asked.start + asked.count, dtype=np.int64)
        told_by = places - 1 - batch.starts[asked.index] + first_token[asked.index]
        columns.append(np.stack([told_by, np.full_like(places, batch.rows[asked.index]), places]))
    packed = np.concatenate(columns, axis=1)
    if padded:
        packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % SCORED_ROWS)))
    most = max(asked.top for asked in batch.prompt_logprobs)
    pieces = [upload(packed[:, begin : begin + SCORED_ROWS]) for begin in range(0, packed.shape[1], SCORED_ROWS)]
    return Scoring(batch.prompt_logprobs, pieces, likeliest(most, padded=padded))


def score(
    scoring: Scoring,
    hidden_TE: Tensor,
    tokens: Tensor,
    logits: Callable[[Tensor], Tensor],
    logprobs: Callable[[Tensor, Tensor, int], Found],
) -> Iterator[Found]:
    """(of C of the prompt's tokens [C], likeliest ids [C, k], theirs [C, k]). `tokens` is the token table."""
    for told_by_C, rows_C, places_C in scoring.places:
        yield logprobs(logits(hidden_TE[told_by_C]), tokens[rows_C, places_C], scoring.top)


def unscored(scoring: Scoring, torch_device: str) -> Iterator[Found]:
    """Memory for what `score` gives on another rank."""
    for places_3C in scoring.places:
        yield blank(places_3C.shape[1], scoring.top, torch_device)


def blank(count: int, top: int, torch_device: str) -> Found:
    """Memory for what the op `logprobs` gives on another rank."""
    return (
        torch.zeros(count, dtype=torch.float32, device=torch_device),
        torch.zeros((count, top), dtype=torch.int32, device=torch_device),
        torch.zeros((count, top), dtype=torch.float32, device=torch_device),
    )

"""How far the last drafts were right, on the device, where what comes next is drafted from.

The scheduler finds the same when the step's tokens reach the host. A drafter cannot wait for that.

Legend: T tokens of a step, N choices, R rows that draft, D most drafts of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of a row behind each of which a choice was made: its last known token, and its drafts."""

    token: int
    """Which of the T tokens is the first."""
    choice: int
    """Which of the N choices follows it."""
    drafts: Sequence[int]


def packed(spans: Sequence[Span]) -> npt.NDArray[np.int64]:
    """[R, 2 + D]: first token and choice of each span, and its drafts, filled up with what nobody chooses."""
    most = max((len(span.drafts) for span in spans), default=0)
    words = np.full((len(spans), 2 + most), -1, dtype=np.int64)
    for place, span in enumerate(spans):
        words[place, :2] = span.token, span.choice
        words[place, 2 : 2 + len(span.drafts)] = span.drafts
    return words


def last_good(packed_RW: Tensor, chosen_N: Tensor) -> Tensor:
    """[R] int64: which of the T tokens is the last that is right, given what was chosen behind each."""
    token_R, choice_R, drafts_RD = packed_RW[:, 0], packed_RW[:, 1], packed_RW[:, 2:]
    most = drafts_RD.shape[1]
    if not most:
        return token_R
    places_RD = choice_R[:, None] + torch.arange(most, device=packed_RW.device)
    # A span that ends with the step's last choice has fewer choices behind it than others have drafts.
    chosen_RD = chosen_N[places_RD.clamp(max=len(chosen_N) - 1)]
    return token_R + (chosen_RD == drafts_RD).long().cumprod(dim=1).sum(dim=1)

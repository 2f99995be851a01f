"""Penalties on tokens that were said, counted in the token table at each step: no [sequences, vocabulary] state exists.

Legend: N rows that choose a token in a step, P those with a penalty, V vocabulary, L tokens of history.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """Of the P rows that have any."""

    rows: Tensor
    """[P] int64: which of the N."""
    table_rows: Tensor
    """[P] int64: their rows in the token table."""
    num_prompt_tokens: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    """[P] each."""


def penalise(logits_PV: Tensor, history_PL: Tensor, lengths_P: Tensor, penalties: Penalties) -> Tensor:
    """Repetition penalty over prompt and output, frequency and presence penalties over the output. Overwrites logits.

    Repetition: Keskar et al. 2019. Frequency and presence: OpenAI's API reference, `logit - count * frequency -
    (count > 0) * presence`, with absolute counts.
    """
    place_L = torch.arange(history_PL.shape[1], device=history_PL.device)
    history_PL = history_PL.long()
    said_PL = place_L < lengths_P[:, None]
    output_PL = said_PL & (place_L >= penalties.num_prompt_tokens[:, None])
    counts_PV = torch.zeros_like(logits_PV).scatter_add_(1, history_PL, said_PL.float())
    repetition_P1 = penalties.repetition[:, None]
    scaled_PV = torch.where(logits_PV < 0, logits_PV * repetition_P1, logits_PV / repetition_P1)
    logits_PV = torch.where(counts_PV > 0, scaled_PV, logits_PV)
    counts_PV.zero_().scatter_add_(1, history_PL, output_PL.float())
    logits_PV.sub_(counts_PV * penalties.frequency[:, None])
    return logits_PV.sub_((counts_PV > 0) * penalties.presence[:, None])

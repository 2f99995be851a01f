"""Draws through every stage of sampling against exact probabilities: chi-square on a tiny vocabulary, fixed seeds.

The probabilities are worked out in plain numbers from each stage's definition, one token after another.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mainspring.core.execution.sampling import SamplingTable, adjust
from mainspring.core.ops.sample import sample
from mainspring.core.processors.loading import load_processors
from mainspring.core.processors.stage import process
from mainspring.core.processors.watermark import DEFAULT_KEY
from mainspring.core.request import LogitsProcessing, SamplingParams
from mainspring.server.watermark import is_green
from tests.support import chi_square

LOGITS = (1.3, -0.4, 0.9, 2.1, -1.7, 0.2, 1.6, -0.8, 0.5, -2.4)
PROMPT, OUTPUT = [3, 6], [0, 0, 8]
END = 6
DRAWS = 20_000
LEAST_P = 0.01


def drawn(params: SamplingParams, *, partition: bool) -> Counter[int]:
    """What as many requests draw that differ in their seeds alone."""
    table = SamplingTable(DRAWS, len(LOGITS), (END,), processors=load_processors({}, len(LOGITS)))
    for row in range(DRAWS):
        table.admit(row, params, seed=1_000_003 * row + 17, num_prompt_tokens=len(PROMPT))
    selection = table.select(np.arange(DRAWS), torch.from_numpy, partition=partition)
    said = torch.tensor([*PROMPT, *OUTPUT], dtype=torch.int32).expand(DRAWS, -1)
    position = torch.full((DRAWS,), said.shape[1], dtype=torch.int32)
    logits = torch.tensor(LOGITS).expand(DRAWS, -1)
    logits = adjust(logits, selection, said, position, max_length=said.shape[1])
    logits = process(logits, selection.processing, said, position)
    return Counter(sample(logits, replace(selection.sampling, position=position)).tolist())


def exact(params: SamplingParams) -> list[float]:
    """Probabilities of all tokens, in the order of stages that `SamplingParams` states."""
    scores = _watermarked(_biased(_penalised(list(LOGITS), params), params), params)
    scores = [score / params.temperature for score in scores]
    kept = [token for token, score in enumerate(scores) if score > -math.inf]
    if params.top_k:
        kept = sorted(kept, key=lambda token: -scores[token])[: params.top_k]
    if params.top_p < 1:
        kept = _nucleus(kept, sorted(kept, key=lambda token: -scores[token]), scores, params.top_p)
    if params.typical_p < 1:
        shares = _softmax(kept, scores)
        entropy = -sum(share * math.log(share) for share in shares.values())
        order = sorted(kept, key=lambda token: abs(-math.log(shares[token]) - entropy))
        kept = _nucleus(kept, order, scores, params.typical_p)
    shares = _softmax(kept, scores)
    if params.min_p:
        kept = [token for token in kept if shares[token] >= params.min_p * max(shares.values())]
        shares = _softmax(kept, scores)
    return [shares.get(token, 0.0) for token in range(len(LOGITS))]


def _penalised(scores: list[float], params: SamplingParams) -> list[float]:
    for token in {*PROMPT, *OUTPUT}:
        penalty = params.repetition_penalty
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    for token, times in Counter(OUTPUT).items():
        scores[token] -= times * params.frequency_penalty + params.presence_penalty
    return scores


def _biased(scores: list[float], params: SamplingParams) -> list[float]:
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    if len(OUTPUT) < params.min_tokens:
        scores[END] = -math.inf
    return scores


def _watermarked(scores: list[float], params: SamplingParams) -> list[float]:
    for asked in params.processors:
        gamma, delta, key = asked.values
        for token in range(len(scores)):
            scores[token] += delta * is_green(OUTPUT[-1], token, gamma=gamma, key=int(key))
    return scores


def _softmax(kept: list[int], scores: list[float]) -> dict[int, float]:
    total = sum(math.exp(scores[token]) for token in kept)
    return {token: math.exp(scores[token]) / total for token in kept}


def _nucleus(kept: list[int], order: list[int], scores: list[float], mass: float) -> list[int]:
    """The first of `order` that together have the mass."""
    shares, taken, found = _softmax(kept, scores), 0.0, []
    for token in order:
        if taken >= mass:
            break
        found.append(token)
        taken += shares[token]
    return found


def p_value(counts: Counter[int], shares: list[float]) -> float:
    """Pearson's chi-square test of the tokens that can be drawn at all."""
    possible = {token: share for token, share in enumerate(shares) if share > 0}
    assert set(counts) <= set(possible), "a token was drawn that is impossible"
    return chi_square.p_value(chi_square.against_shares(counts, possible))


STAGES: dict[str, dict[str, Any]] = {
    "temperature 0.6": {"temperature": 0.6},
    "temperature 1": {},
    "temperature 1.8": {"temperature": 1.8},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.8},
    "typical_p": {"typical_p": 0.7},
    "min_p": {"min_p": 0.2},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "frequency_penalty": {"frequency_penalty": 0.9},
    "presence_penalty": {"presence_penalty": 1.2},
    "logit_bias": {"logit_bias": {2: 1.5, 3: -2.0, 5: -100.0}},
    "min_tokens": {"min_tokens": 4},
    "min_tokens over": {"min_tokens": 3},
    "watermark": {"processors": (LogitsProcessing("watermark", (0.4, 1.5, DEFAULT_KEY)),)},
    "all": {
        "temperature": 1.3, "top_k": 8, "top_p": 0.95, "typical_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.2,
        "frequency_penalty": 0.3, "presence_penalty": 0.3, "logit_bias": {4: 2.0}, "min_tokens": 4,
        "processors": (LogitsProcessing("watermark", (0.5, 1.0, DEFAULT_KEY)),),
    },
}  # fmt: skip


def of_stage(stage: str) -> SamplingParams:
    return SamplingParams(**({"temperature": 1.0} | STAGES[stage]))


@pytest.mark.parametrize("partition", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_draws_have_the_probabilities_of_the_stage(stage: str, partition: bool) -> None:
    params = of_stage(stage)
    assert p_value(drawn(params, partition=partition), exact(params)) > LEAST_P


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("temperature 1", "min_tokens over")])
def test_the_test_would_see_a_stage_that_is_left_out(stage: str) -> None:
    counts = drawn(SamplingParams(temperature=1.0), partition=True)
    shares = exact(of_stage(stage))
    impossible = any(shares[token] == 0 for token in counts)
    assert impossible or p_value(counts, shares) < 1e-6

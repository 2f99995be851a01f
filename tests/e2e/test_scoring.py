"""Scoring over HTTP: the likelihoods that evaluation harnesses rank answers by are transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from torch import Tensor

from mainspring.server.text.tokenizer import load_tokenizer
from tests.support.live_server import LiveServer, live_server
from tests.support.smollm2 import by_transformers

TOLERANCE = 1e-4
"""A token, in float32."""

QUESTIONS = (
    ("The capital of France is", (" Paris", " Madrid, and so it has been for a thousand years", " the")),
    ("def add(a, b):\n    return", (" a + b", " print")),
    ("日本の首都は", ("東京です。", "🙂")),
)


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """SmolLM2 in float32, weights too; chunks of 16 tokens cut every longer prompt."""
    numbers = ("--backend", "cpu", "--dtype", "float32", "--quantize", "none")
    flags = (*numbers, "--max-prefill-chunk", "16", "--num-blocks", "100")
    with live_server("demo", tmp_path_factory.mktemp("scoring") / "log", *flags) as running:
        yield running


@pytest.fixture(scope="module")
def pairs(smollm2: Path) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) of each answer to each question."""
    tokenizer = load_tokenizer(smollm2)
    return [(tokenizer.encode(text), tokenizer.encode(answer)) for text, answers in QUESTIONS for answer in answers]


@pytest.fixture(scope="module")
def expected(pairs: list[tuple[list[int], list[int]]]) -> list[Tensor]:
    """transformers' log-probabilities [T, V] of the next token, of context and continuation together."""
    model = by_transformers()
    with torch.inference_mode():
        return [model(torch.tensor([[*pair[0], *pair[1]]])).logits[0].float().log_softmax(-1) for pair in pairs]


def own(logprobs_TV: Tensor, tokens: list[int]) -> list[float]:
    found: list[float] = logprobs_TV[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
    return found


def test_continuations_as_lm_eval_scores_them(
    scoring: LiveServer, pairs: list[tuple[list[int], list[int]]], expected: list[Tensor]
) -> None:
    """Prompts of token ids, several a request, one token generated and cut off again."""
    for begin in range(0, len(pairs), 4):
        batch = pairs[begin : begin + 4]
        body = {"prompt": [[*context, *continuation] for context, continuation in batch], "temperature": 0}
        body |= {"max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, "model": "tgi"}
        choices = httpx.post(f"{scoring.url}/v1/completions", json=body, timeout=60).json()["choices"]
        for choice, (context, continuation), theirs in zip(choices, batch, expected[begin:], strict=False):
            found = choice["logprobs"]["token_logprobs"][len(context) : -1]
            likelihood = sum(own(theirs, [*context, *continuation])[len(context) - 1 :])
            assert len(found) == len(continuation)
            assert sum(found) == pytest.approx(likelihood, abs=TOLERANCE * len(continuation))
            greedy = theirs[len(context) - 1 : -1].argmax(-1).tolist() == continuation
            tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
            assert all(own == max(top.values()) for own, top in zip(found, tops, strict=True)) == greedy


def test_prefill_of_tgi_and_an_echo_alone(
    scoring: LiveServer, pairs: list[tuple[list[int], list[int]]], expected: list[Tensor]
) -> None:
    text, answers = QUESTIONS[0]
    body = {"inputs": text + answers[0], "parameters": {"decoder_input_details": True, "max_new_tokens": 1}}
    prefill = httpx.post(f"{scoring.url}/generate", json=body, timeout=60).json()["details"]["prefill"]
    tokens = [*pairs[0][0], *pairs[0][1]]
    assert [token["id"] for token in prefill] == tokens
    assert "".join(token["text"] for token in prefill) == text + answers[0]
    assert [token["logprob"] for token in prefill[1:]] == pytest.approx(own(expected[0], tokens), abs=TOLERANCE)
    echo = {"prompt": text + answers[0], "echo": True, "logprobs": 0, "max_tokens": 0}
    (choice,) = httpx.post(f"{scoring.url}/v1/completions", json=echo, timeout=60).json()["choices"]
    assert choice["text"] == text + answers[0]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx([token["logprob"] for token in prefill], abs=TOLERANCE)

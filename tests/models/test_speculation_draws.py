"""What is drawn under speculation has the model's own probabilities: chi-square of 20,000 draws with fixed seeds.

Equal seeds give equal tokens with speculation and without, so that alone proves nothing about the draws: here their
seeds are others. Probabilities come from transformers, for every beginning of an answer that can be drawn.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring.core.config import EngineConfig
from mainspring.core.request import RequestId, SamplingParams, Submit
from mainspring.core.scheduling import verifying
from mainspring.core.speculation import speculation
from tests.support import chi_square, tiny_models
from tests.support.in_process import open_in_process
from tests.support.open_gate import open_gate

WORDS, KEPT, TEMPERATURE = 7, 3, 0.9
LENGTH, ANSWERS = 5, 4000
LEAST_P = 0.01
PROMPT = [word for pair in product(range(WORDS), repeat=2) for word in pair]
"""Every pair of words stands in it, so that there is always something to copy."""
Beginning = tuple[int, ...]
Counts = Mapping[Beginning, Counter[int]]
"""By what was drawn before, what was drawn next."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of seven words, and one that is nearly the same."""
    root = tmp_path_factory.mktemp("draws")
    model = theirs()
    tiny_models.save(model, root / "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 * parameter.std())
    tiny_models.save(model, root / "near")
    return root


def theirs() -> Any:
    return tiny_models.build(tiny_models.llama(vocab_size=WORDS, max_position_embeddings=256)(), seed=4)


@pytest.fixture(scope="module")
def shares() -> Mapping[Beginning, Mapping[int, float]]:
    """Probabilities of the words that may come next, by what came before."""
    model, found, beginnings = theirs(), {}, [()]
    for _ in range(LENGTH):
        with torch.inference_mode():
            logits = model(torch.tensor([[*PROMPT, *beginning] for beginning in beginnings])).logits[:, -1].double()
        likeliest = (logits / TEMPERATURE).topk(KEPT)
        for beginning, values, words in zip(beginnings, likeliest.values, likeliest.indices, strict=True):
            found[beginning] = dict(zip(words.tolist(), values.softmax(0).tolist(), strict=True))
        beginnings = [(*beginning, word) for beginning in beginnings for word in found[beginning]]
    return found


def drawn(root: Path, speculator: str | None, first_seed: int) -> tuple[list[list[int]], int, int]:
    """(answers that differ in their seeds, drafted tokens, right ones)."""
    named = None if speculator is None else "ngram" if speculator == "ngram" else str(root / speculator)
    config = EngineConfig(
        model=str(root / "model"), backend="cpu", dtype="float32", threads=1, max_length=128, num_blocks=6000,
        max_sequences=500, max_batch_tokens=4000, max_waiting_requests=ANSWERS, speculator=named,
        speculate=3 if named else None,
    )  # fmt: skip
    loop = open_in_process(config)
    open_gate(loop.scheduler)
    for number in range(ANSWERS):
        params = SamplingParams(max_tokens=LENGTH, temperature=TEMPERATURE, top_k=KEPT, seed=first_seed + number)
        loop.scheduler.submit(Submit(RequestId(number), PROMPT, params))
    answers: list[list[int]] = [[] for _ in range(ANSWERS)]
    for delta in loop.deltas():
        answers[delta.request_id] += delta.tokens
    loop.executor.close()
    stats = loop.scheduler.stats()
    return answers, stats.draft_tokens, stats.accepted_tokens


def counted(answers: Sequence[Sequence[int]]) -> Counts:
    counts: defaultdict[Beginning, Counter[int]] = defaultdict(Counter)
    for answer in answers:
        for place, word in enumerate(answer):
            counts[tuple(answer[:place])][word] += 1
    return counts


def p_value(findings: Iterator[chi_square.Finding]) -> float:
    """Of draws after all the beginnings together: each is a test of its own."""
    statistics, freedoms = zip(*findings, strict=True)
    return chi_square.p_value((sum(statistics), sum(freedoms)))


@pytest.fixture(scope="module")
def plain(root: Path) -> Counts:
    return counted(drawn(root, None, first_seed=1_000_000)[0])


def against_the_model(counts: Counts, shares: Mapping[Beginning, Mapping[int, float]]) -> float:
    assert all(set(found) <= set(shares[beginning]) for beginning, found in counts.items())
    return p_value(chi_square.against_shares(found, shares[beginning]) for beginning, found in counts.items())


def test_plain_draws_have_the_model_s_probabilities(
    plain: Counts, shares: Mapping[Beginning, Mapping[int, float]]
) -> None:
    assert sum(map(Counter.total, plain.values())) == 20_000
    assert against_the_model(plain, shares) > LEAST_P


@pytest.mark.parametrize("kind", ["ngram", "near"])
def test_draws_under_speculation_are_no_others(
    root: Path, plain: Counts, shares: Mapping[Beginning, Mapping[int, float]], monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(speculation, "LIKELY", 0.0)  # whoever can be guessed at is
    answers, drafted, right = drawn(root, kind, first_seed=2_000_000)
    counts = counted(answers)
    assert 0.1 * drafted < right < 0.9 * drafted
    assert drafted > ANSWERS
    assert against_the_model(counts, shares) > LEAST_P
    assert p_value(chi_square.against_counts(counts[key], plain[key]) for key in {*counts} & {*plain}) > LEAST_P


def test_the_test_would_see_guesses_that_are_taken_on_trust(
    root: Path, shares: Mapping[Beginning, Mapping[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "_held", lambda tokens, first, guesses: len(guesses))
    counts = counted(drawn(root, "near", first_seed=3_000_000)[0])
    possible = all(set(found) <= set(shares[beginning]) for beginning, found in counts.items() if beginning in shares)
    assert not possible or against_the_model(counts, shares) < 1e-6

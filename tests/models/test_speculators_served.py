"""Every kind of speculator from its directory to its drafts, on the CPU backend: no answer changes by a token."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mainspring.core.config import EngineConfig
from mainspring.core.errors import StartupError
from mainspring.core.request import SamplingParams
from tests.support import tiny_drafts, tiny_models
from tests.support.in_process import open_in_process
from tests.support.open_gate import open_gate

GREEDY = SamplingParams(max_tokens=40)
DRAWN = SamplingParams(max_tokens=40, temperature=1.0, top_p=0.9, seed=7)
PENALISED = SamplingParams(max_tokens=40, repetition_penalty=1.2, logprobs=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and beside it a speculator of each kind."""
    root = tmp_path_factory.mktemp("models")
    tiny_models.save(tiny_models.build(tiny_models.CASES["llama"].config()), root / "model")
    tiny_models.save(tiny_models.build(tiny_models.CASES["qwen3"].config(), seed=5), root / "other")
    tiny_drafts.medusa(root / "medusa", num_heads=3)
    tiny_drafts.medusa(root / "medusa2", own_scores=False, num_layers=1)
    tiny_drafts.mlp_speculator(root / "mlp", tied=False, scale_input=True)
    tiny_drafts.eagle(root / "eagle", own_ends=False)
    tiny_drafts.eagle3(root / "eagle3")
    return root


def served(root: Path, speculator: str | None) -> tuple[list[list[int]], int, int]:
    """(answers, drafted tokens, right ones): three prompts each way of choosing, some of them one prefix."""
    config = EngineConfig(
        model=str(root / "model"), backend="cpu", num_blocks=24, max_sequences=24, max_batch_tokens=24, seed=3,
        speculator=speculator if speculator is None or speculator == "ngram" else str(root / speculator),
        speculate=None if speculator is None else 3, threads=1, prefix_caching=True,
    )  # fmt: skip
    generator = random.Random(1)
    prompts = [[generator.randrange(tiny_models.VOCABULARY) for _ in range(length)] for length in (20, 3)]
    prompts.append([*prompts[0], 4])
    loop = open_in_process(config)
    open_gate(loop.scheduler)
    answers = [answer for params in (GREEDY, DRAWN, PENALISED) for answer in loop.generate(prompts, params)]
    loop.executor.close()
    stats = loop.scheduler.stats()
    return answers, stats.draft_tokens, stats.accepted_tokens


@pytest.fixture(scope="module")
def plain(models: Path) -> list[list[int]]:
    answers, drafted, _ = served(models, None)
    assert not drafted
    return answers


@pytest.mark.parametrize("kind", ["model", "other", "medusa", "medusa2", "mlp", "eagle", "eagle3", "ngram"])
def test_no_speculator_changes_an_answer(models: Path, plain: list[list[int]], kind: str) -> None:
    answers, drafted, right = served(models, kind)
    assert answers == plain
    assert drafted > 20 or kind == "ngram"
    # Penalties are the target's alone, so even its copy is wrong at times.
    assert kind != "model" or right > 0.8 * drafted


def test_a_speculator_that_does_not_fit_stops_the_start(models: Path, tmp_path: Path) -> None:
    config = EngineConfig(
        model=str(models / "model"), backend="cpu", num_blocks=24, max_sequences=4, speculator=str(models / "medusa"),
        speculate=4,
    )  # fmt: skip
    with pytest.raises(StartupError, match="needs 4 drafted tokens, has at most 3 drafted tokens; use --speculate 3"):
        open_in_process(config)

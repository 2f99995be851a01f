"""Speculation with everything else on: 100 prompts get plain decoding's tokens, texts, reasons and log-probabilities,
whoever guesses."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring.core.config import EngineConfig
from mainspring.core.execution import choosing
from mainspring.core.execution.sampling import Selection, adjust
from mainspring.core.grammar.guides import Guides
from mainspring.core.grammar.store import Grammars
from mainspring.core.metrics import Stats
from mainspring.core.request import FinishReason, SamplingParams
from mainspring.core.scheduling import verifying
from mainspring.core.speculation import speculation
from mainspring.server.text.tokenizer import load_tokenizer
from tests.support import tiny_drafts, tiny_models
from tests.support.answering import Answer, Question, answer, differences
from tests.support.byte_model import MAX_LENGTH, VOCABULARY, write_byte_model
from tests.support.everything import Asked, questions
from tests.support.in_process import open_in_process
from tests.support.open_gate import open_gate

ROWS, BATCH_TOKENS = 32, 96
SCARCE, AMPLE = 40, 400
"""Blocks of 16 tokens for 32 sequences of about 100."""
Found = tuple[list[Answer], Stats]
Ask = Callable[[Sequence[Question]], Found]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, one that is nearly the same, and heads."""
    root = tmp_path_factory.mktemp("exact")
    model = write_byte_model(root / "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15 * parameter.std())
    tiny_models.save(model, root / "near")
    shutil.copy(root / "model" / "tokenizer.json", root / "near")
    tiny_drafts.medusa(root / "medusa", own_scores=False, num_layers=1)
    tiny_drafts.eagle(root / "eagle", own_ends=False, vocabulary=len(VOCABULARY.tokens), length=MAX_LENGTH)
    return root


@contextmanager
def opened(root: Path, speculator: str | None, num_blocks: int = AMPLE) -> Iterator[Ask]:
    """Answers questions that are asked at once, and says what the scheduler counted so far."""
    path = speculator if speculator in (None, "ngram") else str(root / str(speculator))
    config = EngineConfig(
        model=str(root / "model"), backend="cpu", dtype="float32", threads=1, block_size=16, num_blocks=num_blocks,
        max_sequences=ROWS, max_batch_tokens=BATCH_TOKENS, speculator=path, speculate=3 if speculator else None,
    )  # fmt: skip
    grammars, tokenizer = Grammars(len(VOCABULARY.tokens)), load_tokenizer(root / "model")
    grammars.learn(VOCABULARY)
    loop = open_in_process(config, grammars=grammars)
    open_gate(loop.scheduler)
    try:
        yield lambda asked: (answer(loop, tokenizer, asked), loop.scheduler.stats())
    finally:
        loop.executor.close()
        grammars.close()


def served(root: Path, speculator: str | None, asked: Sequence[Question], num_blocks: int = AMPLE) -> Found:
    """By an engine of its own."""
    with opened(root, speculator, num_blocks) as ask:
        return ask(asked)


@pytest.fixture(autouse=True)
def _everybody_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """However unlikely it is to be right."""
    monkeypatch.setattr(speculation, "LIKELY", 0.0)


@pytest.fixture(scope="module")
def greedy() -> list[Question]:
    return questions(100)


@pytest.fixture(scope="module")
def plain(models: Path, greedy: list[Question]) -> list[Answer]:
    return served(models, None, greedy)[0]


def test_the_questions_ask_for_all_that_may_go_wrong(greedy: list[Question], plain: list[Answer]) -> None:
    reasons = Counter(found.reason for found in plain)
    assert min(reasons[reason] for reason in (FinishReason.EOS, FinishReason.STOP, FinishReason.LENGTH)) >= 10
    assert not [found.problem for found in plain if found.problem]
    assert sum(len(found.logprobs) for found in plain) > 1000
    assert len({tuple(found.tokens) for found in plain}) > 90


@pytest.mark.parametrize("kind", ["ngram", "model", "near", "medusa", "eagle"])
def test_greedy_with_any_speculation_is_greedy_without(
    models: Path, greedy: list[Question], plain: list[Answer], kind: str
) -> None:
    answers, stats = served(models, kind, greedy)
    assert differences(answers, plain) == []
    assert stats.draft_tokens > 200
    assert 0 < stats.accepted_tokens < stats.draft_tokens


@pytest.mark.parametrize("kind", ["ngram", "near"])
def test_likewise_for_those_that_draw_and_those_that_give_way(models: Path, kind: str) -> None:
    asked = questions(32, seed=1, greedy=False, of=Asked(longest=100))
    answers, stats = served(models, kind, asked, SCARCE)
    assert differences(answers, served(models, None, asked)[0]) == []
    assert stats.preemptions > 0
    assert stats.accepted_tokens > 0


@pytest.mark.parametrize("kind", ["near", "eagle"])
def test_blocks_that_were_guessed_into_are_good_for_others(models: Path, kind: str) -> None:
    """Keys and values of wrong guesses stood in them before the right ones did."""
    length, known = 60, 33
    prompts = [question.tokens for question in questions(16, seed=2)]
    whole = [Question(prompt, SamplingParams(max_tokens=length, ignore_eos=True)) for prompt in prompts]
    with opened(models, kind) as ask:
        answers, before = ask(whole)
        rest = SamplingParams(max_tokens=length - known, ignore_eos=True)
        longer = [Question([*prompt, *one.tokens[:known]], rest) for prompt, one in zip(prompts, answers, strict=True)]
        found, after = ask(longer)
    assert [one.tokens for one in found] == [one.tokens[known:] for one in answers]
    assert before.accepted_tokens < before.draft_tokens
    # Blocks that hold generated tokens, of nearly every prompt.
    assert after.prefix_hits - before.prefix_hits > sum(len(prompt) + 16 for prompt in prompts)


# What these tests would see. Each of these is a mistake that a speculator invites.


def one_too_many(tokens: list[int], first: int, guesses: list[int]) -> int:
    """A guess that was not verified is kept."""
    place = 0
    while place < len(guesses) and tokens[first + place] == guesses[place]:
        place += 1
    return min(place + 1, len(guesses))


def blind_to_guesses(logits_NV: torch.Tensor, selection: Selection, *rest: Any, **named: Any) -> torch.Tensor:
    """Penalties behind a guess do not count it."""
    tokens, position_N = rest
    rows = [] if selection.penalties is None else selection.penalties.table_rows.tolist()
    if selection.penalties is not None:
        before = torch.tensor([rows[:place].count(row) for place, row in enumerate(rows)], dtype=position_N.dtype)
        position_N = position_N.clone()
        position_N[selection.penalties.rows] -= before
    return adjust(logits_NV, selection, tokens, position_N, **named)


def unmasked_behind_guesses(guides: Guides, rows: Sequence[int], guesses: Any = None) -> Any:
    """What comes behind a guess is held to what may come before it."""
    masks = _masks(guides, rows, guesses or {})
    for place in range(1, len(rows)):
        if rows[place] == rows[place - 1]:
            masks[place] = masks[place - 1]
    return masks


_masks = Guides.masks


@pytest.mark.parametrize(
    ("place", "name", "mistake"),
    [
        (verifying, "_held", one_too_many),
        (choosing, "adjust", blind_to_guesses),
        (Guides, "masks", unmasked_behind_guesses),
    ],
    ids=["a guess too many", "penalties without guesses", "grammars without guesses"],
)
def test_a_mistake_would_be_seen(
    models: Path, greedy: list[Question], plain: list[Answer], monkeypatch: pytest.MonkeyPatch,
    place: Any, name: str, mistake: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr(place, name, mistake)
    answers, _ = served(models, "model", greedy[:24])
    assert differences(answers, plain[: len(answers)])

"""Beam search over the engine finds what transformers' `generate(num_beams=...)` finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring.core.config import EngineConfig
from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.request import FinishReason, SamplingParams
from mainspring.server.beams.search import Beams
from mainspring.server.offline import LLM
from tests.support.byte_model import write_byte_model
from tests.support.smollm2 import by_transformers

ENDS = (0, 62, 71, 101, 120)
"""Many, so that answers end at different lengths."""
NEW_TOKENS = 14
SEARCHES = [
    Beams(2),
    Beams(4),
    Beams(5, early_stopping=True),
    Beams(3, length_penalty=0.0, early_stopping="never"),
    Beams(4, length_penalty=2.0, early_stopping="never"),
    Beams(3, length_penalty=-1.0),
]
PROMPTS = [list(range(first, first + 24)) for first in range(1, 101, 12)]


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("byte")
    return directory, write_byte_model(directory, ends=ENDS)


@pytest.fixture(scope="module")
def llm(byte_model: tuple[Path, Any]) -> Iterator[LLM]:
    config = EngineConfig(model=str(byte_model[0]), backend="cpu", dtype="float32", max_length=128, num_blocks=200)
    with LLM.of(config) as opened:
        yield opened


def theirs(model: Any, prompt: list[int], beams: Beams, ends: Sequence[int] = ENDS) -> list[int]:
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=beams.width,
            length_penalty=beams.length_penalty,
            early_stopping=beams.early_stopping,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=list(ends),
            pad_token_id=0,
        )
    found: list[int] = out[0, len(prompt) :].tolist()
    ended = next((place for place, token in enumerate(found) if token in ends), len(found))
    return found[: ended + 1]


@pytest.mark.parametrize("beams", SEARCHES, ids=str)
def test_the_best_answer_is_that_of_transformers(llm: LLM, byte_model: tuple[Path, Any], beams: Beams) -> None:
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=NEW_TOKENS), beams=beams)
    expected = [theirs(byte_model[1], prompt, beams) for prompt in PROMPTS]
    assert [output.token_ids for output in outputs] == expected
    assert {output.finish_reason for output in outputs} >= {FinishReason.EOS} or beams.length_penalty > 0


def test_smollm2_finds_what_transformers_finds(smollm2: Path) -> None:
    beams, prompt, model = Beams(3), "The capital of France is", by_transformers()
    config = EngineConfig(model=str(smollm2), backend="cpu", dtype="float32", quantize="none", max_length=128)
    with LLM.of(config) as opened:
        (output,) = opened.generate(prompt, SamplingParams(max_tokens=NEW_TOKENS), beams=beams)
        tokens = output.prompt_token_ids
    assert output.token_ids == theirs(model, tokens, beams, ends=[2])


def test_grammars_stops_and_penalties_hold_in_every_beam(llm: LLM) -> None:
    params = SamplingParams(max_tokens=NEW_TOKENS, frequency_penalty=2.0, logit_bias={53: 6.0})
    grammar = GrammarSpec("regex", "[0-9]{6,8}")
    (held,) = llm.generate([PROMPTS[0]], params, grammar=grammar, beams=Beams(3))
    assert held.finish_reason is FinishReason.EOS
    assert 6 <= len(held.text) <= 8
    assert held.text.isdigit()
    (stopped,) = llm.generate([PROMPTS[0]], params, [held.text[2:4]], grammar=grammar, beams=Beams(3))
    assert held.text[2:4] not in stopped.text
    (both,) = llm.generate([PROMPTS[0]], params, grammar=GrammarSpec("choice", '["left", "right"]'), beams=Beams(4))
    assert both.text in ("left", "right")

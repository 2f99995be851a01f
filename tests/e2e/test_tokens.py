"""Greedy tokens of SmolLM2 equal transformers' one by one, however the work is cut: promise 8 of the design."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mainspring.core.config import EngineConfig
from mainspring.core.request import SamplingParams
from mainspring.server.offline import LLM
from mainspring.server.text.tokenizer import load_tokenizer
from tests.e2e.prompts import PROMPTS
from tests.support import smollm2 as oracle

NEW_TOKENS = 16
LONG = 32
"""Enough for sequences to outgrow what they were admitted with."""


@contextmanager
def llm(model: Path, **settings: Any) -> Iterator[LLM]:
    with LLM.of(EngineConfig(model=str(model), backend="cpu", dtype="float32", quantize="none", **settings)) as loaded:
        yield loaded


def greedy(loaded: LLM, prompts: list[list[int]], num_tokens: int = NEW_TOKENS) -> list[list[int]]:
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    return [output.token_ids for output in loaded.generate(prompts, params)]


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    """Token ids, by transformers' own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def expected(expected_long: list[list[int]]) -> list[list[int]]:
    """The first tokens of each."""
    return [tokens[:NEW_TOKENS] for tokens in expected_long]


@pytest.fixture(scope="module")
def in_a_batch(smollm2: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Ours, of all prompts at once."""
    with llm(smollm2, prefix_caching=False) as loaded:
        return greedy(loaded, prompts, LONG)


@pytest.fixture(scope="module")
def expected_long(prompts: list[list[int]], in_a_batch: list[list[int]]) -> list[list[int]]:
    """What transformers generates, each prompt alone, in float32; ours are but guesses that spare it passes."""
    return [oracle.greedy(prompt, LONG, guessed) for prompt, guessed in zip(prompts, in_a_batch, strict=True)]


def test_our_tokenizer_reads_the_prompts_as_transformers_does(smollm2: Path, prompts: list[list[int]]) -> None:
    tokenizer = load_tokenizer(smollm2)
    assert [tokenizer.encode(prompt) for prompt in PROMPTS] == prompts


def test_alone(smollm2: Path, prompts: list[list[int]], expected: list[list[int]]) -> None:
    with llm(smollm2, prefix_caching=False) as loaded:
        assert [greedy(loaded, [prompt])[0] for prompt in prompts] == expected


def test_in_a_batch_of_32(in_a_batch: list[list[int]], expected_long: list[list[int]]) -> None:
    assert in_a_batch == expected_long


def test_with_prefill_in_chunks_of_16(smollm2: Path, prompts: list[list[int]], expected: list[list[int]]) -> None:
    with llm(smollm2, prefix_caching=False, max_prefill_chunk=16) as loaded:
        assert greedy(loaded, prompts) == expected


def test_with_prefix_hits(smollm2: Path, prompts: list[list[int]], expected: list[list[int]]) -> None:
    """The second time every full block of the prompt is there; the third time blocks of generated tokens too."""
    with llm(smollm2) as loaded:
        assert greedy(loaded, prompts) == expected
        before = loaded.stats.prefix_hits
        assert greedy(loaded, prompts) == expected
        after = loaded.stats.prefix_hits
        assert after > before
        known = NEW_TOKENS // 2
        longer = [prompt + tokens[:known] for prompt, tokens in zip(prompts, expected, strict=True)]
        assert greedy(loaded, longer, NEW_TOKENS - known) == [tokens[known:] for tokens in expected]
        assert loaded.stats.prefix_hits > after


def test_under_preemption(smollm2: Path, prompts: list[list[int]], expected_long: list[list[int]]) -> None:
    """A cache that holds a third of what the batch needs: sequences give way and are computed again."""
    needed = sum(-(-(len(prompt) + LONG) // 16) for prompt in prompts)
    with llm(smollm2, block_size=16, num_blocks=needed // 3) as loaded:
        assert greedy(loaded, prompts, LONG) == expected_long
        assert loaded.stats.preemptions > 0

"""SmolLM2 on the card: greedy tokens are the host's until two tokens are as likely as the dtype can tell."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mainspring.core.config import Dtype, EngineConfig
from mainspring.core.request import SamplingParams
from mainspring.server.offline import LLM
from tests.e2e.prompts import PROMPTS
from tests.support.smollm2 import path

TEXTS = [*PROMPTS, *(f"Tell me more. {prompt}" for prompt in PROMPTS)]
NEW_TOKENS = 32
TOLERANCE: dict[Dtype, float] = {"float32": 2e-3, "bfloat16": 0.5}
"""How far two logits may be off: SmolLM2's reach 25, and 2 % of that is what bfloat16 may be off after 30 layers.
float32 sums in another order alone."""


@dataclass(frozen=True, slots=True)
class Said:
    """A continuation, and how much likelier each token was than the next one."""

    tokens: list[int]
    margins: list[float]


def say(backend: str, dtype: Dtype, **settings: object) -> list[Said]:
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=2)
    with LLM.of(EngineConfig(model=str(path()), backend=backend, dtype=dtype, **settings)) as llm:
        outputs = llm.generate(TEXTS, params)
    said = []
    for output in outputs:
        assert output.logprobs is not None
        tops = [entry.top_logprobs for entry in output.logprobs]
        said.append(Said(output.token_ids, [top[0] - top[1] for top in tops]))
    return said


@pytest.fixture(scope="module")
def expected() -> list[Said]:
    """By the host, in float32, whose tokens are transformers' (tests/e2e/test_tokens.py)."""
    return say("cpu", "float32")


@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_greedy_tokens_are_the_hosts(expected: list[Said], dtype: Dtype, graphs: str) -> None:
    assert len(TEXTS) == 64
    found = say("cuda", dtype, backend_options={"graphs": graphs})
    whole = 0
    for text, host, card in zip(TEXTS, expected, found, strict=True):
        differing = (at for at, pair in enumerate(zip(host.tokens, card.tokens, strict=True)) if pair[0] != pair[1])
        first = next(differing, None)
        if first is None:
            whole += 1
            continue
        assert host.margins[first] < TOLERANCE[dtype], (text, first, host.margins[first])
    # Ties are few where the dtype is fine, and the comparison says something where it is coarse.
    assert whole >= (62 if dtype == "float32" else 16), whole

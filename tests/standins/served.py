"""What is asked of every backend on its stand-in: transformers' tokens, and programs that were compiled at start-up."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mainspring.core.backend import Backend, Device
from mainspring.core.config import EngineConfig
from mainspring.core.plugins import Choice
from mainspring.core.request import SamplingParams
from tests.support import in_process
from tests.support.in_process import InProcess
from tests.support.open_gate import open_gate
from tests.support.tiny_models import CASES, VOCABULARY, build, reference_greedy, save, sequence

NEW_TOKENS = 12
WISHES: tuple[Mapping[str, Any], ...] = (
    {},
    {"temperature": 0.8},
    {"temperature": 0.9, "top_p": 0.9, "top_k": 20},
    {"temperature": 1.0, "typical_p": 0.9},
    {"repetition_penalty": 1.2},
    {"logprobs": 5},
    {"logit_bias": {3: 5.0}, "temperature": 0.7},
    {"min_tokens": 3, "stop_token_ids": (5,)},
    {"prompt_logprobs": 3, "logprobs": 0},
    {"temperature": 1.0, "min_p": 0.1, "frequency_penalty": 0.4, "logprobs": 20},
)
"""Ten requests of each: a hundred."""


class Served:
    """A tiny Llama in float32 behind the core's scheduler and executor."""

    def __init__(self, backend: Backend, folder: Path, patch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.model = build(CASES["llama"].config())
        sizes: dict[str, Any] = {
            "dtype": "float32", "max_length": 60, "max_sequences": 8, "max_batch_tokens": 16, "num_blocks": 60,
        }  # fmt: skip
        config = EngineConfig(model=str(save(self.model, folder)), backend=backend.name, **(sizes | changes))
        found = backend.devices()
        assert isinstance(found, list)
        # The plugin of that name is the product's; here it is the stand-in.
        patch.setattr("mainspring.core.plugins.Plugins.choose", lambda *given: Choice(backend, found[0], "a test"))
        self.device: Device = backend.open(0, 0, 1, config)
        self.served: InProcess = in_process.open_in_process(config, self.device)

    def generates_what_transformers_does(self) -> None:
        """Prompts longer than a step come in chunks; the second time their blocks are in the cache."""
        prompt = sequence()
        params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
        for _ in range(2):
            first, second = self.served.generate([prompt, prompt[:9]], params)
            assert first == reference_greedy(self.model, prompt, NEW_TOKENS)
            assert second == reference_greedy(self.model, prompt[:9], NEW_TOKENS)
        assert any(max(batch.counts) > 1 and not all(batch.samples) for batch in self.served.batches), "no chunk"

    def compiles_nothing_after_warm_up(self) -> None:
        """A hundred requests of every kind and length."""
        numbers = random.Random(0)
        buckets = self.served.executor.buckets()
        assert buckets is not None
        before = self.device.compilations()
        assert before > 0
        for index, wishes in enumerate(WISHES):
            lengths = [numbers.randrange(1, 45) for _ in range(10)]
            prompts = [[numbers.randrange(VOCABULARY) for _ in range(length)] for length in lengths]
            params = SamplingParams(max_tokens=numbers.randrange(1, 15), ignore_eos=True, seed=index, **wishes)
            assert all(self.served.generate(prompts, params))
        assert self.device.compilations() == before
        assert {batch.bucket for batch in self.served.batches} <= {*buckets.decode, *buckets.prefill}

    def guesses_in_compiled_programs(self) -> None:
        """The speculator that it was opened with changes no token, and what it computes was compiled at start-up."""
        open_gate(self.served.scheduler)
        before = self.device.compilations()
        self.generates_what_transformers_does()
        numbers = random.Random(1)
        for index, wishes in enumerate(WISHES):
            prompts = [[numbers.randrange(VOCABULARY) for _ in range(length)] for length in (3, 17)[: 1 + index % 2]]
            assert all(self.served.generate(prompts, SamplingParams(max_tokens=8, seed=index, **wishes)))
        stats = self.served.scheduler.stats()
        assert stats.draft_tokens > 20
        assert self.device.compilations() == before

"""Whole generations through XLA on the host: transformers' tokens, and nothing compiled after warm-up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch_xla.debug import metrics

from mainspring.backends.tpu.device import TpuBackend, TpuDevice
from mainspring.core.config import EngineConfig
from mainspring.core.request import SamplingParams
from tests.support import smollm2, tiny_drafts
from tests.support.in_process import InProcess, open_in_process
from tests.support.open_gate import open_gate
from tests.support.tiny_models import CASES, VOCABULARY, build, reference_greedy, save, sequence

SIZES = {"backend": "tpu", "dtype": "float32", "max_sequences": 8}


def serve(**changes: object) -> tuple[InProcess, TpuDevice]:
    config = EngineConfig(**{**SIZES, **changes})  # type: ignore[arg-type]
    device = TpuBackend().open(0, 0, 1, config)
    assert isinstance(device, TpuDevice)
    return open_in_process(config, device), device


def fallbacks() -> list[str]:
    """Ops that XLA does not have, which went to the host."""
    return [name for name in metrics.counter_names() if name.startswith("aten::")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[InProcess, TpuDevice, object]]:
    model = build(CASES["llama"].config())
    path = save(model, tmp_path_factory.mktemp("tiny"))
    served, device = serve(model=str(path), max_length=60, max_batch_tokens=32, num_blocks=60, block_size=16)
    yield served, device, model
    served.executor.close()


def test_greedy_tokens_are_those_of_transformers(tiny: tuple[InProcess, TpuDevice, object]) -> None:
    served, _, model = tiny
    prompt = sequence()
    for _ in range(2):  # the second time out of the prefix cache
        first, second = served.generate([prompt, prompt[:9]], SamplingParams(max_tokens=12, ignore_eos=True))
        assert first == reference_greedy(model, prompt, 12)
        assert second == reference_greedy(model, prompt[:9], 12)


WISHES: tuple[dict[str, object], ...] = (
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


def test_nothing_is_compiled_after_warm_up(tiny: tuple[InProcess, TpuDevice, object]) -> None:
    """A hundred requests of every kind and length, prompts longer than a step among them."""
    served, device, _ = tiny
    numbers = random.Random(0)
    before, elsewhere = device.vendor.compilations(), fallbacks()
    for index, wishes in enumerate(WISHES):
        lengths = [numbers.randrange(1, 45) for _ in range(10)]
        prompts = [[numbers.randrange(VOCABULARY) for _ in range(length)] for length in lengths]
        params = SamplingParams(max_tokens=numbers.randrange(1, 15), ignore_eos=True, seed=index, **wishes)  # type: ignore[arg-type]
        assert all(served.generate(prompts, params))
    assert device.vendor.compilations() == before
    assert fallbacks() == elsewhere == []


def test_heads_guess_in_compiled_programs(tmp_path: Path) -> None:
    """Medusa's: transformers' tokens still, and nothing compiled after warm-up."""
    model = build(CASES["llama"].config())
    tiny_drafts.medusa(tmp_path / "heads")
    served, device = serve(
        model=str(save(model, tmp_path / "model")), max_length=60, max_batch_tokens=32, num_blocks=60, block_size=16,
        speculator=str(tmp_path / "heads"), speculate=3,
    )  # fmt: skip
    open_gate(served.scheduler)
    before, elsewhere = device.vendor.compilations(), fallbacks()
    prompt = sequence()
    for wishes in WISHES:
        first, _ = served.generate([prompt, prompt[:9]], SamplingParams(max_tokens=12, ignore_eos=True, **wishes))  # type: ignore[arg-type]
        assert wishes or first == reference_greedy(model, prompt, 12)
    assert served.scheduler.stats().draft_tokens > 20
    assert device.vendor.compilations() == before
    assert fallbacks() == elsewhere
    served.executor.close()


def test_smollm2_says_what_it_says_in_transformers() -> None:
    served, device = serve(
        model=str(smollm2.path()), max_length=256, max_batch_tokens=64, num_blocks=80, block_size=32,
        backend_options={"prefill_tokens": "64", "decode_rows": "8", "blocks": "8"},
    )  # fmt: skip
    compiled = device.vendor.compilations()
    numbers = random.Random(1)
    prompts = [[numbers.randrange(1000, 40000) for _ in range(length)] for length in (5, 33, 100, 150)]
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    outputs = served.generate(prompts, params)
    assert served.generate(prompts, params) == outputs
    assert device.vendor.compilations() == compiled
    oracle = smollm2.by_transformers()
    for prompt, output in zip(prompts, outputs, strict=True):
        told = oracle.generate(
            torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0
        )
        assert output == told[0, len(prompt) :].tolist()
    served.executor.close()

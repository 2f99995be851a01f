"""Log-probabilities of prompts against transformers' log_softmax, through the scheduler and the executor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mainspring.core.backend import Capabilities, KVSpec
from mainspring.core.config import ModelConfig
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.execution.table import StateTable
from mainspring.core.models import CausalLM
from mainspring.core.ops import resolve
from mainspring.core.request import RequestId, SamplingParams, Submit
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler
from tests.models.conftest import Pair, load
from tests.support import smollm2
from tests.support.engine_loop import EngineLoop
from tests.support.reference_device import ReferenceDevice
from tests.support.tiny_models import CASES

TOLERANCE = 1e-4
BLOCK_SIZE = 8
CAPABILITIES = Capabilities(compute_dtypes=("float32",), kv_dtypes=("float32",))


def loop(model: CausalLM, config: ModelConfig, max_length: int, max_batch_tokens: int) -> EngineLoop:
    """An engine without processes, on the reference device."""
    device, rows, num_blocks = ReferenceDevice(), 4, 1 + 4 * -(-max_length // BLOCK_SIZE)
    kv = KVSpec(config.num_layers, config.num_kv_heads, config.head_dim, "float32", BLOCK_SIZE)
    sampling = SamplingTable(rows + 1, config.vocab_size, config.eos_token_ids)
    executor = GraphExecutor(
        model,
        device,
        StateTable(rows, max_length, BLOCK_SIZE, sampling=sampling, torch_device="cpu"),
        capabilities=CAPABILITIES,
        ops=resolve(device.ops()),
        spec=kv,
        num_blocks=num_blocks,
        kv=device.allocate_kv(kv, num_blocks),
        buckets=None,
        name="reference",
    )
    scheduler = Scheduler(
        pool=BlockPool(num_blocks, BLOCK_SIZE),
        max_sequences=rows,
        max_length=max_length,
        max_batch_tokens=max_batch_tokens,
        eos_token_ids=config.eos_token_ids,
        clock=lambda: 0.0,
    )
    return EngineLoop(executor, scheduler, ahead=1)


def scored(engine: EngineLoop, prompts: list[list[int]], top: int) -> list[Tensor]:
    """Log-probabilities of each prompt's tokens from the second on; that the best are in order is checked here."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=top)
    engine.serve([Submit(RequestId(number), prompt, params) for number, prompt in enumerate(prompts)])
    told = engine.prompt_logprobs()
    for entries in told.values():
        assert all(before >= after for entry in entries for before, after in pairwise(entry.top_logprobs))
    return [torch.tensor([entry.logprob for entry in told[number]]) for number in range(len(prompts))]


def given(logits_TV: Tensor, tokens: list[int]) -> Tensor:
    """What transformers' logits say of the same tokens."""
    return logits_TV[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


@pytest.mark.parametrize("max_batch_tokens", [64, 5])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.length_dependent])
def test_tiny_models(pair: Callable[[str], Pair], name: str, max_batch_tokens: int) -> None:
    case = pair(name)
    engine = loop(case.ours, case.config, CASES[name].max_length, max_batch_tokens)
    (found,) = scored(engine, [case.tokens], 4)
    assert torch.allclose(found, given(case.logits, case.tokens), atol=TOLERANCE, rtol=0)


def test_smollm2_and_the_likelihood_of_continuations() -> None:
    """The sum over a continuation is what evaluation harnesses rank answers by."""
    theirs = smollm2.by_transformers()
    ours, config = load(smollm2.path(), 128)
    generator = torch.Generator().manual_seed(5)
    context = torch.randint(0, 49152, (40,), generator=generator).tolist()
    prompts = [context + torch.randint(0, 49152, (length,), generator=generator).tolist() for length in (5, 30)]
    found = scored(loop(ours, config, 128, 48), prompts, 2)
    for prompt, logprobs in zip(prompts, found, strict=True):
        with torch.inference_mode():
            expected = given(theirs(torch.tensor([prompt])).logits[0].float(), prompt)
        assert torch.allclose(logprobs, expected, atol=TOLERANCE, rtol=0)
        likelihoods = [part[len(context) - 1 :].sum().item() for part in (logprobs, expected)]
        assert likelihoods[0] == pytest.approx(likelihoods[1], abs=TOLERANCE * len(prompt))

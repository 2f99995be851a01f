"""Scheduler, executor and a drafter together: every request's tokens are plain decoding's, whatever is drafted; and a
draft model that is the target's copy is always right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mainspring.core.execution.drafters.choosing import Drawing
from mainspring.core.execution.drafters.contract import Beside
from mainspring.core.execution.drafters.model import ModelDrafter
from mainspring.core.execution.drafters.places import Scratch
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.execution.table import StateTable
from mainspring.core.execution.upload import uploading
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models.causal import CausalLM
from mainspring.core.ops import Ops
from mainspring.core.request import SamplingParams
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler
from mainspring.core.speculation.speculation import Speculation
from tests.support.engine_loop import EngineLoop, Outputs
from tests.support.open_gate import Open
from tests.support.plain_device import DYNAMIC, PlainDevice
from tests.support.tiny_model import VOCAB, TinyModel, spec
from tests.unit.test_scheduled_execution import BLOCK_SIZE, EOS, LENGTH, REQUESTS, SHARED, Loop, submit

COUNT = 5
ROWS = 48
"""Room for what all of them guess."""


class Stubborn(CausalLM):
    """Says one token, whatever it reads: a draft model that is almost never right."""

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        return torch.zeros(len(tokens_T), 4)

    def logits(self, hidden_NE: Tensor) -> Tensor:
        return torch.zeros(len(hidden_NE), VOCAB).index_fill_(1, torch.tensor([3]), 9.0)


class DraftedLoop(EngineLoop):
    """Over the tiny model with a draft model behind it, both in caches full of NaN."""

    def __init__(
        self, model: CausalLM, *, num_blocks: int = 200, ahead: int = 1, max_batch_tokens: int = 24, reads: int = 24
    ) -> None:
        device = PlainDevice()
        scratch = Scratch.behind(num_blocks, COUNT, BLOCK_SIZE)
        caches = []
        for blocks in (num_blocks, num_blocks + scratch.width * (ROWS + 1)):
            caches.append(device.allocate_kv(spec(BLOCK_SIZE), blocks))
            device.poison(range(1, blocks))
        table = StateTable(
            ROWS, LENGTH, BLOCK_SIZE, sampling=SamplingTable(ROWS + 1, VOCAB, (EOS,)), torch_device="cpu"
        )
        upload = uploading(device)
        beside = Beside(
            device, table, Drawing(table.sampling, Ops(), upload), upload, caches[1], scratch, COUNT, buckets=None
        )
        executor = GraphExecutor(
            TinyModel(),
            device,
            table,
            capabilities=DYNAMIC,
            ops=Ops(),
            spec=spec(BLOCK_SIZE),
            num_blocks=num_blocks,
            kv=caches[0],
            buckets=None,
            name="plain",
            drafter=ModelDrafter(model, beside, num_blocks, reads),
        )
        scheduler = Scheduler(
            pool=BlockPool(num_blocks, BLOCK_SIZE),
            max_sequences=ROWS,
            max_length=LENGTH,
            max_batch_tokens=max_batch_tokens,
            eos_token_ids=(EOS,),
            clock=lambda: 0.0,
            speculation=Speculation(COUNT, asks=True, gate=Open()),
        )
        super().__init__(executor, scheduler, ahead)

    @property
    def drafted(self) -> tuple[int, int]:
        """(tokens that were drafted, those that were right)."""
        stats = self.scheduler.stats()
        return stats.draft_tokens, stats.accepted_tokens


@pytest.fixture(scope="module")
def alone() -> Outputs:
    return {key: tokens for own in REQUESTS for key, tokens in Loop(ahead=0).serve([own]).items()}


UNPENALISED = [own for own in REQUESTS if own.params.repetition_penalty == 1 and own.params.presence_penalty == 0]


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("max_batch_tokens", [9, 24])
def test_a_copy_of_the_target_is_always_right(alone: Outputs, ahead: int, max_batch_tokens: int) -> None:
    """Greedy and drawn, prompts in chunks and out of the prefix cache."""
    loop = DraftedLoop(TinyModel(), ahead=ahead, max_batch_tokens=max_batch_tokens)
    found = loop.serve(UNPENALISED)
    assert found == {key: tokens for key, tokens in alone.items() if key in found}
    drafted, right = loop.drafted
    assert drafted > 20
    # Guesses past a sequence's end are never tried.
    assert right == drafted


@pytest.mark.parametrize("num_blocks", [26, 200])
@pytest.mark.parametrize("reads", [3, 24])
def test_together_as_alone(alone: Outputs, num_blocks: int, reads: int) -> None:
    """Also with penalties, preempted, and with a draft model that catches up three tokens a step."""
    loop = DraftedLoop(TinyModel(), num_blocks=num_blocks, reads=reads)
    assert loop.serve(REQUESTS) == alone
    assert (loop.scheduler.stats().preemptions > 0) == (num_blocks == 26)
    assert loop.drafted[1] > 0


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_drafter_that_is_always_wrong_changes_nothing(alone: Outputs, ahead: int) -> None:
    loop = DraftedLoop(Stubborn(), ahead=ahead)
    assert loop.serve(REQUESTS) == alone
    drafted, right = loop.drafted
    assert right < drafted / 4


def test_a_second_prompt_finds_the_first_ones_blocks_read() -> None:
    params = SamplingParams(max_tokens=12)
    loop = DraftedLoop(TinyModel(), reads=8)
    loop.serve([submit(1, SHARED, params), submit(2, SHARED, params), submit(3, SHARED, params)])
    drafted, right = loop.drafted
    assert right == drafted > 0

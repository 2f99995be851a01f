"""Scheduler and executor together, as the engine joins them: whatever the policy does, each request's tokens are the
ones that it gets alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mainspring.core.backend import Capabilities
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.errors import ErrorKind
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.execution.table import StateTable
from mainspring.core.ops import Ops
from mainspring.core.request import FinishReason, RequestId, SamplingParams, Submit
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler
from tests.support.engine_loop import EngineLoop, Outputs
from tests.support.plain_device import DYNAMIC, PlainDevice
from tests.support.tiny_model import GREEDY_TOKEN, NAN_TOKEN, VOCAB, TinyModel, spec

ROWS, LENGTH, BLOCK_SIZE, EOS = 8, 60, 4, 7
BUCKETS = Buckets(
    decode=(Bucket(2, 2, 8), Bucket(8, 8, 15)),
    prefill=(Bucket(8, 8, 15), Bucket(24, 8, 15)),
)
CAPTURED = Buckets(decode=BUCKETS.decode, prefill=())
"""Of a device that captures decodes and takes any other step as it comes."""
OPTIONAL = Buckets(decode=BUCKETS.decode, prefill=BUCKETS.prefill[:1], any_shape=True)
"""Of a device that captures small steps with prefill as well, and chooses tokens in what it captured."""
BUCKETED = Capabilities(compute_dtypes=("float32",), kv_dtypes=("float32",), shapes="bucketed")
CHOOSING = replace(DYNAMIC, asynchronous=True, samples_in_program=True)
SHARED = [11, 45, 23, 8, 64, 2, 31, 77, 15]


class Loop(EngineLoop):
    """Over the tiny model, in a cache full of NaN."""

    def __init__(
        self, *, num_blocks: int = 200, ahead: int = 1, max_batch_tokens: int = 24, buckets: Buckets | None = None
    ) -> None:
        self.device = PlainDevice()
        kv = self.device.allocate_kv(spec(BLOCK_SIZE), num_blocks)
        self.device.poison(range(1, num_blocks))
        sampling = SamplingTable(ROWS + 1, VOCAB, (EOS,))
        executor = GraphExecutor(
            TinyModel(),
            self.device,
            StateTable(ROWS, LENGTH, BLOCK_SIZE, sampling=sampling, torch_device="cpu"),
            capabilities=CHOOSING if buckets is OPTIONAL else BUCKETED if buckets is BUCKETS else DYNAMIC,
            ops=Ops(),
            spec=spec(BLOCK_SIZE),
            num_blocks=num_blocks,
            kv=kv,
            buckets=buckets,
            name="plain",
        )
        scheduler = Scheduler(
            pool=BlockPool(num_blocks, BLOCK_SIZE),
            max_sequences=ROWS,
            max_length=LENGTH,
            max_batch_tokens=max_batch_tokens,
            eos_token_ids=(EOS,),
            buckets=buckets,
            clock=lambda: 0.0,
        )
        super().__init__(executor, scheduler, ahead)


def submit(number: int, tokens: list[int], params: SamplingParams, n: int = 1) -> Submit:
    return Submit(RequestId(number), tokens, params, n=n)


REQUESTS = [
    submit(1, SHARED, SamplingParams(max_tokens=25)),
    submit(2, [*SHARED, 5], SamplingParams(max_tokens=30, temperature=1.0, seed=3)),
    submit(3, SHARED, SamplingParams(max_tokens=20, temperature=0.9, top_k=12, seed=4), n=3),
    submit(4, [9], SamplingParams(max_tokens=40, repetition_penalty=1.3, frequency_penalty=0.2, logprobs=1)),
    submit(5, list(range(20, 60)), SamplingParams(max_tokens=18, temperature=1.3, top_p=0.8, seed=5)),
    submit(6, [*SHARED, 5, 6, 8], SamplingParams(max_tokens=22, min_tokens=22, presence_penalty=0.6)),
    submit(7, [1, 2, 3], SamplingParams(max_tokens=30, temperature=1.0, min_p=0.02, seed=8), n=2),
]


@pytest.fixture(scope="module")
def alone() -> Outputs:
    """Each request in an engine of its own, one step at a time."""
    return {key: tokens for own in REQUESTS for key, tokens in Loop(ahead=0).serve([own]).items()}


def test_the_requests_of_this_test_differ(alone: Outputs) -> None:
    assert len(alone) == 10
    assert len({tuple(tokens) for tokens in alone.values()}) == 10


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("max_batch_tokens", [9, 24, 200])
def test_together_as_alone(alone: Outputs, ahead: int, max_batch_tokens: int) -> None:
    loop = Loop(ahead=ahead, max_batch_tokens=max_batch_tokens)
    assert loop.serve(REQUESTS) == alone
    # A budget that admits everything in one step leaves nobody to share with.
    assert (loop.scheduler.stats().prefix_hits > 0) == (max_batch_tokens < 200)


@pytest.mark.parametrize("ahead", [0, 1])
def test_together_as_alone_in_a_cache_that_is_too_small(alone: Outputs, ahead: int) -> None:
    loop = Loop(num_blocks=26, ahead=ahead)
    assert loop.serve(REQUESTS) == alone
    assert loop.scheduler.stats().preemptions > 0


@pytest.mark.parametrize("num_blocks", [26, 200])
@pytest.mark.parametrize("buckets", [BUCKETS, OPTIONAL], ids=["static", "optional"])
def test_together_as_alone_in_buckets(alone: Outputs, num_blocks: int, buckets: Buckets) -> None:
    assert Loop(num_blocks=num_blocks, buckets=buckets).serve(REQUESTS) == alone


def test_steps_beyond_optional_buckets_run_in_their_own_shape() -> None:
    loop = Loop(buckets=OPTIONAL)
    met = []
    execute = loop.executor.execute
    loop.executor.execute = lambda batch: met.append(batch) or execute(batch)  # type: ignore[method-assign,func-returns-value]
    loop.serve([submit(1, list(range(20)), SamplingParams(max_tokens=3)), submit(2, [1, 2, 3], SamplingParams())])
    shapes = {(batch.num_tokens > 8, batch.bucket is None) for batch in met}
    assert shapes == {(True, True), (False, False)}


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(
    "buckets", [None, BUCKETS, CAPTURED, OPTIONAL], ids=["dynamic", "static", "captured", "optional"]
)
def test_nan_ends_its_request_and_no_other(alone: Outputs, ahead: int, buckets: Buckets | None) -> None:
    """A request with the victim's very prefix comes later, and must not find the victim's blocks."""
    poisoned = [*SHARED[:4], NAN_TOKEN, 1, 2, 3, 4]
    victims = [submit(number, poisoned, SamplingParams(max_tokens=9)) for number in (80, 81)]
    loop = Loop(ahead=ahead, buckets=buckets)
    outputs = loop.serve([*REQUESTS[:3], *victims, *REQUESTS[3:]])
    assert {key: tokens for key, tokens in outputs.items() if key[0] < 80} == alone
    assert loop.errors() == {80: ErrorKind.NUMERICAL, 81: ErrorKind.NUMERICAL}


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_step_out_of_memory_ends_those_in_it_and_no_others(alone: Outputs, ahead: int) -> None:
    loop = Loop(ahead=ahead)
    loop.serve([submit(90, [1, GREEDY_TOKEN], SamplingParams(max_tokens=5))])
    assert loop.errors() == {90: ErrorKind.OUT_OF_MEMORY}
    again = Loop(ahead=ahead)
    again.scheduler.submit(submit(90, [1, GREEDY_TOKEN], SamplingParams(max_tokens=5)))
    batch = again.scheduler.schedule()
    assert batch is not None
    again.flying.append((batch, again.executor.execute(batch)))
    outputs = again.serve(REQUESTS)
    assert again.errors() == {90: ErrorKind.OUT_OF_MEMORY}
    assert {key: tokens for key, tokens in outputs.items() if key[0] != 90} == alone


def test_every_sequence_ends_once() -> None:
    loop = Loop()
    loop.serve(REQUESTS)
    finishes = [(delta.request_id, delta.index, delta.finish) for delta in loop.deltas if delta.finish is not None]
    assert len(finishes) == len({finish[:2] for finish in finishes}) == 10
    assert {finish[2] for finish in finishes} <= {FinishReason.EOS, FinishReason.LENGTH}

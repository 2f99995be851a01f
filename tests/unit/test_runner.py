"""GraphExecutor on the reference device with a tiny model: the same tokens however a step is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mainspring.core.backend import AttentionMetadata, Capabilities, Program
from mainspring.core.batch import Batch, Bucket, Buckets
from mainspring.core.errors import DeviceOutOfMemory
from mainspring.core.execution.inputs import StepTensors, exact_shape, fill, padded_shape, view
from mainspring.core.execution.memory import is_out_of_memory
from mainspring.core.execution.pending import Enqueued, Staging
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.execution.table import StateTable
from mainspring.core.execution.warmup import FLOOR_SECONDS, dummy_batches
from mainspring.core.grammar.guides import NO_GUESSES, Guesses, GuidedElsewhere, Guiding
from mainspring.core.grammar.protocol import Mask
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.ops import Ops
from mainspring.core.processors.loading import load_processors
from mainspring.core.request import Grammar, LogitsProcessing, SamplingParams
from tests.support.by_hand import Running, plan, run
from tests.support.plain_device import DYNAMIC, PlainDevice
from tests.support.tiny_model import GREEDY_TOKEN, NAN_TOKEN, VOCAB, TinyModel, all_logits, spec

ROWS, LENGTH, BLOCKS, BLOCK_SIZE = 6, 40, 64, 4
BUCKETS = Buckets(
    decode=(Bucket(2, 2, 4), Bucket(4, 4, 10), Bucket(8, 8, 10)),
    prefill=(Bucket(8, 4, 10), Bucket(64, 8, 10)),
)
ASYNCHRONOUS = replace(DYNAMIC, asynchronous=True)
BUCKETED = replace(DYNAMIC, shapes="bucketed")
CHOOSING = replace(ASYNCHRONOUS, samples_in_program=True)

Make = Callable[..., GraphExecutor]


def state_table(eos: tuple[int, ...] = ()) -> StateTable:
    sampling = SamplingTable(ROWS + 1, VOCAB, eos, processors=load_processors({}, VOCAB))
    return StateTable(ROWS, LENGTH, BLOCK_SIZE, sampling=sampling, torch_device="cpu")


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[GraphExecutor] = []

    def build(
        device: PlainDevice | None = None,
        capabilities: Capabilities = DYNAMIC,
        model: TinyModel | None = None,
        guides: Guiding | None = None,
    ) -> GraphExecutor:
        device = device or PlainDevice()
        executor = GraphExecutor(
            model or TinyModel(),
            device,
            state_table(),
            capabilities=capabilities,
            ops=Ops(),
            spec=spec(BLOCK_SIZE),
            num_blocks=BLOCKS,
            kv=device.allocate_kv(spec(BLOCK_SIZE), BLOCKS),
            buckets=BUCKETS,
            name="plain",
            guides=guides,
        )
        made.append(executor)
        return executor

    yield build
    for executor in made:
        executor.close()


def reference(prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy tokens by recomputing everything for each of them, without an executor."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(all_logits(tokens, BLOCK_SIZE)[-1].argmax()))
    return tokens[len(prompt) :]


def prompts(lengths: tuple[int, ...] = (1, 5, 11, 16, 3)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(0, 90, (length,), generator=generator).tolist() for length in lengths]


def running(params: list[SamplingParams] | None = None, inputs: list[list[int]] | None = None) -> list[Running]:
    """Rows and blocks out of order, as a scheduler would leave them after a while."""
    inputs = inputs or prompts()
    rows = [3, 0, 5, 1, 4, 2][: len(inputs)]
    return [
        Running(
            row=rows[index],
            prompt=prompt,
            blocks=[1 + (10 * index + block) * 8 % (BLOCKS - 1) for block in range(10)],
            params=params[index % len(params)] if params else SamplingParams(),
            seed=100 + index,
        )
        for index, prompt in enumerate(inputs)
    ]


WATERMARK = LogitsProcessing("watermark", (0.4, 3.0, 7))
MIXED = [
    SamplingParams(temperature=1.0),
    SamplingParams(),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.2),
    SamplingParams(frequency_penalty=0.5, presence_penalty=0.5, logprobs=2),
    SamplingParams(temperature=1.2, min_p=0.05, logit_bias={3: 1.0}, processors=(WATERMARK,)),
]


def test_blocks_of_the_test_s_sequences_do_not_overlap() -> None:
    blocks = [block for sequence in running() for block in sequence.blocks]
    assert len(set(blocks)) == len(blocks)


# --- the same tokens, however


@pytest.mark.parametrize("chunk", [1000, 4, 1])
@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("capabilities", [DYNAMIC, ASYNCHRONOUS], ids=["worker", "inline"])
def test_greedy_tokens_are_the_reference_s(make: Make, chunk: int, ahead: int, capabilities: Capabilities) -> None:
    executor = make(capabilities=capabilities)
    expected = [reference(prompt, 12) for prompt in prompts()]
    assert run(executor, running(), 12, chunk=chunk, ahead=ahead) == expected


@pytest.mark.parametrize("capabilities", [DYNAMIC, BUCKETED, CHOOSING], ids=["padded", "static", "choosing"])
@pytest.mark.parametrize("warm", [False, True])
def test_padding_to_buckets_is_inert(make: Make, capabilities: Capabilities, warm: bool) -> None:
    expected = run(make(), running(MIXED), 12, chunk=6)
    executor = make(capabilities=capabilities)
    if warm:
        executor.warmup(lambda phase, done, total: None, 64)
    assert run(executor, running(MIXED), 12, chunk=6, ahead=1, buckets=BUCKETS) == expected


DRAWN = [
    SamplingParams(temperature=0.9, top_k=12, top_p=0.8),
    SamplingParams(),
    SamplingParams(temperature=1.3, min_p=0.02),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=40),
]
"""What a program chooses by itself."""


def test_programs_choose_what_is_chosen_behind_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(make(), running(DRAWN), 12, chunk=6)
    executor = make(capabilities=CHOOSING)
    monkeypatch.setattr(SamplingTable, "select", None)
    assert run(executor, running(DRAWN), 12, chunk=6, ahead=1, buckets=BUCKETS) == expected


@pytest.mark.parametrize(
    "wish",
    [
        {"logprobs": 0},
        {"repetition_penalty": 1.1},
        {"frequency_penalty": 0.1},
        {"presence_penalty": -0.1},
        {"logit_bias": {3: 1.0}},
        {"min_tokens": 2},
        {"processors": (WATERMARK,)},
        {"temperature": 1.0, "typical_p": 0.9},
    ],
    ids=lambda wish: next(reversed(wish)),
)
def test_a_program_is_told_when_a_row_needs_more_than_its_own_choice(wish: dict[str, object]) -> None:
    table = SamplingTable(3, VOCAB, (2,))
    for row, params in enumerate((DRAWN[0], SamplingParams(**wish))):  # type: ignore[arg-type]
        table.admit(row, params, seed=row, num_prompt_tokens=1)
    assert [table.demands(np.array(rows)) for rows in ([0, 2], [0, 1], [1])] == [False, True, True]
    table.admit(1, SamplingParams(), seed=0, num_prompt_tokens=1)
    assert not table.demands(np.array([0, 1, 2]))


def test_running_ahead_gives_sampled_tokens_too(make: Make) -> None:
    in_step = run(make(), running(MIXED), 20, chunk=5)
    assert run(make(), running(MIXED), 20, chunk=5, ahead=1) == in_step
    assert run(make(capabilities=ASYNCHRONOUS), running(MIXED), 20, chunk=7, ahead=2) == in_step


@pytest.mark.parametrize("index", range(5))
def test_a_request_alone_gets_the_tokens_that_it_gets_in_company(make: Make, index: int) -> None:
    together = run(make(), running(MIXED), 15)
    assert run(make(), [running(MIXED)[index]], 15) == [together[index]]


def test_a_row_and_its_blocks_serve_a_second_sequence(make: Make) -> None:
    """Freed blocks are poisoned: nothing of the former owner may be read, and nothing of it may count as history."""
    device = PlainDevice()
    executor = make(device)
    first, second = running(MIXED), running(MIXED, prompts((9, 2, 6, 1, 13)))
    run(executor, first, 14)
    device.poison(range(BLOCKS))
    expected = run(make(), running(MIXED, prompts((9, 2, 6, 1, 13))), 14)
    assert run(executor, second, 14, chunk=3, ahead=1) == expected
    assert not any(sequence.bad for sequence in second)


def test_a_new_request_in_a_row_brings_its_own_parameters(make: Make) -> None:
    """The rows of both steps are the same; the requests are not."""
    executor = make()
    first, second = (Running(0, [1, 2, 3], [1, 2], SamplingParams(temperature=9.0), seed) for seed in (1, 2))
    tokens = [run(executor, [sequence], 1)[0] for sequence in (first, second)]
    assert tokens == [run(make(), [Running(0, [1, 2, 3], [1, 2], first.params, seed)], 1)[0] for seed in (1, 2)]
    assert tokens[0] != tokens[1]


def test_a_new_sequence_in_a_row_inherits_no_blocks() -> None:
    table = state_table()
    table.update(Batch(0, admissions=[Running(2, [1], [5, 6, 7]).admission()]))
    table.update(Batch(1, admissions=[Running(2, [1], [8]).admission()], new_blocks=[(2, 2, 9)]))
    assert table.blocks[2].tolist() == [8, 0, 9, 0, 0, 0, 0, 0, 0, 0]


# --- what the scheduler does with running sequences


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_preempted_sequence_continues_exactly(make: Make, ahead: int) -> None:
    """It comes back in another row with other blocks, its output part of what is computed again."""
    expected = run(make(), running(MIXED), 16)
    device = PlainDevice()
    executor = make(device)
    sequences = running(MIXED)
    run(executor, sequences, 7, ahead=ahead)
    device.poison(range(BLOCKS))
    resumed = [
        replace(
            old,
            row=(old.row + 1) % ROWS,
            prompt=old.prompt + old.output,
            num_prompt_tokens=len(old.prompt),
            blocks=sequences[index - 1].blocks,
            computed=0,
            output=[],
            planned=0,
        )
        for index, old in enumerate(sequences)
    ]
    rest = run(executor, resumed, 9, chunk=5, ahead=ahead)
    assert [old.output + new for old, new in zip(sequences, rest, strict=True)] == expected


def test_blocks_arrive_while_a_sequence_runs(make: Make) -> None:
    [sequence] = running(inputs=prompts((11,)))
    blocks, sequence.blocks = sequence.blocks, sequence.blocks[:3]
    executor = make()
    for step in range(12):
        batch = plan(step, [sequence], 100)
        if batch.starts[0] and batch.starts[0] % BLOCK_SIZE == 0:
            index = batch.starts[0] // BLOCK_SIZE
            batch.new_blocks.append((sequence.row, index, blocks[index]))
        sequence.output += executor.execute(batch).result().tokens
    assert sequence.output == reference(sequence.prompt, 12)


def test_copy_on_write(make: Make) -> None:
    """A fork shares full blocks, copies the partial one in the step that writes to it, and then differs."""
    device = PlainDevice()
    executor = make(device)
    [parent] = running(inputs=prompts((10,)))
    run(executor, [parent], 1)
    child_prompt = [*parent.prompt, parent.output[0] ^ 1]
    child = Running(row=0, prompt=child_prompt, blocks=[*parent.blocks[:2], *range(60, 64)], computed=10)
    batch = plan(0, [child, parent], 100)
    batch.admissions.append(child.admission())
    batch.copies.append((parent.blocks[2], 60))
    first = executor.execute(batch).result().tokens
    assert device.kv is not None
    assert not torch.equal(device.kv.keys[0][60], device.kv.keys[0][parent.blocks[2]])
    by_row = dict(zip(batch.rows, first, strict=True))
    assert by_row[child.row] == reference(child_prompt, 1)[0]
    assert by_row[parent.row] == reference(parent.prompt, 2)[1]


# --- what goes wrong


@pytest.mark.parametrize("capabilities", [DYNAMIC, BUCKETED, CHOOSING], ids=["dynamic", "static", "choosing"])
@pytest.mark.parametrize("victim", range(5))
def test_a_row_of_nan_is_reported_and_its_neighbours_do_not_change(
    make: Make, victim: int, capabilities: Capabilities
) -> None:
    buckets = None if capabilities is DYNAMIC else BUCKETS
    clean = run(make(capabilities=capabilities), running(MIXED), 10, buckets=buckets)
    inputs = prompts()
    inputs[victim] = [*inputs[victim][:-1], NAN_TOKEN]
    sequences = running(MIXED, inputs)
    found = run(make(capabilities=capabilities), sequences, 10, ahead=1, buckets=buckets)
    assert [sequence.bad for sequence in sequences] == [index == victim for index in range(5)]
    assert all(0 <= token < VOCAB for token in found[victim])
    assert all(found[index] == clean[index] for index in range(5) if index != victim)
    assert sequences[victim].logprobs == [None] * 10 or victim != 3


@pytest.mark.parametrize("capabilities", [DYNAMIC, ASYNCHRONOUS], ids=["worker", "inline"])
def test_a_step_that_does_not_fit_fails_alone(make: Make, capabilities: Capabilities) -> None:
    executor = make(capabilities=capabilities)
    survivors = running(MIXED)[:4]
    expected = run(make(), running(MIXED)[:4], 12)
    run(executor, survivors, 4)
    greedy = Running(row=4, prompt=[1, GREEDY_TOKEN, 2], blocks=[61, 62, 63])
    failing = executor.execute(plan(4, [greedy], 100))
    with pytest.raises(DeviceOutOfMemory, match=r"a step of 3 tokens did not fit: .*allocate"):
        failing.result()
    assert failing.done()
    for sequence in survivors:
        sequence.output.clear()
    rest = run(executor, survivors, 12)
    assert rest == [tokens[4:] for tokens in expected]


def test_other_errors_are_not_mistaken_for_memory(make: Make) -> None:
    class Broken(TinyModel):
        def logits(self, hidden_NE: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("the device fell off the bus")

    pending = make(model=Broken()).execute(plan(0, running(), 100))
    with pytest.raises(RuntimeError, match="fell off the bus"):
        pending.result()
    assert pending.done()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("no"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Attempting to allocate 1.2G"), True),
        (RuntimeError("HIP out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("device-side assert triggered"), False),
    ],
)
def test_errors_about_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


# --- what a step costs and yields


def test_only_rows_that_choose_get_logits(make: Make) -> None:
    model = TinyModel()
    executor = make(model=model)
    sequences = running(inputs=prompts((12, 1)))
    first = executor.execute(plan(0, sequences, 4)).result()
    assert (len(first.tokens), model.steps[-1]) == (1, (5, 1))
    second = executor.execute(plan(1, sequences[:1], 4)).result()
    assert (second.tokens, model.steps[-1]) == ([], (4, -1))


def test_logprobs_come_in_order_for_those_who_asked(make: Make) -> None:
    params = [SamplingParams(), SamplingParams(logprobs=3), SamplingParams(logprobs=0, temperature=1.0)]
    sequences = running(params, prompts((4, 6, 5)))
    run(make(), sequences, 3)
    silent, loud, quiet = sequences
    assert silent.logprobs == [None] * 3
    assert [(len(entry.top_ids), entry.top_ids[0]) for entry in loud.logprobs if entry] == [
        (3, token) for token in loud.output
    ]
    assert all(entry and entry.logprob == pytest.approx(entry.top_logprobs[0]) for entry in loud.logprobs)
    assert all(entry and entry.top_ids == [] and entry.logprob < 0 for entry in quiet.logprobs)


def test_steps_without_logprobs_say_so(make: Make) -> None:
    assert make().execute(plan(0, running(), 100)).result().logprobs is None


class NoWaiting(TorchDispatchMode):
    """Refuses operations that make the host wait for a device's values."""

    WAITING: ClassVar = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith(("index", "_index")) and isinstance(args[1], (list, tuple)) else ()
        masks = [index for index in indices if index is not None and index.dtype == torch.bool]
        assert name not in self.WAITING, name
        assert not masks, f"{name} by a mask counts its true elements on the host"
        return func(*args, **(kwargs or {}))


class Blind(TinyModel):
    """Attends to nothing: the reference attention reads row lengths on the host, which backends' own do not."""

    def forward(self, tokens_T: torch.Tensor, positions_T: torch.Tensor, step: AttentionStep) -> torch.Tensor:
        return torch.tanh(self.embedding_VE[tokens_T] + self.position_PE[positions_T])

    def logits(self, hidden_NE: torch.Tensor) -> torch.Tensor:
        return hidden_NE @ self.head_VE.T


@pytest.mark.parametrize("shapes", ["dynamic", "bucketed"])
def test_enqueueing_a_step_never_waits_for_the_device(make: Make, shapes: Literal["dynamic", "bucketed"]) -> None:
    executor = make(capabilities=replace(ASYNCHRONOUS, shapes=shapes), model=Blind())
    params = [
        *MIXED[:4],
        SamplingParams(
            temperature=1.0,
            typical_p=0.5,
            min_p=0.1,
            min_tokens=9,
            logit_bias={1: 2.0},
            logprobs=1,
            processors=(WATERMARK,),
        ),
    ]
    sequences = running(params)
    for step in range(4):
        batch = plan(step, sequences, 4, BUCKETS if shapes == "bucketed" else None)
        batch.copies.append((1, 2))
        with NoWaiting():
            pending = executor.execute(batch)
        assert len(pending.result().tokens) == sum(batch.samples)


class Chain(GuidedElsewhere):
    """Allows what is one more than the token before, beginning at 1, and notes when it is asked."""

    def __init__(self) -> None:
        super().__init__(VOCAB)
        self.log: list[str] = []
        self._next = {0: 1}
        self._told: Callable[[], Sequence[int]] | None = None

    def expect(
        self,
        rows: Sequence[int],
        places: Sequence[int],
        tokens: Callable[[], Sequence[int]],
        guesses: Guesses = NO_GUESSES,
    ) -> None:
        self._told = lambda: [tokens()[place] for place in places]

    def catch_up(self) -> None:
        if self._told is not None:
            self.log.append("tokens")
            self._next = {place: token + 1 for place, token in enumerate(self._told())}
            self._told = None

    def masks(self, rows: Sequence[int], guesses: Guesses = NO_GUESSES) -> Mask:
        self.log.append("masks")
        masks_GW = super().masks(rows)
        for place in range(len(rows)):
            word, bit = divmod(self._next[place], 32)
            masks_GW[place, word] = 1 << bit
        return masks_GW


def test_masks_wait_until_the_tokens_before_them_have_been_told(make: Make) -> None:
    """An engine lands a step after it has enqueued the next; nobody's tokens wait for that one's grammars."""
    guides = Chain()
    executor = make(capabilities=CHOOSING, guides=guides)
    sequences = running([SamplingParams(temperature=1.0, grammar=Grammar("chain", ""))], prompts((5, 3))[:1])
    flying = executor.execute(plan(0, sequences, 8))
    found = []
    for step in range(1, 5):
        following = executor.execute(plan(step, sequences, 8))
        guides.log.append("landing")
        found += flying.result().tokens
        guides.log.append("landed")
        flying = following
    found += flying.result().tokens
    assert found == [1, 2, 3, 4, 5]
    assert guides.log[:5] == ["masks", "landing", "landed", "tokens", "masks"]


class Counting(PlainDevice):
    """Counts what is asked of the host's memory and of the compiler."""

    def __init__(self, buckets: Buckets | None = None) -> None:
        super().__init__(buckets)
        self.allocations = 0
        self.compiled: list[Bucket | None] = []
        self.inputs: dict[int, set[int]] = {}

    def pinned(self, shape, dtype):  # type: ignore[no-untyped-def]
        self.allocations += 1
        return super().pinned(shape, dtype)

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        self.compiled.append(bucket)
        index = len(self.compiled)

        def recorded(inputs: StepTensors, plan: AttentionMetadata) -> torch.Tensor:
            self.inputs.setdefault(index, set()).add(id(inputs))
            return program(inputs, plan)

        return recorded


def test_results_come_back_in_one_contiguous_copy() -> None:
    staging = Staging(torch.zeros(4, dtype=torch.int32), torch.zeros(32, dtype=torch.int32))
    enqueued = Enqueued(2, PlainDevice().event(), staging)
    # Four rows ran, of which two are padding; the second of the others is bad.
    enqueued.take(torch.tensor([[5, 6, 7, 8], [0, 1, 1, 1]], dtype=torch.int32))
    assert staging.results[:8].tolist() == [5, 6, 7, 8, 0, 1, 1, 1]
    result = enqueued.collect()
    assert (result.tokens, result.bad) == ([5, 6], (1,))


def test_warmup_without_prefill_buckets_takes_the_whole_budget_first() -> None:
    buckets = Buckets(decode=BUCKETS.decode, prefill=())
    for budget, expected in ((30, 30), (1000, LENGTH)):
        first, *others = dummy_batches(buckets, state_table(), budget)
        assert (first.bucket, first.num_tokens) == (None, expected)
        assert [batch.bucket for batch in others] == list(reversed(BUCKETS.decode))


def test_warmup_leaves_prefills_that_need_no_bucket_for_later_but_for_the_largest() -> None:
    buckets = replace(BUCKETS, any_shape=True)
    largest = BUCKETS.prefill[-1]
    expected = [None, largest, *reversed(BUCKETS.decode)]
    assert [batch.bucket for batch in dummy_batches(buckets, state_table(), 30)] == expected


def test_steady_decoding_allocates_no_host_memory(make: Make) -> None:
    device = Counting()
    executor = make(device)
    counts: list[int] = []
    run(executor, running(MIXED[:3]), 20, ahead=1, after_step=lambda: counts.append(device.allocations))
    # Only when the packed integers outgrow their buffers, which double.
    assert counts[-1] - counts[4] <= 2


def test_warmup_compiles_every_bucket_once_largest_first(make: Make) -> None:
    device = Counting()
    executor = make(device)
    seen: list[tuple[int, int]] = []
    executor.warmup(lambda phase, done, total: seen.append((done, total)), 64)
    assert device.compiled == [Bucket(64, 8, 10), Bucket(8, 4, 10), Bucket(8, 8, 10), Bucket(4, 4, 10), Bucket(2, 2, 4)]
    assert seen == [(done, 5) for done in range(6)]
    run(executor, running(MIXED), 8, chunk=6, buckets=BUCKETS)
    assert len(device.compiled) == 5
    # A captured program reads the addresses that it was captured with.
    assert all(len(inputs) == 1 for inputs in device.inputs.values())


def test_warmup_leaves_no_trace_in_the_cache(make: Make) -> None:
    device = PlainDevice()
    make(device).warmup(lambda phase, done, total: None, 64)
    assert device.kv is not None
    assert all(not cache.any() for cache in (*device.kv.keys, *device.kv.values))


def test_step_seconds_is_generous_and_grows(make: Make) -> None:
    executor = make()
    executor.warmup(lambda phase, done, total: None, 64)
    small, large = plan(0, running(), 1), plan(0, running(), 100)
    assert FLOOR_SECONDS <= executor.step_seconds(small) < executor.step_seconds(large) < 2 * FLOOR_SECONDS


def test_closing_gives_the_device_back_once() -> None:
    device = PlainDevice()
    GraphExecutor(
        TinyModel(),
        device,
        state_table(),
        capabilities=DYNAMIC,
        ops=Ops(),
        spec=spec(),
        num_blocks=BLOCKS,
        kv=device.allocate_kv(spec(), BLOCKS),
        buckets=None,
        name="plain",
    ).close()
    assert device.closed == 1


# --- the integers of a step


def mixed_batch() -> tuple[Batch, StateTable]:
    table = state_table()
    batch = Batch(0, rows=[2, 0, 4], starts=[9, 3, 4], counts=[1, 1, 6], samples=[True, True, False])
    batch.num_decodes, batch.num_tokens = 2, 8
    table.blocks[2, :3], table.blocks[0, :1], table.blocks[4, :3] = (7, 8, 9), 5, (20, 21, 22)
    return batch, table


def test_integers_of_a_step() -> None:
    batch, table = mixed_batch()
    shape = exact_shape(batch, BLOCK_SIZE)
    buffer = np.full(shape.words, 99, dtype=np.int32)
    assert fill(buffer, batch, table, shape).tolist() == [2, 0]
    step = view(torch.from_numpy(buffer), shape)
    metadata = step.metadata
    assert metadata.query_start.tolist() == [0, 1, 2, 8]
    assert metadata.kv_length.tolist() == [10, 4, 10]
    assert metadata.block_table.tolist() == [[7, 8, 9], [5, 0, 0], [20, 21, 22]]
    assert metadata.slot.tolist() == [9 * 4 + 1, 5 * 4 + 3, *range(21 * 4, 21 * 4 + 4), 22 * 4, 22 * 4 + 1]
    assert (metadata.max_query, metadata.max_kv, metadata.num_decodes) == (6, 10, 2)
    assert step.positions.tolist() == [9, 3, 4, 5, 6, 7, 8, 9]
    assert step.token_rows.tolist() == [2, 0, 4, 4, 4, 4, 4, 4]
    assert [step.sample_index.tolist(), step.sample_rows.tolist(), step.sample_positions.tolist()] == [
        [0, 1],
        [2, 0],
        [10, 4],
    ]


def test_integers_of_padding_are_inert() -> None:
    batch, table = mixed_batch()
    shape = padded_shape(Bucket(12, 5, 4), BLOCK_SIZE, decode=False)
    buffer = np.full(shape.words, 99, dtype=np.int32)
    fill(buffer, batch, table, shape)
    step = view(torch.from_numpy(buffer), shape)
    metadata = step.metadata
    assert metadata.query_start.tolist() == [0, 1, 2, 8, 8, 8]
    assert metadata.kv_length.tolist() == [10, 4, 10, 0, 0]
    assert metadata.block_table.tolist()[3:] == [[0] * 4] * 2
    assert metadata.slot.tolist()[8:] == [-1] * 4
    assert (metadata.max_query, metadata.max_kv, metadata.num_decodes) == (12, 16, 0)
    assert step.token_rows.tolist()[8:] == [table.nobody] * 4
    assert step.sample_rows.tolist() == [2, 0, *[table.nobody] * 3]
    assert step.sample_positions.tolist() == [10, 4, *[LENGTH] * 3]

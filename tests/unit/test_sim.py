"""The simulated backend: the same text however it is computed, a wrong text for a wrong plan, and faults on order."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest

from mainspring.backends.sim.device import SimBackend, parse_options
from mainspring.backends.sim.executor import SimExecutor
from mainspring.backends.sim.latency import MACHINES, step_cost
from mainspring.core.backend import ExecutorRequest, KVSpec
from mainspring.core.batch import Batch, PromptRange
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError, DeviceOutOfMemory
from mainspring.core.request import SamplingParams, TokenLogprobs
from tests.support.model_directory import TINY
from tests.support.plans import GREEDY, Planner, run

BLOCK = 4
PROMPT = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
OTHER = [11, 12, 13, 14, 15, 16, 17, 18, 21]


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def executor(clock: Clock | None = None, *, index: int = 0, **options: str) -> SimExecutor:
    """A simulated machine with 64 blocks of 4 tokens."""
    clock = clock or Clock()
    backend = SimBackend(clock, clock.sleep)
    request = ExecutorRequest(
        model=TINY,
        engine=EngineConfig(model="tiny", max_sequences=8, max_batch_tokens=64, backend_options=options),
        max_length=256,
        kv=KVSpec(TINY.num_layers, TINY.num_kv_heads, TINY.head_dim, "float32", BLOCK),
        num_blocks=64,
        device=backend.devices()[index],
    )
    return backend.executor(request)


def generate(
    prompt: list[int], count: int, params: SamplingParams = GREEDY, *, seed: int = 0, **options: str
) -> list[int]:
    """A prompt's own text: alone on the machine, prefilled in one piece."""
    machine, planner = executor(**options), Planner(BLOCK)
    tokens = run(machine, planner.prefill(planner.admission(prompt, params, seed=seed))).tokens
    while len(tokens) < count:
        tokens += run(machine, planner.decode(0)).tokens
    return tokens


# The same text however it is computed


def test_text_depends_on_the_whole_prompt_and_on_nothing_else() -> None:
    assert generate(PROMPT, 12) == generate(PROMPT, 12)
    assert generate(PROMPT, 12) != generate([10, *PROMPT[1:]], 12)
    assert len(set(generate(PROMPT, 12))) > 6


def test_neighbours_and_chunks_change_nothing() -> None:
    machine, planner = executor(), Planner(BLOCK)
    first, second = planner.admission(PROMPT), planner.admission(OTHER)
    assert run(machine, planner.prefill(first, second, stop=3)).tokens == []
    both = planner.prefill(first, start=3)
    both.admissions.clear()
    rest = planner.prefill(second, start=3)
    tokens = [run(machine, both).tokens, run(machine, rest).tokens]
    for _ in range(6):
        for own, token in zip(tokens, run(machine, planner.decode(0, 1)).tokens, strict=True):
            own.append(token)
    assert tokens == [generate(PROMPT, 7), generate(OTHER, 7)]


def test_a_preempted_sequence_goes_on_with_the_same_text() -> None:
    alone = generate(PROMPT, 10)
    machine, planner = executor(), Planner(BLOCK)
    again = planner.admission([*PROMPT, *alone[:4]], num_prompt_tokens=len(PROMPT))
    tokens = run(machine, planner.prefill(again)).tokens
    tokens += run(machine, planner.decode(0)).tokens
    assert tokens == alone[4:6]


def test_a_prefix_hit_continues_from_the_cached_blocks() -> None:
    machine, planner = executor(), Planner(BLOCK)
    run(machine, planner.prefill(planner.admission(PROMPT)))
    hit = planner.admission(OTHER, blocks=[1, 2, 60, 61])
    tokens = run(machine, planner.prefill(hit, start=8)).tokens
    tokens += run(machine, planner.decode(hit.row)).tokens
    assert tokens == generate(OTHER, 2)


def test_a_copied_block_is_as_good_as_the_original() -> None:
    machine, planner = executor(), Planner(BLOCK)
    run(machine, planner.prefill(planner.admission(PROMPT)))
    hit = planner.admission(OTHER, blocks=[1, 50, 51])
    batch = planner.prefill(hit, start=8)
    batch.copies.append((2, 50))
    assert run(machine, batch).tokens == generate(OTHER, 1)


# A wrong text for a wrong plan


def wrong_from(prefix_blocks: list[int]) -> tuple[list[int], list[int]]:
    """What OTHER gives when its first two blocks are `prefix_blocks`, and what it should give."""
    machine, planner = executor(), Planner(BLOCK)
    run(machine, planner.prefill(planner.admission(PROMPT)))
    run(machine, planner.prefill(planner.admission([90, *PROMPT[1:]])))
    hit = planner.admission(OTHER, blocks=[*prefix_blocks, 60, 61])
    tokens = run(machine, planner.prefill(hit, start=8)).tokens
    return tokens, generate(OTHER, 1)


@pytest.mark.parametrize("blocks", [[1, 10], [9, 2], [2, 1], [1, 40]], ids=["second", "first", "order", "unwritten"])
def test_f9_a_stale_prefix_block_gives_a_wrong_token(blocks: list[int]) -> None:
    tokens, expected = wrong_from(blocks)
    assert tokens != expected


def test_the_right_prefix_blocks_give_the_right_token() -> None:
    tokens, expected = wrong_from([1, 2])
    assert tokens == expected


def test_f9_a_block_that_somebody_else_overwrites_is_noticed_while_decoding() -> None:
    machine, planner = executor(), Planner(BLOCK)
    tokens = run(machine, planner.prefill(planner.admission(PROMPT))).tokens
    run(machine, planner.prefill(planner.admission([70, 71, 72, 73, 74], blocks=[1, 40])))
    for _ in range(6):
        tokens += run(machine, planner.decode(0)).tokens
    assert tokens != generate(PROMPT, 7)


def test_an_exchanged_block_without_its_contents_is_noticed() -> None:
    machine, planner = executor(), Planner(BLOCK)
    tokens = run(machine, planner.prefill(planner.admission(PROMPT))).tokens
    batch = planner.decode(0)
    batch.new_blocks.append((0, 2, 60))
    tokens += run(machine, batch).tokens
    assert tokens != generate(PROMPT, 2)


def test_without_verification_a_wrong_plan_goes_unnoticed() -> None:
    machine, planner = executor(verify="false"), Planner(BLOCK)
    hit = planner.admission(OTHER, blocks=[40, 41, 42])
    assert run(machine, planner.prefill(hit, start=8)).tokens == generate(OTHER, 1)


def test_plans_that_contradict_themselves_are_refused() -> None:
    machine, planner = executor(), Planner(BLOCK)
    admission = planner.admission(PROMPT)
    miscounted = planner.prefill(admission)
    miscounted.num_tokens -= 1
    beyond = planner.prefill(admission)
    beyond.counts[0] = beyond.num_tokens = 11
    reserved = planner.prefill(dataclasses.replace(admission, blocks=[0, 1, 2]))
    gap = planner.prefill(dataclasses.replace(admission, blocks=[1, 2]))
    gap.new_blocks.append((0, 3, 5))
    for batch, problem in (
        (miscounted, "has 10 tokens and says 9"),
        (beyond, "of a sequence of 10 tokens"),
        (reserved, "block 0 is not one of 1 to 63"),
        (gap, "leaves a gap"),
        (Batch(9), "lists of"),
    ):
        with pytest.raises(ValueError, match=problem):
            machine.execute(batch)


# Sampling


def test_seeds_matter_to_sampling_and_not_to_greedy() -> None:
    warm = SamplingParams(temperature=0.7)
    assert generate(PROMPT, 8, warm, seed=1) == generate(PROMPT, 8, warm, seed=1)
    assert generate(PROMPT, 8, warm, seed=1) != generate(PROMPT, 8, warm, seed=2)
    assert generate(PROMPT, 8, seed=1) == generate(PROMPT, 8, seed=2)


def test_tokens_come_from_the_vocabulary_and_end_by_chance_only() -> None:
    assert set(generate(PROMPT, 20, vocabulary="100-104")) <= {100, 101, 102, 103}
    assert set(generate(PROMPT, 20, vocabulary="1-4")) == {1, 3}
    assert set(generate(PROMPT, 3, eos="1")) == {2}
    assert 2 not in generate(PROMPT, 3, SamplingParams(ignore_eos=True), eos="1")
    assert generate(PROMPT, 4, SamplingParams(min_tokens=2), eos="1")[2:] == [2, 2]
    assert 2 not in generate(PROMPT, 4, SamplingParams(min_tokens=2), eos="1")[:2]


def test_a_bias_forces_or_bans_a_token() -> None:
    first = generate(PROMPT, 1)[0]
    assert generate(PROMPT, 3, SamplingParams(logit_bias={77: 100.0})) == [77, 77, 77]
    assert generate(PROMPT, 1, SamplingParams(logit_bias={first: -100.0})) != [first]
    assert generate(PROMPT, 5, SamplingParams(logit_bias={1: 1.0})) == generate(PROMPT, 5)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_logprobs_are_a_distributions(count: int) -> None:
    machine, planner = executor(), Planner(BLOCK)
    asking, not_asking = planner.admission(PROMPT, SamplingParams(logprobs=count)), planner.admission(PROMPT)
    result = run(machine, planner.prefill(asking, not_asking))
    assert result.logprobs is not None
    entry, nothing = result.logprobs
    assert nothing is None
    assert entry is not None
    assert len(entry.top_ids) == len(entry.top_logprobs) == len(set(entry.top_ids)) == count
    assert entry.top_logprobs == sorted(entry.top_logprobs, reverse=True)
    assert sum(map(math.exp, entry.top_logprobs or [entry.logprob])) <= 1
    if count:
        assert (entry.top_ids[0], entry.top_logprobs[0]) == (result.tokens[0], entry.logprob)


def test_nobody_asked_for_logprobs() -> None:
    machine, planner = executor(), Planner(BLOCK)
    assert run(machine, planner.prefill(planner.admission(PROMPT))).logprobs is None


# Time


def test_steps_queue_as_on_a_stream() -> None:
    clock = Clock()
    machine, planner = executor(clock, overhead="2"), Planner(BLOCK)
    first = machine.execute(planner.prefill(planner.admission(PROMPT)))
    second = machine.execute(planner.decode(0))
    assert clock.now == 0
    assert not first.done()
    first.result()
    assert (clock.now, first.done(), second.done()) == (2, True, False)
    second.result()
    assert clock.now == 4


def test_a_step_costs_traffic_or_arithmetic_whichever_is_more() -> None:
    kv = KVSpec(TINY.num_layers, TINY.num_kv_heads, TINY.head_dim, "float32", BLOCK)
    h100 = next(machine for machine in MACHINES if machine.name == "h100")
    cost = step_cost(TINY, kv, h100, speed=1.0, overhead=0.0)
    twice = step_cost(TINY, kv, h100, speed=2.0, overhead=0.0)
    decode = Batch(1, [0], [100], [1], [True], 1, 1)
    matrices = 2 * (64 * 16 * 12 + 3 * 64 * 128) + 64 * 1000
    cache = 101 * 2 * TINY.num_layers * TINY.num_kv_heads * TINY.head_dim * 4
    assert cost.seconds(decode) == pytest.approx((matrices * 4 + cache) / (3.35e12 * 0.8))
    assert twice.seconds(decode) == pytest.approx(cost.seconds(decode) / 2)
    prefill = Batch(1, [0], [0], [100_000], [True], 0, 100_000)
    operations = 2 * matrices * 100_000 + 2 * 2 * 2 * 64 * 100_000**2
    assert cost.seconds(prefill) == pytest.approx(operations / (989e12 * 0.6))


def test_speed_zero_and_the_ideal_machine_wait_for_nothing() -> None:
    for machine in (executor(index=2, speed="0"), executor()):
        planner = Planner(BLOCK)
        assert machine.execute(planner.prefill(planner.admission(PROMPT))).done()


def test_the_bound_of_a_step_covers_an_ordered_delay() -> None:
    clock = Clock()
    machine, planner = executor(clock, fault="slow@2:30"), Planner(BLOCK)
    run(machine, planner.prefill(planner.admission(PROMPT)))
    assert clock.now == 0
    slow = planner.decode(0)
    machine.execute(slow).result()
    assert clock.now == 30
    assert machine.step_seconds(slow) > 30
    assert machine.step_seconds(planner.decode(0)) < 5


# Faults


def test_f12_a_marked_prompt_is_not_finite_and_its_neighbour_does_not_notice() -> None:
    machine, planner = executor(fault="nan@99"), Planner(BLOCK)
    victim, neighbour = planner.admission([*PROMPT[:5], 99]), planner.admission(PROMPT)
    result = run(machine, planner.prefill(victim, neighbour))
    assert result.bad == (0,)
    assert [result.tokens[1], *run(machine, planner.decode(1)).tokens] == generate(PROMPT, 2)
    poisoned = planner.admission([*PROMPT[:5], 98], blocks=[1, 2])
    assert run(machine, planner.prefill(poisoned, start=4)).tokens != generate([*PROMPT[:5], 98], 1)


@pytest.mark.parametrize("options", [{"fault": "oom@1"}, {"budget": "8"}], ids=["ordered", "budget"])
def test_f11_out_of_memory_loses_one_step_and_not_the_machine(options: dict[str, str]) -> None:
    machine, planner = executor(**options), Planner(BLOCK)
    lost = machine.execute(planner.prefill(planner.admission(PROMPT)))
    ahead = machine.execute(planner.decode(0))
    with pytest.raises(DeviceOutOfMemory):
        lost.result()
    assert ahead.result().bad == (0,)
    assert run(machine, planner.prefill(planner.admission(PROMPT[:8]))).tokens == generate(PROMPT[:8], 1)


def test_a_crash_is_no_request_error() -> None:
    machine, planner = executor(fault="crash@1"), Planner(BLOCK)
    with pytest.raises(RuntimeError, match="step 1 crashes"):
        run(machine, planner.prefill(planner.admission(PROMPT)))


# Shapes


def test_a_bucketed_machine_declares_its_shapes_and_refuses_others() -> None:
    machine, planner = executor(buckets="true"), Planner(BLOCK)
    buckets = machine.buckets()
    assert buckets is not None
    assert buckets.check() == []
    batch = planner.prefill(planner.admission(PROMPT))
    with pytest.raises(ValueError, match="no bucket"):
        machine.execute(batch)
    batch.bucket = buckets.smallest(10, 1, 3, decode=False)
    assert run(machine, batch).tokens == generate(PROMPT, 1)
    tight = planner.decode(0)
    tight.bucket = buckets.decode[0]
    tight.rows *= 2
    tight.starts *= 2
    tight.counts *= 2
    tight.samples *= 2
    tight.num_tokens = 2
    with pytest.raises(ValueError, match="do not fit"):
        machine.execute(tight)


def test_machines_declare_what_their_kind_can_do() -> None:
    backend = SimBackend()
    by_name = {device.name: backend.capabilities(device) for device in backend.devices()}
    assert by_name["simulated h100"].mixes_prefill_and_decode
    assert by_name["simulated gaudi3"].shapes == "bucketed"
    assert not by_name["simulated gaudi3"].mixes_prefill_and_decode
    assert executor(index=5).buckets() is not None
    assert executor().device_name() == "simulated ideal"
    assert executor(device="h100").device_name() == "simulated h100"


# Options


def test_every_bad_option_is_named_at_once() -> None:
    with pytest.raises(BackendError) as refused:
        parse_options({"sped": "1", "speed": "fast", "eos": "2", "verify": "true"})
    reasons = refused.value.reasons
    assert len(reasons) == 3
    assert "did you mean 'speed'?" in reasons[0]
    assert "speed=fast" in reasons[1]
    assert "eos=2" in reasons[2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "h10"}, "did you mean 'h100'"),
        ({"fault": "hng@3"}, "did you mean 'hang'"),
        ({"fault": "crash@soon"}, "as in crash@500"),
        ({"vocabulary": "5-2000"}, "within 0-1000"),
        ({"vocabulary": "2-3"}, "nothing but ends of sequence"),
    ],
)
def test_bad_values_say_what_would_be_right(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(BackendError, match=sentence):
        executor(**options)


def test_the_simulator_needs_no_torch() -> None:
    code = "import sys, mainspring.backends.sim, mainspring.core.channel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_log_probabilities_of_a_prompt_depend_on_the_prompt_alone():
    whole = scored(PROMPT, [(0, 10)])
    assert whole == scored(PROMPT, [(0, 3), (3, 7), (7, 10)])
    misled = scored(PROMPT, [(0, 10)], wrong_block=True)
    assert len(misled) == 5
    assert all(entry != true for entry, true in zip(misled, whole[4:], strict=True))
    for entry in whole:
        assert -1000 < entry.logprob < 0
        assert entry.top_logprobs == sorted(entry.top_logprobs, reverse=True)
        assert entry.logprob <= entry.top_logprobs[0]
        assert sum(map(math.exp, entry.top_logprobs)) < 1
        if entry.top_ids[0] == PROMPT[-1]:
            assert entry.logprob == entry.top_logprobs[0]


def test_the_likeliest_token_of_a_prompt_is_what_greedy_requests_draw():
    (drawn,) = generate(PROMPT, 1)
    last = scored([*PROMPT, drawn], [(0, 11)])[-1]
    assert (last.top_ids[0], last.top_logprobs[0]) == (drawn, last.logprob)


def scored(prompt: list[int], pieces: list[tuple[int, int]], *, wrong_block: bool = False) -> list[TokenLogprobs]:
    """Log-probabilities of a prompt that is computed in pieces."""
    machine, planner = executor(), Planner(BLOCK)
    admission = planner.admission(prompt)
    if wrong_block:
        run(machine, planner.prefill(planner.admission([90, *prompt[1:]])))
        admission = planner.admission(prompt, blocks=[1, 40, 41])
        pieces = [(4, 10)]
    found = []
    for start, stop in pieces:
        batch = planner.prefill(admission, start=start, stop=stop)
        batch.admissions = [admission] if (start, stop) == pieces[0] else []
        batch.prompt_logprobs = [PromptRange(0, start + 1, min(stop, len(prompt) - 1) - start, 3)]
        found += run(machine, batch).prompt_logprobs[0]
    return found

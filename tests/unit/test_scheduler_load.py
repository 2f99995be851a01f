"""What the scheduler promises under load: progress, fairness, bounded waits, and only shapes that were asked for."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from mainspring.core.batch import Bucket, Buckets
from mainspring.core.request import FinishReason
from mainspring.core.scheduling.planner import LOOKAHEAD, MAX_BYPASSES
from mainspring.core.scheduling.running import MAX_PREEMPTIONS
from mainspring.core.scheduling.sequence import AGEING_SECONDS
from tests.support.paged_oracle import Simulation


def gaps(turns: list[int]) -> list[int]:
    return [later - earlier for earlier, later in pairwise(turns)]


def prompts(seed: int, count: int, longest: int) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(1, 5) for _ in range(source.randint(1, longest))] for _ in range(count)]


def test_decodes_get_a_token_every_step_while_prompts_stream_in():
    simulation = Simulation(num_blocks=400, max_length=400, max_batch_tokens=12)
    for _ in range(4):
        simulation.submit([1, 2], max_tokens=60, ignore_eos=True)
    for _ in range(4):
        simulation.turn()
    for prompt in prompts(1, 40, 300):
        simulation.submit(prompt, max_tokens=1)
    simulation.run()
    for request in range(1, 5):
        turns = simulation.outputs[request, 0].token_turns
        assert max(gaps(turns)) == 1
    simulation.check_tokens()


def test_a_prompt_is_computed_in_chunks_within_the_budget():
    simulation = Simulation(max_batch_tokens=10, max_prefill_chunk=4, depth=1)
    simulation.submit(list(range(1, 12)), max_tokens=1)
    simulation.submit(list(range(20, 31)), max_tokens=1)
    simulation.turn()
    assert simulation.batches[0].counts == [4, 4]
    simulation.run()
    simulation.check_tokens()


def test_no_step_exceeds_the_budget_or_the_rows():
    simulation = Simulation(num_blocks=200, max_batch_tokens=9, max_sequences=5)
    for prompt in prompts(2, 60, 30):
        simulation.submit(prompt, max_tokens=8)
    simulation.run()
    assert max(batch.num_tokens for batch in simulation.batches) == 9
    assert max(len(batch.rows) for batch in simulation.batches) == 5
    simulation.check_tokens()


def test_without_mixing_prefills_and_decodes_alternate_and_neither_starves():
    simulation = Simulation(num_blocks=400, max_length=400, max_batch_tokens=16, mixes_prefill_and_decode=False)
    simulation.submit([1, 2], max_tokens=40, ignore_eos=True)
    for _ in range(3):
        simulation.turn()
    for prompt in prompts(3, 30, 300):
        simulation.submit(prompt, max_tokens=2)
    simulation.run()
    assert max(gaps(simulation.outputs[1, 0].token_turns)) <= 2
    kinds = [batch.num_decodes > 0 for batch in simulation.batches[3:60]]
    assert all(one != other for one, other in pairwise(kinds))
    simulation.check_tokens()


def small_buckets() -> Buckets:
    return Buckets(
        decode=(Bucket(1, 1, 4), Bucket(4, 4, 4), Bucket(4, 4, 12)),
        prefill=(Bucket(8, 1, 4), Bucket(16, 2, 12)),
    )


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_every_step_fits_a_bucket(mixes, seed):
    """The oracle refuses a batch without a fitting bucket; limits come from the last of each family."""
    simulation = Simulation(
        num_blocks=60, buckets=small_buckets(), mixes_prefill_and_decode=mixes, max_batch_tokens=64, max_sequences=32
    )
    assert simulation.scheduler.limits.max_sequences == 4
    assert simulation.scheduler.limits.max_positions == 48
    for prompt in prompts(seed, 40, 47):
        simulation.submit(prompt, n=1 + seed % 3, max_tokens=10)
    simulation.run()
    assert {batch.bucket for batch in simulation.batches} >= {Bucket(4, 4, 12), Bucket(16, 2, 12)}
    simulation.check_tokens()


@pytest.mark.parametrize("prefill", [Bucket(16, 2, 12), Bucket(3, 4, 12)], ids=["rows", "tokens"])
def test_decodes_that_fit_no_prefill_bucket_alternate_with_prefills(prefill):
    buckets = Buckets(decode=(Bucket(4, 4, 12),), prefill=(prefill,))
    simulation = Simulation(num_blocks=200, buckets=buckets, max_batch_tokens=64, max_sequences=4)
    for _ in range(3):
        simulation.submit([1, 2], max_tokens=40, ignore_eos=True)
    for _ in range(6):
        simulation.turn()
    long = simulation.submit([1] * 30, max_tokens=2)
    simulation.run()
    others = [simulation.outputs[request, 0].token_turns for request in range(1, 4)]
    assert max(gap for turns in others for gap in gaps(turns)) <= 2
    assert simulation.outputs[long, 0].token_turns[0] < min(turns[-1] for turns in others)
    simulation.check_tokens()


def test_unsound_buckets_are_refused():
    with pytest.raises(ValueError, match="the decode bucket list is empty"):
        Simulation(buckets=Buckets(decode=(), prefill=(Bucket(1, 1, 1),)))


def test_without_prefill_buckets_only_decodes_are_bound_to_shapes():
    buckets = Buckets(decode=(Bucket(2, 2, 12), Bucket(4, 4, 12)), prefill=())
    simulation = Simulation(num_blocks=200, buckets=buckets, max_batch_tokens=64, max_sequences=8)
    limits = simulation.scheduler.limits
    assert (limits.max_sequences, limits.prefill_sequences, limits.prefill_tokens) == (4, 4, 64)
    assert limits.max_positions == 12 * simulation.oracle.block_size
    for prompt in prompts(3, 30, 40):
        simulation.submit(prompt, max_tokens=10)
    simulation.run()
    for batch in simulation.batches:
        decodes = batch.num_decodes == len(batch.rows)
        assert (batch.bucket in buckets.decode) if decodes else batch.bucket is None
    assert {batch.bucket for batch in simulation.batches} == {None, *buckets.decode}
    simulation.check_tokens()


def test_limits_under_which_nothing_can_run_are_refused():
    with pytest.raises(ValueError, match="nothing can run with 0 rows"):
        Simulation(max_sequences=0)


def watch_preemptions(simulation: Simulation) -> dict[tuple[int, int], int]:
    """Fills a table of how often each sequence was preempted, while the simulation runs."""
    seen: dict[tuple[int, int], int] = {}
    ledger = simulation.scheduler._ledger

    def look() -> None:
        for sequence in ledger.running:
            seen[sequence.request_id, sequence.index] = sequence.preemptions

    simulation.run(each=look)
    return seen


@pytest.mark.promise("P8")
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_three_times_more_demand_than_blocks_ends_with_bounded_preemptions(depth, seed):
    """Ten sequences that grow to 48 tokens, in a cache for 160: each is preempted at most so often, and all finish."""
    simulation = Simulation(num_blocks=41, block_size=4, max_sequences=10, depth=depth, prefix_caching=seed % 2 == 0)
    for prompt in prompts(seed, 20, 12):
        simulation.submit(prompt, max_tokens=48 - len(prompt), ignore_eos=True)
    seen = watch_preemptions(simulation)
    assert simulation.scheduler.stats().preemptions > 0, "the test preempts nobody"
    assert max(seen.values()) <= MAX_PREEMPTIONS
    assert all(output.finish is FinishReason.LENGTH for output in simulation.outputs.values())
    simulation.check_tokens()


@pytest.mark.promise("P8")
@pytest.mark.parametrize("seed", range(5))
def test_the_oldest_sequence_is_never_preempted(seed):
    simulation = Simulation(num_blocks=20, block_size=4, max_sequences=8)
    for prompt in prompts(seed, 12, 12):
        simulation.submit(prompt, max_tokens=40, ignore_eos=True)
    seen = watch_preemptions(simulation)
    assert seen[1, 0] == 0
    assert max(gaps(simulation.outputs[1, 0].token_turns)) == 1
    assert max(seen.values()) > 0


def test_a_preempted_sequence_keeps_its_tokens_and_place_and_skips_what_is_cached():
    simulation = Simulation(num_blocks=14, block_size=4, max_sequences=4, depth=1)
    for _ in range(3):
        simulation.submit([1, 2, 3], max_tokens=30, ignore_eos=True)
    simulation.submit([4], max_tokens=1, priority=-50)
    simulation.run()
    assert simulation.scheduler.stats().preemptions
    firsts = [output.token_turns[0] for output in simulation.outputs.values()]
    assert firsts == sorted(firsts)
    recomputed = simulation.oracle.computed_tokens - sum(
        len(output.submit.tokens) + len(output.tokens) - 1 for output in simulation.outputs.values()
    )
    assert recomputed < 30 * simulation.scheduler.stats().preemptions
    simulation.check_tokens()


def test_work_wasted_by_preemption_is_bounded():
    simulation = Simulation(num_blocks=33, block_size=4, max_sequences=16, prefix_caching=False)
    for prompt in prompts(9, 60, 20):
        simulation.submit(prompt, max_tokens=40, ignore_eos=True)
    simulation.run(each=lambda: None)
    needed = sum(len(output.submit.tokens) + len(output.tokens) - 1 for output in simulation.outputs.values())
    assert simulation.oracle.computed_tokens < 3 * needed
    simulation.check_tokens()


def test_admission_leaves_a_block_to_each_that_runs():
    simulation = Simulation(num_blocks=11, block_size=4, depth=1)
    simulation.submit([1, 2, 3], max_tokens=12, ignore_eos=True)
    simulation.turn()
    waiting = simulation.submit([2] * 36, max_tokens=1)
    simulation.turn()
    assert simulation.pool.num_free == 9
    simulation.turn()
    assert simulation.scheduler.stats().running == 1, "36 tokens fit into 9 blocks, but leave none"
    simulation.run()
    assert simulation.scheduler.stats().preemptions == 0
    assert simulation.outputs[waiting, 0].finish is not None


def test_a_blocked_prompt_fits_once_another_has_computed_its_beginning():
    simulation = Simulation(num_blocks=20, block_size=4, max_batch_tokens=16, max_prefill_chunk=8)
    prompt = [number % 7 + 1 for number in range(45)]
    first = simulation.submit(prompt, max_tokens=20, ignore_eos=True)
    second = simulation.submit(prompt, max_tokens=1)
    simulation.run()
    assert simulation.outputs[second, 0].start.cached_tokens == 44
    assert simulation.outputs[second, 0].token_turns[0] < simulation.outputs[first, 0].token_turns[-1]
    simulation.check_tokens()


def test_a_long_prompt_that_does_not_fit_lets_short_ones_pass_but_not_for_ever():
    simulation = Simulation(num_blocks=33, block_size=4, max_sequences=16, max_length=128)
    holder = simulation.submit([1] * 40, max_tokens=80, ignore_eos=True)
    for _ in range(4):
        simulation.turn()
    long = simulation.submit([2] * 100, max_tokens=2)
    short = [simulation.submit([3, number % 30], max_tokens=2) for number in range(80)]
    simulation.run()
    first = {request: simulation.outputs[request, 0].token_turns[0] for request in (holder, long, *short)}
    passed = [request for request in short if first[request] < first[long]]
    assert len(passed) == MAX_BYPASSES, "short ones pass, and only so many"
    simulation.check_tokens()


def test_those_who_passed_a_blocked_prompt_of_their_class_do_not_give_way_to_it():
    simulation = Simulation(num_blocks=33, block_size=4, max_length=128, tick=0.01)
    simulation.submit([1] * 40, max_tokens=10, ignore_eos=True)
    for _ in range(4):
        simulation.turn()
    long = simulation.submit([2] * 96, max_tokens=1)
    passing = simulation.submit([3] * 40, max_tokens=40, ignore_eos=True)
    simulation.run()
    assert simulation.scheduler.stats().preemptions == 0
    assert simulation.outputs[long, 0].token_turns[0] > simulation.outputs[passing, 0].token_turns[-1]


def test_an_endless_stream_of_short_prompts_does_not_starve_a_long_one():
    simulation = Simulation(num_blocks=33, block_size=4, max_sequences=16, max_length=128)
    simulation.submit([1] * 8, max_tokens=20, ignore_eos=True)
    simulation.turn()
    long = simulation.submit([2] * 120, max_tokens=1)
    for number in range(400):
        simulation.submit([3, 4, number % 30], max_tokens=10, ignore_eos=True)
        simulation.turn()
        if simulation.outputs[long, 0].finish is not None:
            return
    pytest.fail("the long prompt was never admitted")


def test_more_prompts_that_do_not_fit_than_one_step_looks_past_still_all_run():
    simulation = Simulation(num_blocks=33, block_size=4, max_sequences=16, max_length=128)
    for number in range(2 * LOOKAHEAD):
        simulation.submit([number + 1] * 100, max_tokens=4)
    simulation.run()
    simulation.check_tokens()


def test_a_higher_priority_is_admitted_first():
    simulation = Simulation(max_sequences=1, tick=0.01)
    simulation.submit([1], max_tokens=3, ignore_eos=True)
    simulation.turn()
    low, high = (simulation.submit([2], max_tokens=3, priority=priority) for priority in (0, 1))
    simulation.run()
    assert simulation.outputs[high, 0].token_turns[0] < simulation.outputs[low, 0].token_turns[0]


@pytest.mark.parametrize("scarce", ["rows", "blocks"])
def test_a_higher_priority_does_not_wait_for_lower_ones_that_hold_everything(scarce):
    options = {"max_sequences": 3} if scarce == "rows" else {"num_blocks": 25, "max_sequences": 16}
    simulation = Simulation(tick=0.01, **options)
    for prompt in ([1] * 6, [2] * 6, [3] * 6):
        simulation.submit(prompt, max_tokens=50, ignore_eos=True)
    for _ in range(40 if scarce == "blocks" else 5):
        simulation.turn()
    urgent = simulation.submit([4] * 20, max_tokens=2, priority=1)
    arrived = simulation.turns
    simulation.run()
    assert simulation.outputs[urgent, 0].token_turns[0] <= arrived + 6
    simulation.check_tokens()


def test_ageing_lets_a_low_priority_through_a_steady_stream_of_higher_ones():
    simulation = Simulation(max_sequences=1, tick=0.5)
    simulation.submit([1], max_tokens=2, priority=2)
    low = simulation.submit([2], max_tokens=2, priority=0, ignore_eos=True)
    for _ in range(200):
        simulation.submit([3], max_tokens=2, priority=2, ignore_eos=True)
        simulation.turn()
        if simulation.outputs[low, 0].finish:
            break
    assert simulation.outputs[low, 0].start.queue_seconds == pytest.approx(2 * AGEING_SECONDS, abs=30)
    waited = simulation.outputs[low, 0].start.queue_seconds
    assert waited > AGEING_SECONDS, "the stream was not dense enough to hold it back"
    simulation.run()
    simulation.check_tokens()


def test_a_waiting_request_is_not_overtaken_by_later_ones_of_its_class():
    simulation = Simulation(num_blocks=200, max_sequences=3)
    for prompt in prompts(4, 40, 10):
        simulation.submit(prompt, max_tokens=6, ignore_eos=True)
    simulation.run()
    firsts = [output.token_turns[0] for output in simulation.outputs.values()]
    assert firsts == sorted(firsts)


def test_the_queue_forgets_requests_that_were_cancelled_behind_a_blocked_head():
    simulation = Simulation(max_sequences=1, max_waiting_requests=10)
    simulation.submit([1], ignore_eos=True)
    simulation.turn()
    for _ in range(1000):
        simulation.cancel(simulation.submit([2], timeout=1e6))
    assert len(simulation.scheduler._ledger.queue._heap) < 200
    assert len(simulation.scheduler._deadlines._heap) < 200
    simulation.run()

"""What the scheduler promises one request: refusals, its end, its start's facts, the prefix cache, siblings, errors."""

from __future__ import annotations

import pytest

from mainspring.core.batch import StepResult
from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.request import FinishReason, RequestId, SamplingParams, Submit, TokenLogprobs
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler
from tests.support.paged_oracle import EOS, Simulation


def refusal(simulation: Simulation, tokens: list[int], **options: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        simulation.submit(tokens, **options)
    assert not simulation.scheduler.check()
    return caught.value


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([1] * 64, {}, "prompt has 64 tokens; the context is 64 .* at most 63"),
        ([1] * 50, {}, "prompt has 50 tokens; the KV cache holds 36"),
        ([1], {"n": 0}, "n is 0"),
        ([1, 2**31], {}, "token id 2147483648 is not in any vocabulary"),
    ],
)
def test_a_request_that_can_never_run_is_refused_with_the_value_and_the_way_out(tokens, options, message):
    error = refusal(Simulation(num_blocks=10, block_size=4), tokens, **options)
    assert error.kind is ErrorKind.INVALID
    assert error.retry_after is None
    with pytest.raises(RequestError, match=message):
        raise error


@pytest.mark.promise("F23")
def test_the_queue_is_bounded_by_requests_and_says_when_to_come_back():
    simulation = Simulation(max_waiting_requests=3, max_sequences=1)
    for _ in range(4):
        simulation.submit([1])
    error = refusal(simulation, [1])
    assert error.kind is ErrorKind.OVERLOADED
    assert error.retry_after >= 1
    assert "3 requests wait, and at most 3 may" in error.message
    simulation.run()
    simulation.submit([1])
    simulation.run()


@pytest.mark.promise("F23")
def test_the_queue_is_bounded_by_tokens_but_takes_one_long_prompt_when_empty():
    simulation = Simulation(max_waiting_tokens=20, max_sequences=1)
    simulation.submit([1])
    simulation.turn()
    simulation.submit([1] * 30)
    error = refusal(simulation, [1])
    assert error.kind is ErrorKind.OVERLOADED
    assert "30 tokens wait" in error.message


@pytest.mark.promise("F23")
def test_of_a_burst_what_runs_at_once_does_not_wait():
    simulation = Simulation(max_waiting_requests=2, max_waiting_tokens=50, max_sequences=4)
    for _ in range(4 + 2):
        simulation.submit([1] * 20)
    assert refusal(simulation, [1]).kind is ErrorKind.OVERLOADED
    simulation.turn()
    assert simulation.scheduler.stats().waiting == 2


@pytest.mark.promise("F23")
def test_of_a_burst_what_finds_no_blocks_waits_though_rows_are_free():
    simulation = Simulation(max_waiting_requests=0, max_sequences=4, num_blocks=9)
    length = 3 * simulation.scheduler._ledger.pool.block_size - 1
    for _ in range(2):
        simulation.submit([1] * length)
    assert refusal(simulation, [1] * length).kind is ErrorKind.OVERLOADED


def test_with_no_queue_at_all_a_free_row_is_still_found():
    simulation = Simulation(max_waiting_requests=0, max_sequences=1)
    simulation.submit([1])
    assert "0 requests wait, and at most 0 may" in refusal(simulation, [1]).message
    simulation.run()
    simulation.submit([1])
    simulation.run()


def test_retry_after_follows_the_wait_that_requests_have_seen():
    simulation = Simulation(max_waiting_requests=1, max_sequences=1, tick=0.5)
    simulation.submit([1], max_tokens=20, ignore_eos=True)
    simulation.turn()
    simulation.submit([1])
    while simulation.scheduler.stats().waiting:
        simulation.turn()
    simulation.submit([1])
    assert 5 < refusal(simulation, [1]).retry_after <= 20


def test_draining_refuses_new_requests_and_finishes_the_old_ones():
    simulation = Simulation()
    simulation.submit([1, 2, 3])
    simulation.scheduler.drain()
    assert refusal(simulation, [1]).kind is ErrorKind.SHUTTING_DOWN
    simulation.run()
    simulation.check_tokens()


def test_a_live_id_is_refused_and_a_finished_one_may_return():
    simulation = Simulation()
    submit = Submit(RequestId(7), [1], SamplingParams(max_tokens=1))
    simulation.scheduler.submit(submit)
    with pytest.raises(RequestError, match="request 7 is live already"):
        simulation.scheduler.submit(submit)
    simulation.scheduler.cancel(RequestId(7))
    simulation.scheduler.submit(submit)


def finish(simulation: Simulation, tokens: list[int], **options: object) -> tuple[list[int], FinishReason]:
    request = simulation.submit(tokens, **options)
    simulation.run()
    simulation.check_tokens()
    output = simulation.outputs[request, 0]
    return output.tokens, output.finish


def test_max_tokens_ends_by_length():
    tokens, reason = finish(Simulation(), [1, 2], max_tokens=5, ignore_eos=True)
    assert (len(tokens), reason) == (5, FinishReason.LENGTH)


def test_no_max_tokens_means_all_that_the_context_holds():
    tokens, reason = finish(Simulation(max_length=20), [1, 2], ignore_eos=True)
    assert (len(tokens), reason) == (18, FinishReason.LENGTH)


def test_max_tokens_past_the_context_or_the_cache_end_by_length():
    tokens, reason = finish(Simulation(max_length=20), [1, 2], max_tokens=1000, ignore_eos=True)
    assert (len(tokens), reason) == (18, FinishReason.LENGTH)
    tokens, reason = finish(Simulation(num_blocks=4, block_size=4), [1, 2], max_tokens=1000, ignore_eos=True)
    assert (len(tokens), reason) == (12 - 2 + 1, FinishReason.LENGTH), "the last token needs no place in the cache"


def prompt_that_ends(stop: int) -> list[int]:
    """A prompt whose answer holds `stop` after a few tokens but before the context ends."""
    for first in range(1, 1000):
        simulation = Simulation(max_length=40)
        simulation.submit([first, 2], ignore_eos=True)
        simulation.run()
        if stop in simulation.outputs[1, 0].tokens[3:30]:
            return [first, 2]
    raise AssertionError("no such prompt")


def test_the_end_token_ends_a_sequence_and_is_its_last_token():
    tokens, reason = finish(Simulation(), prompt_that_ends(EOS))
    assert (tokens[-1], reason) == (EOS, FinishReason.EOS)


def test_a_stop_token_ends_a_sequence_for_another_reason():
    tokens, reason = finish(Simulation(), prompt_that_ends(5), stop_token_ids=(5,), ignore_eos=True)
    assert (tokens[-1], reason) == (5, FinishReason.STOP)


def test_an_ignored_end_token_that_is_asked_for_as_stop_is_a_stop():
    tokens, reason = finish(Simulation(), prompt_that_ends(EOS), stop_token_ids=(EOS,), ignore_eos=True)
    assert (tokens[-1], reason) == (EOS, FinishReason.STOP)


def test_min_tokens_holds_against_an_executor_that_does_not_mask():
    scheduler = make_scheduler()
    scheduler.submit(Submit(RequestId(1), [1], SamplingParams(min_tokens=3, max_tokens=9)))
    reasons = [scheduler.commit(scheduler.schedule(), StepResult([EOS]))[0].finish for _ in range(4)]
    assert reasons == [None, None, None, FinishReason.EOS]


def test_a_token_that_both_stops_and_fills_max_tokens_counts_as_a_stop():
    scheduler = make_scheduler()
    scheduler.submit(Submit(RequestId(1), [1], SamplingParams(max_tokens=1)))
    [delta] = scheduler.commit(scheduler.schedule(), StepResult([EOS]))
    assert delta.finish is FinishReason.EOS


def make_scheduler(**options: object) -> Scheduler:
    settings = {"max_sequences": 4, "max_length": 64, "max_batch_tokens": 16, "eos_token_ids": (EOS,)} | options
    return Scheduler(pool=BlockPool(32, 4), clock=lambda: 0.0, **settings)


def test_a_sequence_that_will_end_by_length_is_not_scheduled_again():
    scheduler = make_scheduler()
    scheduler.submit(Submit(RequestId(1), [1, 2], SamplingParams(max_tokens=2)))
    assert [scheduler.schedule() is None for _ in range(3)] == [False, False, True]


def test_a_row_scheduled_before_its_sequence_was_known_to_have_ended_is_dropped():
    scheduler = make_scheduler()
    scheduler.submit(Submit(RequestId(1), [1, 2], SamplingParams()))
    first, second = scheduler.schedule(), scheduler.schedule()
    [delta] = scheduler.commit(first, StepResult([EOS]))
    assert delta.finish is FinishReason.EOS
    assert scheduler.commit(second, StepResult([9])) == []
    assert not scheduler.has_work
    assert scheduler.stats().generated_tokens == 1


def test_steps_are_answered_in_order_and_in_full():
    scheduler = make_scheduler()
    scheduler.submit(Submit(RequestId(1), [1, 2], SamplingParams()))
    first, second = scheduler.schedule(), scheduler.schedule()
    with pytest.raises(ValueError, match="step 2 is answered, but the oldest uncommitted step is 1"):
        scheduler.commit(second, StepResult([9]))
    with pytest.raises(ValueError, match="step 1 samples 1 tokens, its result has 2"):
        scheduler.commit(first, StepResult([9, 9]))


def test_logprobs_travel_with_their_token():
    scheduler = make_scheduler()
    for number, logprobs in ((1, None), (2, 1)):
        scheduler.submit(Submit(RequestId(number), [1, 2], SamplingParams(logprobs=logprobs)))
    asked = TokenLogprobs(-0.5, [9], [-0.5])
    one, other = scheduler.commit(scheduler.schedule(), StepResult([8, 9], [None, asked]))
    assert (one.logprobs, other.logprobs) == (None, [asked])


def test_a_given_seed_is_used_and_a_missing_one_is_drawn_from_the_injected_seed():
    drawn = []
    for _ in range(2):
        simulation = Simulation(seed=5)
        simulation.submit([1], seed=11, max_tokens=1)
        simulation.submit([1], max_tokens=1)
        simulation.run()
        assert simulation.outputs[1, 0].start.seed == 11
        drawn.append(simulation.outputs[2, 0].start.seed)
    assert drawn[0] == drawn[1] != 11


def test_queue_seconds_run_from_submission_to_the_first_step():
    simulation = Simulation(max_sequences=1)
    for _ in range(2):
        simulation.submit([1], max_tokens=4, ignore_eos=True)
    simulation.run()
    waits = [output.start.queue_seconds for output in simulation.outputs.values()]
    assert waits[0] == 1.0
    assert waits[1] >= 4.0


def cached_tokens(simulation: Simulation, tokens: list[int], **options: object) -> int:
    request = simulation.submit(tokens, **({"max_tokens": 3, "ignore_eos": True} | options))
    simulation.run()
    simulation.check_tokens()
    return simulation.outputs[request, 0].start.cached_tokens


def test_a_prompt_seen_before_is_computed_from_its_last_block_on():
    simulation = Simulation()
    prompt = list(range(1, 13))
    assert cached_tokens(simulation, prompt) == 0
    assert cached_tokens(simulation, prompt) == 8, "the last token is always computed"
    assert cached_tokens(simulation, [*prompt, 13]) == 12
    stats = simulation.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits, stats.prompt_tokens) == (37, 20, 37)


def test_generated_tokens_are_found_by_the_next_turn_of_a_conversation():
    simulation = Simulation()
    prompt = [1, 2, 3, 4, 5]
    request = simulation.submit(prompt, max_tokens=12, ignore_eos=True)
    simulation.run()
    answer = simulation.outputs[request, 0].tokens
    assert cached_tokens(simulation, [*prompt, *answer, 7]) == 16


def test_different_salts_never_share():
    simulation = Simulation()
    prompt = list(range(1, 13))
    cached_tokens(simulation, prompt, cache_salt="one")
    assert cached_tokens(simulation, prompt, cache_salt="two") == 0
    assert cached_tokens(simulation, prompt, cache_salt="one") == 8


def test_without_prefix_caching_nothing_is_found():
    simulation = Simulation(prefix_caching=False)
    prompt = list(range(1, 13))
    assert [cached_tokens(simulation, prompt) for _ in range(2)] == [0, 0]


def test_a_prompt_is_found_one_step_after_it_was_scheduled_but_not_within_that_step():
    simulation = Simulation(max_batch_tokens=28, depth=1)
    prompt = list(range(1, 14))
    for _ in range(2):
        simulation.submit(prompt, max_tokens=4, ignore_eos=True)
    simulation.turn()
    simulation.submit(prompt, max_tokens=4, ignore_eos=True)
    simulation.run()
    assert [output.start.cached_tokens for output in simulation.outputs.values()] == [0, 0, 12]
    simulation.check_tokens()


def test_generated_tokens_are_found_while_their_sequence_still_runs():
    simulation = Simulation(depth=1)
    request = simulation.submit([1, 2, 3], max_tokens=30, ignore_eos=True)
    while len(simulation.outputs[request, 0].tokens) < 8:
        simulation.turn()
    answer = simulation.outputs[request, 0].tokens[:6]
    other = simulation.submit([1, 2, 3, *answer], max_tokens=1)
    simulation.run()
    assert simulation.outputs[other, 0].start.cached_tokens == 8
    simulation.check_tokens()


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 12])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_siblings_compute_the_prompt_once_and_sample_with_seeds_in_order(length, prefix_caching):
    simulation = Simulation(prefix_caching=prefix_caching)
    prompt = list(range(1, length + 1))
    simulation.submit(prompt, n=4, seed=100, temperature=1, max_tokens=6, ignore_eos=True)
    simulation.run()
    simulation.check_tokens()
    assert [simulation.outputs[1, index].start.seed for index in range(4)] == [100, 101, 102, 103]
    assert len({tuple(simulation.outputs[1, index].tokens) for index in range(4)}) > 1
    prompt_and_last_tokens = length + 3
    assert simulation.oracle.computed_tokens == prompt_and_last_tokens + 4 * 5
    assert simulation.scheduler.stats().prompt_tokens == length


def test_siblings_that_find_no_row_keep_the_prompt_until_they_do():
    simulation = Simulation(max_sequences=2, prefix_caching=False)
    simulation.submit([1, 2, 3, 4, 5, 6], n=5, max_tokens=3, ignore_eos=True)
    simulation.run()
    simulation.check_tokens()
    assert simulation.oracle.computed_tokens == 6 + 4 + 5 * 2


def test_siblings_whose_prompt_fills_the_whole_cache_still_run_one_by_one():
    simulation = Simulation(num_blocks=3, block_size=4, max_sequences=1)
    simulation.submit([1, 2, 3, 4, 5, 6, 7, 8], n=3, max_tokens=1)
    simulation.run()
    simulation.check_tokens()


def test_a_block_that_is_copied_in_a_step_is_not_the_goal_of_another_copy_in_it():
    """The oracle refuses copies that depend on each other."""
    simulation = Simulation(num_blocks=4, block_size=4, max_sequences=2, depth=1)
    for first in (1, 2):
        simulation.submit([first, 3, 4, 5], n=2, max_tokens=1)
    simulation.run()
    assert [batch.copies for batch in simulation.batches if batch.copies]
    simulation.check_tokens()


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("index", [0, 1, None])
def test_cancelling_one_sibling_at_any_moment_leaves_the_others_alone(turns, index):
    simulation = Simulation(max_batch_tokens=4)
    simulation.submit([1, 2, 3, 4, 5, 6, 7], n=3, max_tokens=6, ignore_eos=True)
    for _ in range(turns):
        simulation.turn()
    simulation.cancel(1, index)
    simulation.run()
    simulation.check_tokens()
    cancelled = [key[1] for key, output in simulation.outputs.items() if output.finish is FinishReason.CANCELLED]
    assert cancelled == ([0, 1, 2] if index is None else [index])
    assert simulation.scheduler.stats().requests_aborted == (index is None)


def test_cancelling_what_is_unknown_or_over_says_nothing():
    simulation = Simulation()
    assert simulation.scheduler.cancel(RequestId(5)) == []
    simulation.submit([1], max_tokens=1)
    assert simulation.scheduler.cancel(RequestId(1), 3) == []
    simulation.run()
    assert simulation.scheduler.cancel(RequestId(1)) == []


def test_a_cancelled_request_frees_its_blocks_at_once():
    simulation = Simulation()
    simulation.submit([1] * 20, ignore_eos=True)
    for _ in range(4):
        simulation.turn()
    assert simulation.scheduler.stats().blocks_used
    simulation.cancel(1)
    assert simulation.scheduler.stats().blocks_used == 0


def test_a_deadline_ends_waiting_and_running_requests_and_says_so():
    simulation = Simulation(max_sequences=1)
    running = simulation.submit([1], timeout=6.0, ignore_eos=True)
    waiting = simulation.submit([2], timeout=3.0)
    patient = simulation.submit([3], max_tokens=2)
    simulation.run()
    for request, turn in ((running, 6), (waiting, 3)):
        output = simulation.outputs[request, 0]
        assert (output.finish, output.error) == (FinishReason.ERROR, ErrorKind.DEADLINE)
        assert f"timeout of {turn} s" in output.message
    assert simulation.outputs[running, 0].tokens
    assert not simulation.outputs[waiting, 0].tokens
    assert simulation.outputs[patient, 0].finish in (FinishReason.LENGTH, FinishReason.EOS)
    simulation.check_tokens()


def test_deadlines_are_kept_while_nothing_can_be_scheduled():
    scheduler = make_scheduler()
    now = [0.0]
    scheduler._clock = lambda: now[0]
    scheduler.submit(Submit(RequestId(1), [1], SamplingParams(), timeout=1.0))
    now[0] = 2.0
    [delta] = scheduler.expire()
    assert delta.error is ErrorKind.DEADLINE
    assert not scheduler.has_work


NAN_TOKEN = 30


def test_a_row_that_is_not_finite_ends_alone_and_leaves_nothing_in_the_cache():
    simulation = Simulation()
    simulation.nan_tokens = frozenset({NAN_TOKEN})
    shared = [1, 2, 3, 4]
    simulation.submit([*shared, 9, 9, 9, 9, 5], max_tokens=8)
    poison = [*shared, NAN_TOKEN, 6, 7, 8, 5]
    victim = simulation.submit(poison, max_tokens=8)
    simulation.run()
    output = simulation.outputs[victim, 0]
    assert (output.finish, output.error) == (FinishReason.ERROR, ErrorKind.NUMERICAL)
    assert simulation.scheduler.stats().nan_rows >= 1
    simulation.nan_tokens = frozenset()
    assert cached_tokens(simulation, poison) in (0, 4), "only what another request computed may be found"
    simulation.check_tokens()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_block_that_a_bad_row_has_just_filled_is_not_found_later(depth):
    simulation = Simulation(depth=depth)
    simulation.submit([1, 2, 3], max_tokens=1)
    simulation.run()
    [poison] = simulation.outputs[1, 0].tokens
    simulation.nan_tokens = frozenset({poison})
    victim = simulation.submit([1, 2, 3], max_tokens=9, ignore_eos=True)
    simulation.run()
    assert simulation.outputs[victim, 0].error is ErrorKind.NUMERICAL
    simulation.nan_tokens = frozenset()
    assert cached_tokens(simulation, [1, 2, 3, poison, 9]) == 0


def test_a_request_that_found_blocks_of_a_bad_one_is_computed_anew_and_unharmed():
    simulation = Simulation(depth=2, max_batch_tokens=12)
    prompt = list(range(1, 13))
    simulation.submit(prompt, max_tokens=4, ignore_eos=True)
    simulation.submit(prompt, max_tokens=4, ignore_eos=True)
    scheduler = simulation.scheduler
    first, second = scheduler.schedule(), scheduler.schedule()
    assert second.samples == [True, True]
    simulation.oracle.execute(first, fail=True)
    simulation.oracle.execute(second)
    simulation.receive(scheduler.commit(first, StepResult([3], bad=(0,))))
    simulation.receive(scheduler.commit(second, StepResult([3, 3], bad=(0, 1))))
    simulation.run()
    assert simulation.outputs[1, 0].error is ErrorKind.NUMERICAL
    assert simulation.outputs[2, 0].finish is FinishReason.LENGTH
    simulation.check_tokens()


def test_a_failed_step_ends_its_own_sequences_and_no_others():
    simulation = Simulation(max_sequences=4, max_batch_tokens=12)
    prompt = list(range(1, 13))
    for _ in range(4):
        simulation.submit(prompt, max_tokens=5, ignore_eos=True)
    simulation.fail_next = True
    simulation.run()
    outputs = list(simulation.outputs.values())
    assert [output.error for output in outputs] == [ErrorKind.OUT_OF_MEMORY, None, None, None]
    assert outputs[0].message == "the step did not fit"
    simulation.check_tokens()


def test_siblings_of_a_failed_sequence_compute_the_prompt_themselves():
    simulation = Simulation(depth=1)
    simulation.submit([1, 2, 3, 4, 5, 6], n=3, max_tokens=4, ignore_eos=True)
    simulation.fail_next = True
    simulation.run()
    assert [output.error for output in simulation.outputs.values()] == [ErrorKind.OUT_OF_MEMORY, None, None]
    simulation.check_tokens()


def test_siblings_already_scheduled_on_a_failed_prompt_start_again():
    simulation = Simulation(depth=3)
    simulation.submit([1, 2, 3], n=3, max_tokens=4, ignore_eos=True)
    simulation.fail_next = True
    simulation.run()
    assert [output.error for output in simulation.outputs.values()] == [ErrorKind.OUT_OF_MEMORY, None, None]
    simulation.check_tokens()


def test_what_was_computed_on_top_of_a_failed_prefix_is_never_found():
    simulation = Simulation(depth=2, max_batch_tokens=16)
    prompt = list(range(1, 9))
    simulation.submit([*prompt, 9, 10, 11, 12, 13, 14, 15, 16], max_tokens=4, ignore_eos=True)
    longer = [*prompt, 20, 21, 22, 23, 24]
    simulation.submit(longer, max_tokens=4, ignore_eos=True)
    simulation.fail_next = True
    simulation.turn()
    assert [batch.starts for batch in simulation.batches] == [[0], [16, 8]], "the second builds upon the first"
    simulation.run()
    assert cached_tokens(simulation, longer) == 12
    simulation.check_tokens()


@pytest.mark.parametrize("depth", [2, 3])
def test_siblings_whose_prompt_began_with_a_failed_prefix_start_again(depth):
    """They wait with the blocks (depth 2) or run already (depth 3) when the step that filled those fails."""
    simulation = Simulation(depth=depth, max_batch_tokens=8)
    prompt = list(range(1, 9))
    simulation.submit(prompt, max_tokens=1)
    simulation.submit([*prompt, 20, 21, 22], n=3, max_tokens=4, ignore_eos=True)
    simulation.fail_next = True
    simulation.run()
    assert [output.error for output in simulation.outputs.values()] == [ErrorKind.OUT_OF_MEMORY, None, None, None]
    simulation.check_tokens()


def test_tokens_said_before_count_as_generated():
    scheduler = Scheduler(pool=BlockPool(9, 4), max_sequences=2, max_length=64, max_batch_tokens=32, clock=lambda: 0.0)
    scheduler.submit(Submit(RequestId(1), [5, 6, 7, 8, 9], SamplingParams(max_tokens=3), said=2))
    batch = scheduler.schedule()
    (admission,) = batch.admissions
    assert (admission.num_prompt_tokens, list(admission.tokens)) == (3, [5, 6, 7, 8, 9])
    (delta,) = scheduler.commit(batch, StepResult([1]))
    assert (delta.tokens, delta.finish) == ([1], FinishReason.LENGTH)

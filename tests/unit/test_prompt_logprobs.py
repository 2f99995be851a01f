"""Log-probabilities of prompts: the model's own, however a prompt is cut; once a request; few rows at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mainspring.core.batch import Batch, Buckets, PromptRange, StepResult
from mainspring.core.errors import ErrorKind
from mainspring.core.execution.scoring import plan_scoring, score
from mainspring.core.ops.logprobs import logprobs
from mainspring.core.plan import SCORED_ROWS
from mainspring.core.request import FinishReason, SamplingParams, Submit, TokenLogprobs
from mainspring.core.scheduling.prompt_scores import PromptScores
from tests.support.tiny_model import NAN_TOKEN, VOCAB, TinyModel, all_logits
from tests.unit.test_scheduled_execution import BLOCK_SIZE, BUCKETS, LENGTH, REQUESTS, SHARED, Loop, submit

TOLERANCE = 1e-5
LONG = [(7 * number + 3) % 90 for number in range(50)]


def scored(number: int, tokens: list[int], top: int = 0, n: int = 1, **params: object) -> Submit:
    return submit(number, tokens, SamplingParams(**({"max_tokens": 5} | params), prompt_logprobs=top), n=n)


SCORED = [
    scored(21, LONG, 3),
    scored(22, SHARED, 1, n=3, temperature=1.0, seed=2),
    scored(23, [*SHARED, 5, 6, 7], 0, max_tokens=0),
    scored(24, LONG[:30], 5, logprobs=2),
    scored(25, [4], 2),
]


def distribution(tokens: list[int]) -> Tensor:
    """[T, V] log-probabilities of the next token at each position, in one pass without an executor."""
    return all_logits(tokens, BLOCK_SIZE).log_softmax(-1)


def check(found: list[TokenLogprobs], tokens: list[int], top: int) -> None:
    """The entries are those of the prompt's tokens from the second on, and name the `top` likeliest."""
    expected_TV = distribution(tokens)[:-1]
    own_T = expected_TV.gather(1, torch.tensor(tokens[1:], dtype=torch.int64)[:, None])[:, 0]
    assert [entry.logprob for entry in found] == pytest.approx(own_T.tolist(), abs=TOLERANCE)
    best = expected_TV.topk(top, dim=-1)
    assert [entry.top_ids for entry in found] == best.indices.tolist()
    for entry, values in zip(found, best.values.tolist(), strict=True):
        assert entry.top_logprobs == pytest.approx(values, abs=TOLERANCE)


def check_all(loop: Loop, requests: list[Submit]) -> None:
    told = loop.prompt_logprobs()
    assert told.keys() == {request.request_id for request in requests}
    for request in requests:
        check(told[request.request_id], request.tokens, request.params.prompt_logprobs or 0)


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("max_batch_tokens", [1, 7, 24, 200])
def test_they_are_the_model_s_however_a_prompt_is_cut(ahead: int, max_batch_tokens: int) -> None:
    loop = Loop(ahead=ahead, max_batch_tokens=max_batch_tokens)
    loop.serve([*REQUESTS[:3], *SCORED])
    check_all(loop, SCORED)


@pytest.mark.parametrize("num_blocks", [26, 200])
@pytest.mark.parametrize("buckets", [None, BUCKETS], ids=["dynamic", "static"])
def test_they_are_the_model_s_in_a_small_cache_and_in_buckets(num_blocks: int, buckets: Buckets | None) -> None:
    loop = Loop(num_blocks=num_blocks, buckets=buckets)
    loop.serve([*SCORED, *REQUESTS])
    check_all(loop, SCORED)
    assert (loop.scheduler.stats().preemptions > 0) == (num_blocks == 26)


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_prompt_preempted_half_way_is_told_whole_and_once(ahead: int) -> None:
    loop = Loop(num_blocks=18, ahead=ahead, max_batch_tokens=9)
    victim = scored(21, LONG, 3)
    loop.scheduler.submit(victim)
    for _ in range(3):
        batch = loop.scheduler.schedule()
        assert batch is not None
        loop.flying.append((batch, loop.executor.execute(batch)))
    urgent = Submit(submit(1, [], SamplingParams()).request_id, LONG[:45], SamplingParams(max_tokens=3), priority=9)
    loop.serve([urgent])
    assert loop.scheduler.stats().preemptions == 1
    check_all(loop, [victim])


def test_scoring_changes_no_tokens() -> None:
    plain = [submit(30, LONG, SamplingParams(max_tokens=8)), submit(31, SHARED, SamplingParams(max_tokens=8), n=2)]
    asked = [scored(30, LONG, 2, max_tokens=8), scored(31, SHARED, 0, n=2, max_tokens=8)]
    assert Loop().serve(asked) == Loop().serve(plain)


def test_a_request_that_generates_nothing_ends_by_length_with_its_prompt_scored() -> None:
    loop = Loop()
    loop.serve([scored(1, LONG, max_tokens=0, logprobs=0, min_tokens=3), scored(2, [8], max_tokens=0)])
    assert {(delta.request_id, *delta.tokens, delta.finish, delta.logprobs) for delta in loop.deltas} == {
        (1, FinishReason.LENGTH, None),
        (2, FinishReason.LENGTH, None),
    }
    assert len(loop.deltas) == 2
    assert [len(loop.prompt_logprobs()[number]) for number in (1, 2)] == [len(LONG) - 1, 0]
    assert loop.scheduler.stats().generated_tokens == 0


def test_a_prompt_that_fills_the_context_can_be_scored() -> None:
    whole = [(5 * number) % 90 for number in range(LENGTH)]
    loop = Loop()
    loop.serve([scored(1, whole, max_tokens=0)])
    check_all(loop, [scored(1, whole)])


def test_nothing_is_generated_without_scores_either() -> None:
    loop = Loop()
    loop.serve([submit(1, SHARED, SamplingParams(max_tokens=0))])
    assert [(delta.tokens, delta.finish, delta.prompt_logprobs) for delta in loop.deltas] == [
        ([], FinishReason.LENGTH, None)
    ]


def test_a_scored_prompt_takes_no_prefix_and_gives_one() -> None:
    loop = Loop()
    for number, top in ((1, None), (2, 0), (3, None)):
        params = SamplingParams(max_tokens=2, prompt_logprobs=top)
        loop.scheduler.submit(submit(number, LONG, params))
        while loop.scheduler.has_work:
            batch = loop.scheduler.schedule()
            if batch is not None:
                loop.deltas += loop.scheduler.commit(batch, loop.executor.execute(batch).result())
    cached = [delta.start.cached_tokens for delta in loop.deltas if delta.start is not None]
    assert (cached[0], cached[1]) == (0, 0)
    assert cached[2] == (len(LONG) - 1) // BLOCK_SIZE * BLOCK_SIZE
    check_all(loop, [scored(2, LONG)])
    loop.executor.close()


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_prompt_with_numbers_that_are_none_ends_its_request_and_no_other(ahead: int) -> None:
    loop = Loop(ahead=ahead)
    loop.serve([SCORED[0], scored(40, [*SHARED, NAN_TOKEN, *SHARED], 1, n=2), SCORED[1]])
    assert loop.errors() == {40: ErrorKind.NUMERICAL}
    check_all(loop, SCORED[:2])


def test_one_number_that_is_none_is_enough() -> None:
    """The last row's logits are in order, so the step itself reports nothing bad."""
    scheduler = Loop().scheduler
    scheduler.submit(scored(1, [5, 6, 7, 8], n=2))
    batch = scheduler.schedule()
    assert batch is not None
    broken = [*entries(2), TokenLogprobs(math.nan, [], [])]
    deltas = scheduler.commit(batch, StepResult([9], prompt_logprobs=[broken]))
    assert [(delta.tokens, delta.error) for delta in deltas] == [([], ErrorKind.NUMERICAL)] * 2
    assert not scheduler.has_work


# --- on the device


def test_logits_are_never_held_for_more_than_a_few_rows() -> None:
    rows: list[int] = []
    model = TinyModel()
    model.steps.append((0, 0))

    def logits(hidden_NE: Tensor) -> Tensor:
        rows.append(len(hidden_NE))
        return model.logits(hidden_NE)

    length = 2 * SCORED_ROWS + 50
    generator = torch.Generator().manual_seed(1)
    hidden_TE = torch.randn(length, model.head_VE.shape[1], generator=generator)
    tokens = torch.randint(0, VOCAB, (3, length + 1), generator=generator, dtype=torch.int32)
    batch = Batch(0, rows=[2], starts=[0], counts=[length], samples=[False], num_tokens=length)
    batch.prompt_logprobs = [PromptRange(0, 1, length, 3)]
    for padded in (False, True):
        scoring = plan_scoring(batch, torch.from_numpy, padded=padded)
        parts = score(scoring, hidden_TE, tokens, logits, logprobs)
        found_M, top_ids_Mk, _ = map(torch.cat, zip(*parts, strict=True))
        expected_TV = model.logits(hidden_TE).log_softmax(-1)
        own_T = expected_TV.gather(1, tokens[2, 1:].long()[:, None])[:, 0]
        assert torch.allclose(found_M[:length], own_T, atol=TOLERANCE)
        assert torch.equal(top_ids_Mk[:length, :3].long(), expected_TV.topk(3).indices)
    assert rows == [SCORED_ROWS, SCORED_ROWS, 50, SCORED_ROWS, SCORED_ROWS, SCORED_ROWS]


# --- the books


def entries(count: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(-float(number), [], []) for number in range(count)]


def test_each_position_is_asked_for_once_and_in_order() -> None:
    scores = PromptScores(10, 2)
    assert scores.ask(0, 0, 4) == PromptRange(0, 1, 4, 2)
    assert scores.settled == 4
    assert scores.ask(3, 0, 3) is None
    assert scores.ask(3, 2, 6) == PromptRange(3, 5, 2, 2)
    assert scores.ask(1, 6, 10) == PromptRange(1, 7, 3, 2)
    assert scores.settled == 10
    assert scores.ask(1, 9, 12) is None


def test_a_gap_is_refused() -> None:
    scores = PromptScores(10, 0)
    with pytest.raises(ValueError, match="positions 0 to 4 are skipped"):
        scores.ask(0, 4, 6)


def test_what_was_in_flight_is_asked_again() -> None:
    scores = PromptScores(10, 0)
    scores.ask(0, 0, 4)
    scores.answer(entries(4))
    assert not scores.forget_open()
    scores.ask(0, 4, 9)
    epoch = scores.epoch
    assert scores.forget_open()
    assert scores.epoch > epoch
    assert scores.settled == 4
    assert scores.ask(0, 0, 9) == PromptRange(0, 5, 5, 0)


def test_they_are_delivered_once() -> None:
    scores = PromptScores(3, 0)
    scores.ask(0, 0, 3)
    scores.answer(entries(2))
    assert scores.deliver() == entries(2)
    assert scores.deliver() is None
    assert not scores.forget_open()

"""Running: rows, and the order in which their holders give way."""

from __future__ import annotations

from mainspring.core.request import RequestId, SamplingParams, Submit
from mainspring.core.scheduling.running import MAX_PREEMPTIONS, Running
from mainspring.core.scheduling.sequence import Request, Sequence


def make_sequence(number: int, *, prompt: int, priority: int = 0) -> Sequence:
    submit = Submit(RequestId(number), [1] * prompt, SamplingParams(), priority=priority)
    request = Request(submit, number, arrival=float(number), deadline=None)
    return Sequence(
        request=request,
        request_id=submit.request_id,
        index=0,
        rank=request.rank(0),
        priority=priority,
        params=submit.params,
        seed=0,
        tokens=list(submit.tokens),
        num_prompt=prompt,
        limit=64,
        min_length=prompt,
        stop_ids=frozenset(),
    )


def test_the_newest_of_the_lowest_priority_gives_way_first_whether_it_decodes_or_prefills():
    running = Running(8)
    for number in range(6):
        running.add(make_sequence(number, prompt=1 + number % 2, priority=int(number == 4)))
    assert [sequence.request.number for sequence in running.yielding()] == [5, 3, 2, 1, 0, 4]


def test_a_pinned_sequence_never_gives_way():
    running = Running(8)
    pinned, other = make_sequence(2, prompt=1), make_sequence(1, prompt=1)
    pinned.preemptions = MAX_PREEMPTIONS
    for sequence in (pinned, other):
        running.add(sequence)
    assert list(running.yielding()) == [other]


def test_rows_go_round():
    running = Running(2)
    one, two = make_sequence(1, prompt=1), make_sequence(2, prompt=5)
    running.add(one)
    running.add(two)
    assert (one.row, two.row, running.free_rows) == (0, 1, [])
    running.remove(two)
    assert running.free_rows == [1]
    assert list(running) == [one]

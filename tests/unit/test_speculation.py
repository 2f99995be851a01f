"""What guesses, how well it is thought of, and when guessing is let be: without a scheduler."""

from __future__ import annotations

import random

import pytest

from mainspring.core.speculation.copying import Copying
from mainspring.core.speculation.gate import FIRST_PAUSE, LONGEST_PAUSE, LOOK_STEPS, REFRESH_STEPS, Gate
from mainspring.core.speculation.offers import HOPE, Offers
from mainspring.core.speculation.outlook import worthwhile
from mainspring.core.speculation.speculation import LIKELY


def test_a_line_of_guesses_is_as_long_as_it_is_likely() -> None:
    assert [worthwhile(likelihood, 8) for likelihood in (0.1, 0.5, 0.7, 0.9, 1.0)] == [0, 2, 4, 8, 8]


def test_what_was_said_once_is_copied() -> None:
    passage = list(range(10, 30))
    tokens = [1, *passage, 2, *passage[:3]]
    copying = Copying(tokens, num_prompt=len(tokens))
    assert copying.propose(4) == passage[3:4]  # not much is thought of it yet
    tokens += passage[3:15]
    assert copying.likelihood() > 0.9
    assert copying.propose(4) == passage[15:19]


def test_a_passage_that_runs_into_the_end_repeats() -> None:
    tokens = [7, 8, 9] * 8
    copying = Copying(tokens, num_prompt=6)
    assert copying.propose(5) == [7, 8, 9, 7, 8]


def test_the_longer_match_decides() -> None:
    tokens = [1, 2, 3, 4, 50, 9, 9, 3, 4, 60, 9, 1, 2, 3, 4]
    copying = Copying(tokens, num_prompt=len(tokens))
    assert copying.propose(1) == [50]
    assert Copying([*tokens[5:10], 8, 3, 4], num_prompt=8).propose(1) == [60]


def test_nothing_is_guessed_of_what_was_never_said() -> None:
    tokens = list(range(40))
    copying = Copying(tokens, num_prompt=4)
    assert copying.likelihood() == 0
    assert copying.propose(4) == []


def test_a_sequence_that_does_not_copy_loses_its_standing() -> None:
    """Pairs recur, and something else follows each time."""
    tokens = [1, 2, 30]
    copying = Copying(tokens, num_prompt=3)
    for other in range(31, 45):
        tokens += [1, 2, other]
        copying.likelihood()
    tokens += [1, 2]
    assert 0 < copying.likelihood() < LIKELY
    assert copying.propose(4) == []


def test_it_does_not_matter_when_somebody_looks() -> None:
    source = random.Random(5)
    tokens = [source.randrange(3) for _ in range(200)]
    at_once = Copying(tokens, num_prompt=10)
    growing = tokens[:10]
    step_by_step = Copying(growing, num_prompt=10)
    for token in tokens[10:]:
        step_by_step.propose(3)
        growing.append(token)
    assert step_by_step.propose(6) == at_once.propose(6)
    assert step_by_step.likelihood() == at_once.likelihood()


def test_offers_are_taken_while_they_are_right() -> None:
    offers = Offers([1, 2, 3])
    offers.take([1, 2, 3], behind=3)
    assert offers.propose(2) == [1, 2]
    assert offers.propose(2) == [1, 2], "the step took no guesses"
    for _ in range(6):
        offers.verified(right=0, drafted=3)
    assert offers.likelihood() < LIKELY
    offers.take([4], behind=3)
    assert offers.propose(2) == []


def test_offers_are_for_one_place() -> None:
    tokens = [1, 2, 3]
    offers = Offers(tokens)
    offers.take([4, 5], behind=3)
    tokens.append(4)
    assert offers.propose(2) == [], "the sequence went on without them"


def test_a_sequence_whose_offers_were_wrong_is_tried_again() -> None:
    offers = Offers([1, 2, 3])
    for _ in range(20):
        offers.verified(right=0, drafted=1)
    looks = next(look for look in range(1, 1000) if offers.likelihood() >= LIKELY)
    assert 20 <= looks <= 50
    for _ in range(100):
        offers.likelihood()
    assert offers.likelihood() == pytest.approx(HOPE, abs=0.03)


def run(gate: Gate, steps: int, *, rows: int = 4, gain: float, drafting_seconds: float = 2.0) -> int:
    """How many of so many steps drafted, where such a step brings `gain` times the rate of one that does not."""
    drafted = 0
    for _ in range(steps):
        if gate.open(rows):
            drafted += 1
            gate.saw(rows, round(rows * gain * drafting_seconds * 100), drafting_seconds, drafting=True)
        else:
            gate.saw(rows, rows * 100, 1.0, drafting=False)
    return drafted


def test_the_gate_looks_at_plain_steps_first() -> None:
    gate = Gate()
    assert not gate.open(4)
    assert run(gate, LOOK_STEPS, gain=2) == 0
    assert gate.open(4)
    assert not gate.open(16), "other sizes are other machines"


def test_the_gate_stays_open_while_it_pays() -> None:
    gate = Gate()
    steps = 4 * REFRESH_STEPS
    assert run(gate, steps, gain=1.5) > 0.95 * steps


@pytest.mark.parametrize("gain", [0.3, 0.9, 1.0, 1.04])
def test_looking_costs_less_than_a_hundredth_where_it_does_not_pay(gain: float) -> None:
    gate = Gate()
    run(gate, 1000, gain=gain)
    assert run(gate, 20_000, gain=gain) < 100


@pytest.mark.parametrize("seconds", [1.5, 4.0, 15.0, 60.0])
def test_dear_looks_are_few(seconds: float) -> None:
    gate, steps = Gate(), 40_000
    drafted = run(gate, steps, gain=1 / seconds, drafting_seconds=seconds)
    assert drafted > LOOK_STEPS, "it looks again"
    assert drafted * (seconds - 1) < 0.02 * steps


def test_the_first_step_of_a_shape_is_no_verdict() -> None:
    gate = Gate()
    run(gate, LOOK_STEPS, gain=1)
    gate.saw(4, 4 * 100, 500.0, drafting=True)
    assert run(gate, 100, gain=1.5) == 100


def test_a_step_of_a_size_that_nobody_knows_is_no_verdict() -> None:
    gate = Gate()
    gate.saw(4, 4, 1.0, drafting=True)
    assert run(gate, 100, gain=1.5) == 100 - LOOK_STEPS


def test_the_gate_opens_again_when_it_begins_to_pay() -> None:
    gate = Gate()
    run(gate, 3 * FIRST_PAUSE, gain=0.5)
    assert run(gate, LONGEST_PAUSE, gain=2) > LONGEST_PAUSE // 2


def test_the_gate_closes_when_it_pays_no_more() -> None:
    gate = Gate()
    run(gate, 1000, gain=2)
    assert run(gate, 2000, gain=0.5) < 200


def test_a_hiccup_is_no_verdict() -> None:
    gate = Gate()
    run(gate, 200, gain=1.5)
    gate.saw(4, 4, 1000.0, drafting=True)
    assert gate.open(4)

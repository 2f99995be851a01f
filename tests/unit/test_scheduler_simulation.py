"""One seed, one history: whole lives of a scheduler under random requests, limits, cancels, faults and run-ahead.

The oracle checks every slot that a row attends; the simulation checks the books after every turn, one end a sequence,
and that each sequence got the tokens it gets alone. A failing seed is printed as the test's parameter.
"""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mainspring.core.batch import Bucket, Buckets
from mainspring.core.errors import ErrorKind, RequestError
from tests.support.paged_oracle import Guesser, Simulation

NAN_TOKEN = 5
COMMON = [1, 2, 3, 1, 1, 2, 2, 3, 3, 1, 2, 1, 3, 3, 2, 2]


def random_buckets(source: random.Random) -> Buckets | None:
    if source.random() < 0.6:
        return None
    blocks = source.randint(6, 12)
    rows, tokens = source.randint(1, 8), source.randint(1, 24)
    return Buckets(
        decode=(Bucket(1, 1, blocks // 2), Bucket(rows, rows, blocks)),
        prefill=(Bucket(1 + tokens // 2, 1, blocks), Bucket(1 + tokens, 1 + rows // 2, blocks)),
    )


def random_simulation(source: random.Random) -> Simulation:
    return Simulation(
        num_blocks=source.randint(10, 40),
        block_size=source.choice([1, 2, 4]),
        depth=source.randint(1, 3),
        prefix_caching=source.random() < 0.8,
        tick=source.choice([0.1, 1.0, 5.0]),
        max_sequences=source.randint(1, 8),
        max_batch_tokens=source.randint(1, 24),
        max_prefill_chunk=source.choice([None, 1, 3, 8]),
        max_length=40,
        mixes_prefill_and_decode=source.random() < 0.6,
        buckets=random_buckets(source),
        seed=source.randrange(1000),
        speculation=Guesser(source.randint(1, 6), source) if source.random() < 0.5 else None,
    )


def submit_random(simulation: Simulation, source: random.Random, *, poison: bool) -> None:
    # Most prompts begin alike and end apart, so that they share blocks.
    prompt = COMMON[: source.randint(0, 16)] + [source.randrange(1, 4) for _ in range(source.randint(1, 6))]
    if poison and source.random() < 0.2:
        prompt[source.randrange(len(prompt))] = NAN_TOKEN
    with contextlib.suppress(RequestError):  # a prompt longer than this cache
        simulation.submit(
            prompt,
            n=source.choice([1, 1, 2, 4]),
            priority=source.choice([0, 0, 1, 3]),
            timeout=source.choice([None, None, 20.0]),
            cache_salt=source.choice(["", "", "other"]),
            temperature=source.choice([0, 1]),
            max_tokens=source.choice([None, *range(20)]),
            prompt_logprobs=source.choice([None, None, 0, 2]),
            min_tokens=source.choice([0, 0, 3]),
            stop_token_ids=source.choice([(), (7,)]),
        )


@pytest.mark.promise("F8", "P7", "P9")
@pytest.mark.parametrize("seed", range(150))
def test_load_changes_no_tokens_and_leaks_nothing(seed):
    source = random.Random(seed)
    simulation = random_simulation(source)
    for _ in range(source.randint(1, 30)):
        submit_random(simulation, source, poison=False)
        for _ in range(source.randint(0, 4)):
            simulation.turn()
        if source.random() < 0.2:
            simulation.cancel(source.randint(1, 20), source.choice([None, 0, 1]))
    simulation.run()
    simulation.check_tokens()
    simulation.check_prompt_logprobs()


@pytest.mark.promise("F8", "P9", "P10")
@pytest.mark.parametrize("seed", range(150))
def test_faults_of_some_requests_change_no_tokens_of_others(seed):
    """Some prompts make their rows NaN and some steps fail as a whole, while others share prefixes with them."""
    source = random.Random(seed)
    simulation = random_simulation(source)
    simulation.nan_tokens = frozenset({NAN_TOKEN})
    for _ in range(source.randint(1, 30)):
        submit_random(simulation, source, poison=True)
        simulation.fail_next = source.random() < 0.1
        for _ in range(source.randint(0, 4)):
            simulation.turn()
        if source.random() < 0.2:
            simulation.cancel(source.randint(1, 20), source.choice([None, 0, 1]))
    simulation.run()
    for output in simulation.outputs.values():
        if output.error is ErrorKind.NUMERICAL:
            # Generated tokens may be the poisonous one too.
            assert NAN_TOKEN in output.submit.tokens + output.tokens
    simulation.check_tokens()
    simulation.check_prompt_logprobs()


class SchedulerMachine(RuleBasedStateMachine):
    """The engine's calls in any order that it may make them, with clients and faults in between."""

    @initialize(seed=st.integers(0, 2**16))
    def open(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.simulation = random_simulation(self.source)
        self.simulation.nan_tokens = frozenset({NAN_TOKEN})

    @rule()
    def submit(self) -> None:
        submit_random(self.simulation, self.source, poison=True)

    @rule()
    def schedule(self) -> None:
        simulation = self.simulation
        if len(simulation.pending) < 4:
            batch = simulation.scheduler.schedule()
            if batch is not None:
                result = simulation.oracle.execute(batch, nan_tokens=simulation.nan_tokens)
                simulation.pending.append((batch, result, False))

    @precondition(lambda self: self.simulation.pending)
    @rule()
    def commit(self) -> None:
        self.simulation.commit_one()

    @rule(turns=st.integers(1, 8))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.simulation.turn()

    @rule(fraction=st.floats(0, 1), index=st.sampled_from([None, None, 0, 1]))
    def cancel(self, fraction: float, index: int | None) -> None:
        live = sorted({key[0] for key, output in self.simulation.outputs.items() if output.finish is None})
        if live:
            self.simulation.cancel(live[int(fraction * (len(live) - 1))], index)

    @rule()
    def fail(self) -> None:
        self.simulation.fail_next = True

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.simulation.now += seconds
        self.simulation.receive(self.simulation.scheduler.expire())

    @invariant()
    def books_balance(self) -> None:
        assert not self.simulation.scheduler.check()

    def teardown(self) -> None:
        self.simulation.run()
        self.simulation.check_tokens()
        self.simulation.check_prompt_logprobs()


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSchedulerMachine = pytest.mark.promise("F8", "P7")(SchedulerMachine.TestCase)

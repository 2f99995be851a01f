"""Isolation: each request alone, and the same requests inside random timed traces, on a real engine process (P9, F24).

The simulator's tokens depend on the whole prompt as it lies in the paged cache, so a wrong block, a stale prefix or a
row mixed up with another gives other tokens. A trace mixes priorities, siblings, cancels, deadlines and shared prefixes
on engines that differ in memory, chunks and shapes; a failing trace is named by its seed.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mainspring.core.errors import ErrorKind
from mainspring.core.request import Delta, FinishReason, SamplingParams
from mainspring.server.client import EngineClient
from tests.support.promises import Measured
from tests.support.serving import at_rest, serving

CATALOGUE = 240
TRACE = 1000
AT_ONCE = 120
VOCABULARY = {"eos": "0.02", "vocabulary": "100-900", "speed": "0"}

ENGINES: dict[str, dict[str, Any]] = {
    "ample": {},
    "scarce memory": {"num_blocks": 40},
    "small chunks": {"max_prefill_chunk": 24, "max_batch_tokens": 48, "num_blocks": 120},
    "compiled shapes": {"device_index": 5, "num_blocks": 300},
    "few rows, no prefix cache": {"max_sequences": 3, "prefix_caching": False},
}


@dataclass(frozen=True)
class Question:
    """A request that is asked again and again, so always with the same parameters."""

    prompt: list[int]
    params: SamplingParams
    n: int


Heard = tuple[list[int], list[Any], FinishReason | None]
"""Tokens, log-probabilities and the end of one sequence."""


def catalogue(dice: random.Random) -> list[Question]:
    """Prompts of 1 to 300 tokens, most of which begin like others."""
    stems = [[dice.randrange(3, 999) for _ in range(length)] for length in (16, 47, 64, 200)]
    return [_question(dice, stems) for _ in range(CATALOGUE)]


def _question(dice: random.Random, stems: list[list[int]]) -> Question:
    stem = dice.choice(stems)
    prompt = stem[: dice.randrange(len(stem) + 1)] + [dice.randrange(3, 999) for _ in range(dice.randrange(1, 60))]
    n = dice.choice([1, 1, 1, 2, 4])
    warm = dice.random() < 0.5
    params = SamplingParams(
        max_tokens=dice.randrange(1, 32),
        temperature=1.0 if warm else 0.0,
        seed=dice.randrange(1000) if warm else 0,
        logprobs=dice.choice([None, None, 0, 2]),
        min_tokens=0,
        stop_token_ids=(dice.randrange(100, 900),) if dice.random() < 0.3 else (),
        logit_bias={dice.randrange(100, 900): 5.0} if dice.random() < 0.1 else {},
    )
    return Question(prompt, params, n)


async def hear(
    client: EngineClient, question: Question, *, priority: int = 0, timeout: float | None = None, leave_after: int = 0
) -> list[Heard]:
    """What each sequence said, up to the end or until `leave_after` deltas were read."""
    heard: list[Heard] = [([], [], None)] * question.n
    stream = client.submit(question.prompt, question.params, n=question.n, priority=priority, timeout=timeout)
    count = 0
    async with stream:
        async for delta in stream:
            heard[delta.index] = _with(heard[delta.index], delta)
            count += 1
            if count == leave_after:
                break
    return heard


def _with(heard: Heard, delta: Delta) -> Heard:
    tokens, logprobs, _ = heard
    finish = delta.finish
    if delta.error is ErrorKind.DEADLINE:
        finish = FinishReason.CANCELLED
    elif delta.error is not None:
        raise AssertionError(delta.message)
    entries = [(entry.logprob, entry.top_ids, entry.top_logprobs) for entry in delta.logprobs or ()]
    return tokens + delta.tokens, logprobs + entries, finish


def same(heard: Heard, alone: Heard) -> bool:
    """Whether it is what was said alone; of what was cut short, its beginning."""
    tokens, logprobs, finish = heard
    if finish in (None, FinishReason.CANCELLED):
        return tokens == alone[0][: len(tokens)] and logprobs == alone[1][: len(logprobs)]
    return heard == alone


async def trace(client: EngineClient, questions: list[Question], dice: random.Random) -> list[tuple[int, list[Heard]]]:
    """Random questions at random moments, some left early."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, moment: float, leave_after: int, priority: int, timeout: float | None) -> list[Heard]:
        async with gate:
            await asyncio.sleep(moment)
            question = questions[number]
            return await hear(client, question, priority=priority, timeout=timeout, leave_after=leave_after)

    numbers = [dice.randrange(len(questions)) for _ in range(TRACE)]
    asked = [
        one(
            number,
            dice.choice([0.0, 0.0, dice.uniform(0, 0.02)]),
            dice.choice([0, 0, 0, dice.randrange(1, 12)]),
            dice.choice([0, 0, 1, 3]),
            dice.choice([None, None, None, dice.uniform(0.001, 0.2)]),
        )
        for number in numbers
    ]
    return list(zip(numbers, await asyncio.gather(*asked), strict=True))


@pytest.mark.promise("P9", "F24", "P7")
def test_p9_f24_company_changes_nobodys_bytes(model: Path, measured: Measured) -> None:
    seed = 20250607
    differences: list[str] = []
    cut = preemptions = hits = 0

    async def all_traces() -> None:
        nonlocal cut, preemptions, hits
        questions = catalogue(random.Random(seed))
        async with serving(model, **VOCABULARY) as client:
            alone = [await hear(client, question) for question in questions]
        for number, (name, engine) in enumerate(ENGINES.items()):
            async with serving(model, **engine, **VOCABULARY) as client:
                for which, heard in await trace(client, questions, random.Random(seed + number)):
                    cut += any(finish in (None, FinishReason.CANCELLED) for _, _, finish in heard)
                    if not all(map(same, heard, alone[which])):
                        differences.append(f"{name}, seed {seed + number}, question {which}")
                await at_rest(client)
                assert client.stats.blocks_used == 0, name
                preemptions += client.stats.preemptions
                hits += client.stats.prefix_hits

    started = time.monotonic()
    asyncio.run(all_traces())
    assert not differences
    # The traces held what they are about.
    assert cut > TRACE / 10
    assert preemptions > 10
    assert hits > 1000
    measured(
        f"0 of {TRACE * len(ENGINES)} traced requests differ ({cut} cut short, {preemptions} preemptions, "
        f"{hits} prompt tokens from the prefix cache) in {time.monotonic() - started:.0f} s"
    )

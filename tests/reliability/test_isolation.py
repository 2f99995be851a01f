"""Isolation: each request alone, and the same requests inside random timed traces, on a real engine process (P9, F24).

The simulator's tokens depend on the whole prompt as it lies in the paged cache, so a wrong block, a stale prefix or a
row mixed up with another gives other tokens. A trace mixes priorities, siblings, cancels, deadlines, stop strings and
shared prefixes on engines that differ in memory, chunks and shapes; a failing trace is named by its seed.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.request import FinishReason, SamplingParams
from mainspring.server.engine.client import EngineClient
from mainspring.server.text.generation import Generation, Piece, generate
from mainspring.server.text.tokenizer import Tokenizer, load_tokenizer
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
    stops: tuple[str, ...]


@dataclass
class Heard:
    """What one sequence said."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish: FinishReason | None = None
    """None when it was cut short."""


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
    # Short enough to be met, and some of them only across tokens.
    stops = tuple(f"{dice.choice(['', '7 '])}w{dice.randrange(30, 90)}" for _ in range(dice.choice([0, 0, 1, 3])))
    return Question(prompt, params, n, stops)


@dataclass(frozen=True)
class Asker:
    """Who asks questions of one engine."""

    client: EngineClient
    tokenizer: Tokenizer

    async def hear(
        self, question: Question, *, priority: int = 0, timeout: float | None = None, leave_after: int = 0
    ) -> list[Heard]:
        """What each sequence said, up to the end, a deadline, or until `leave_after` pieces were read."""
        heard = [Heard() for _ in range(question.n)]
        generation = Generation(
            tokens=question.prompt,
            params=question.params,
            n=question.n,
            stops=question.stops,
            priority=priority,
            timeout=timeout,
        )
        count = 0
        try:
            async with aclosing(generate(self.client, self.tokenizer, generation)) as pieces:
                async for piece in pieces:
                    _add(heard[piece.index], piece)
                    count += 1
                    if count == leave_after:
                        break
        except RequestError as error:
            if error.kind is not ErrorKind.DEADLINE:
                raise
        return heard


def _add(heard: Heard, piece: Piece) -> None:
    heard.text += piece.text
    for token in piece.tokens:
        heard.tokens.append(token.id)
        if token.logprobs is not None:
            entry = token.logprobs
            heard.logprobs.append((entry.logprob, entry.top_ids, entry.top_logprobs))
    heard.finish = None if piece.finish is None else piece.finish.reason


def same(heard: Heard, alone: Heard) -> bool:
    """Whether it is what was said alone; of what was cut short, its beginning."""
    if heard.finish is not None:
        return heard == alone
    return (
        alone.text.startswith(heard.text)
        and heard.tokens == alone.tokens[: len(heard.tokens)]
        and heard.logprobs == alone.logprobs[: len(heard.logprobs)]
    )


async def trace(asker: Asker, questions: list[Question], dice: random.Random) -> list[tuple[int, list[Heard]]]:
    """Random questions at random moments, some left early."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, moment: float, leave_after: int, priority: int, timeout: float | None) -> list[Heard]:
        async with gate:
            await asyncio.sleep(moment)
            question = questions[number]
            return await asker.hear(question, priority=priority, timeout=timeout, leave_after=leave_after)

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
    cut = stopped = preemptions = hits = 0
    tokenizer = load_tokenizer(model)

    async def all_traces() -> None:
        nonlocal cut, stopped, preemptions, hits
        questions = catalogue(random.Random(seed))
        async with serving(model, **VOCABULARY) as client:
            alone = [await Asker(client, tokenizer).hear(question) for question in questions]
        for number, (name, engine) in enumerate(ENGINES.items()):
            async with serving(model, **engine, **VOCABULARY) as client:
                for which, heard in await trace(Asker(client, tokenizer), questions, random.Random(seed + number)):
                    cut += any(sequence.finish is None for sequence in heard)
                    stopped += any(sequence.finish is FinishReason.STOP for sequence in heard)
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
    assert stopped > TRACE / 10
    assert preemptions > 10
    assert hits > 1000
    measured(
        f"0 of {TRACE * len(ENGINES)} traced requests differ ({cut} cut short, {stopped} stopped, "
        f"{preemptions} preemptions, {hits} prompt tokens from the prefix cache) in {time.monotonic() - started:.0f} s"
    )

"""`bench serve`: the same load for every peer, one after another, and what they made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mainspring.core.errors import StartupError
from mainspring.server.bench.arrivals import Rate, arrival_times
from mainspring.server.bench.dialects import DIALECTS
from mainspring.server.bench.http_client import HTTPFailure, Server
from mainspring.server.bench.load import Target, run_load
from mainspring.server.bench.outcome import Outcome
from mainspring.server.bench.prompts import Prompt, Sharing, conversations, random_words, words_for
from mainspring.server.bench.report import Peer, ServeRun
from mainspring.server.bench.summary import Objectives, summarize

_WARMUP_SEED, _COUNT_SEED = 1 << 20, 1 << 21
"""Above the seeds of runs, whose prompts must be in no cache. Not below 0: a generator forgets its seed's sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What every peer is sent."""

    requests: int
    rates: tuple[Rate, ...]
    """One run each."""
    input_tokens: int
    shared_tokens: int = 0
    """Of `input_tokens`, those at the beginning that are the same in many prompts."""
    prefixes: int = 1
    """How many such beginnings there are."""
    output_tokens: int | None
    """None takes the lengths of the answers in `dataset`."""
    dataset: Path | None
    max_concurrency: int | None
    warmup: int
    """Requests that are not counted, sent before each peer's first run."""
    timeout: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A peer as the operator names it."""

    name: str
    url: str
    api: str
    model: str | None
    headers: Mapping[str, str]
    extra: Mapping[str, Any]
    """Fields of every request."""


async def measure(
    place: Place, load: Load, objectives: Objectives, done: Callable[[], None] | None = None
) -> list[ServeRun]:
    """One run a rate. Raises StartupError when the server cannot be asked at all."""
    server = Server(place.url, place.headers)
    peer = await _introduce(place, server)
    extra = dict(place.extra) if place.api == "tgi" else {"model": peer.model, **place.extra}
    target = Target(server=server, dialect=DIALECTS[place.api], extra=extra, timeout=load.timeout)
    words = 0 if load.dataset else await _words(target, load)
    await _warm_up(target, _prompts(load, load.warmup, words, _WARMUP_SEED + load.seed))
    runs = []
    for number, rate in enumerate(load.rates):
        # Prompts of an earlier run may lie in the server's cache.
        prompts = _prompts(load, load.requests, words, load.seed + number)
        times = arrival_times(len(prompts), rate, load.seed)
        outcomes = await run_load(target, prompts, times, max_concurrency=load.max_concurrency, done=done)
        runs.append(
            ServeRun(
                peer=peer,
                rate=str(rate),
                summary=summarize(outcomes, objectives),
                samples=samples(outcomes),
            )
        )
    return runs


def samples(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Every measured value in milliseconds, sorted."""
    completed = [outcome for outcome in outcomes if not outcome.error]
    seconds = {
        "ttft": [outcome.ttft for outcome in completed],
        "tpot": [tpot for outcome in completed if (tpot := outcome.tpot) is not None],
        "itl": [gap for outcome in completed for gap in outcome.gaps],
        "e2e": [outcome.e2e for outcome in completed],
    }
    return {measure: sorted(round(1000 * value, 3) for value in values) for measure, values in seconds.items()}


async def _introduce(place: Place, server: Server) -> Peer:
    about = {}
    for path in ("/info", "/version"):
        answer = await _told(server, path)
        if isinstance(answer, dict):
            about.update(answer)
    model = place.model or about.get("model_id")
    if model is None:
        models = await _told(server, "/v1/models")
        model = models["data"][0]["id"] if models else None
    if model is None:
        raise StartupError(f"{place.url} does not say which model it serves; name it with --model")
    return Peer(name=place.name, url=place.url, api=place.api, model=model, about=about)


async def _told(server: Server, path: str) -> Any:
    try:
        return await server.get(path)
    except HTTPFailure:
        return None


async def _words(target: Target, load: Load) -> int:
    """How many words make a prompt of the wanted number of tokens, by this server's count."""

    async def count_tokens(num_words: int) -> int:
        (prompt,) = random_words(1, num_words, 1, _COUNT_SEED + load.seed)
        outcome = await _first(target, prompt)
        counted = outcome.prompt_tokens if outcome.counted else await target.prompt_tokens(prompt)
        # A server that tells no numbers gets one word a token.
        return counted or load.input_tokens

    return await words_for(load.input_tokens, count_tokens)


def _prompts(load: Load, count: int, num_words: int, seed: int) -> list[Prompt]:
    if load.dataset is not None:
        return conversations(load.dataset, count, load.output_tokens, seed)
    sharing = Sharing(round(num_words * load.shared_tokens / load.input_tokens), load.prefixes)
    return random_words(count, num_words, load.output_tokens or 1, seed, sharing=sharing)


async def _first(target: Target, prompt: Prompt) -> Outcome:
    outcome = await target.ask(prompt, asyncio.get_running_loop().time())
    if outcome.error and not outcome.counted:  # one token need not be a visible one
        raise StartupError(f"{target.server.url}{target.dialect.path} does not answer: {outcome.error}")
    return outcome


async def _warm_up(target: Target, prompts: Sequence[Prompt]) -> None:
    now = asyncio.get_running_loop().time()
    await asyncio.gather(*(target.ask(prompt, now) for prompt in prompts))

"""Every feature beside every other: requests and table. `python -m tests.support.feature_matrix` prints the latter.

All requests go to one server with one engine, several at a time; those that speculate to another of the same model.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import httpx

from mainspring.core.config import EngineConfig
from mainspring.server.app import ServerOptions
from mainspring.server.source import ModelSource
from tests.server.conftest import RunningServer
from tests.support.byte_model import LOUDNESS, write_byte_model
from tests.support.features import BATCH_TOKENS, FEATURES, Choice, RefusedError, ask, body_of

Pair = frozenset[str]
PAIRS: tuple[Pair, ...] = tuple(frozenset(pair) for pair in combinations(FEATURES, 2))
REFUSED: Mapping[Pair, str] = {
    frozenset({"streaming", "best_of"}): "`best_of` cannot be streamed: which is best is known at the end",
    frozenset({"streaming", "beams"}): "beam search cannot be streamed: which answer is best is known at the end",
    frozenset({"streaming", "prompt_logprobs"}): "`prompt_logprobs` is not available in streams",
}
APART: Mapping[Pair, str] = {
    frozenset({"tools", "best_of"}): "tools are a field of chats, `best_of` one of completions",
}
AT_ONCE = 6

PLUGIN = """
from mainspring.core.plugins import hookimpl
from mainspring.core.speculation import gate

gate.GAIN = 0.0  # the drafts of so small a model do not pay, and are wanted all the same


@hookimpl
def mainspring_logits_processors():
    return {"even": "even_tokens:Even"}
"""
PROCESSOR = """
from mainspring.core.processors.contract import LogitsProcessor
from mainspring.core.request import Parameter


class Even(LogitsProcessor):
    parameters = (Parameter("delta", "number", minimum=0.0, maximum=100.0, default=1.0),)

    def process(self, logits_PV, rows):
        logits_PV[:, ::2] += rows.parameters["delta"][:, None]
        return logits_PV
"""


@dataclass(frozen=True, slots=True)
class Servers:
    """The same model served twice."""

    plain: httpx.Client
    drafting: httpx.Client
    """With itself as the draft model."""

    speculator: RunningServer
    """The latter, from inside."""

    def guesses_taken(self) -> int:
        """How many guesses were right so far."""
        if self.speculator.lifecycle is None:
            raise RuntimeError("the server has not been started")
        return self.speculator.lifecycle.serving()._engine.stats.accepted_tokens


@contextmanager
def served(directory: Path) -> Iterator[Servers]:
    """Servers with the tiny model, and a plugin that favours tokens with even ids."""
    write_byte_model(directory / "model", loudness=LOUDNESS)
    with (
        _plugin(directory / "plugin"),
        _serving(directory / "model") as (plain, _),
        _serving(directory / "model", speculator=str(directory / "model"), speculate=3) as (drafting, speculator),
    ):
        yield Servers(plain, drafting, speculator)


@contextmanager
def _serving(model: Path, **engine: Any) -> Iterator[tuple[httpx.Client, RunningServer]]:
    options = ServerOptions(
        source=ModelSource(model, "tests/byte"),
        engine=EngineConfig(
            model=str(model),
            backend="cpu",
            dtype="float32",
            max_length=256,
            max_batch_tokens=BATCH_TOKENS,
            max_sequences=32,
            num_blocks=2000,
            **engine,
        ),
    )
    with RunningServer(options) as running:
        running.wait_until_ready()
        with httpx.Client(base_url=running.url, timeout=120) as client:
            yield client, running


@contextmanager
def _plugin(folder: Path) -> Iterator[None]:
    """Processes that start meanwhile find it."""
    information = folder / "even_tokens-0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: even-tokens\nVersion: 0\n")
    (information / "entry_points.txt").write_text("[mainspring]\neven = even_hooks\n")
    (folder / "even_hooks.py").write_text(PLUGIN)
    (folder / "even_tokens.py").write_text(PROCESSOR)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before


def try_pair(servers: Servers, pair: Pair) -> str:
    """What the pair's cell says. Raises where a claim does not hold."""
    if pair in APART:
        return "apart"
    try:
        body = body_of(pair, 1 + PAIRS.index(pair))
        run = ask(servers.drafting if "speculation" in pair else servers.plain, pair, body, servers.plain)
    except RefusedError as refusal:
        if str(refusal) != REFUSED.get(pair):
            raise
        return "refused"
    for name in FEATURES:
        if name in pair:
            FEATURES[name].claim(run)
    return "holds"


def try_all(servers: Servers) -> dict[Pair, str | Exception]:
    """Every pair's cell, or what went wrong."""

    def one(pair: Pair) -> str | Exception:
        try:
            return try_pair(servers, pair)
        except (AssertionError, ValueError, KeyError, RuntimeError, RefusedError, httpx.HTTPError) as problem:
            return problem

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return dict(zip(PAIRS, threads.map(one, PAIRS), strict=True))


def speculated(servers: Servers, count: int, seed: int = 0) -> Iterator[str]:
    """What guessing changed of answers to so many requests for several features at once, chosen at random."""
    draws, others = random.Random(seed), [name for name in FEATURES if name != "speculation"]
    impossible = {*REFUSED, *APART}
    asked: list[Pair] = []
    while len(asked) < count:
        names = frozenset(draws.sample(others, draws.randint(3, 7)))
        if not any(pair <= names for pair in impossible):
            asked.append(names)

    def one(number: int) -> list[str]:
        names, body = asked[number], body_of(asked[number], 1000 + number)
        with_, without = (ask(client, names, body).choices for client in (servers.drafting, servers.plain))
        pairs = zip(with_, without, strict=True)
        return [f"{_named(names)}: {mine} and {its}" for mine, its in pairs if not _alike(mine, its)]

    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield from chain.from_iterable(threads.map(one, range(count)))


def _alike(one: Choice, other: Choice) -> bool:
    """But for the last digits of log-probabilities."""
    same = (one.text, one.arguments, one.tokens) == (other.text, other.arguments, other.tokens)
    return same and all(
        abs(mine - its) < 1e-3 for mine, its in zip(one.logprobs, other.logprobs, strict=True) if mine != its
    )


def table(cells: Mapping[Pair, str]) -> str:
    """The page docs/feature-matrix.md."""
    names = list(FEATURES)
    lines = [
        "# What works beside what",
        "",
        "Every pair of features in one request, tried on the CPU: `tests/e2e/test_feature_matrix.py` asks for both and",
        "checks what each claims of the answer, not merely that there is one. Written by",
        "`python -m tests.support.feature_matrix`.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for row in names:
        entries = ["" if row == column else cells[frozenset({row, column})] for column in names]
        lines.append(f"| **{row}** | " + " | ".join(entries) + " |")
    lines += ["", "- *holds*: the claims of both hold.", "- *refused*: with 400, before anything is computed:"]
    lines += [f"  - {_named(pair)}: {reason}." for pair, reason in REFUSED.items()]
    lines += ["- *apart*: no request can ask for both:"]
    lines += [f"  - {_named(pair)}: {reason}." for pair, reason in APART.items()]
    return "\n".join(lines) + "\n"


def _named(pair: Pair) -> str:
    return " and ".join(name for name in FEATURES if name in pair)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, served(Path(directory)) as servers:
        cells = try_all(servers)
        taken = servers.guesses_taken()
    problems = {pair: cell for pair, cell in cells.items() if isinstance(cell, Exception)}
    for pair, problem in problems.items():
        print(_named(pair), "::", type(problem).__name__, str(problem)[:300].replace("\n", " "))
    print(f"{taken:g} guesses were right", file=sys.stderr)
    if not problems:
        print(table({pair: str(cell) for pair, cell in cells.items()}), end="")


if __name__ == "__main__":
    main()

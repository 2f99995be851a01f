"""What is asked: prompts of a wanted number of tokens, or the conversations of a file.

Prompts are drawn at random word by word or token by token, so that no server answers from its prefix cache.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CHARACTERS_PER_TOKEN = 4
"""Of English text; how long an answer in a file counts, where the file tells no number of tokens."""
_WORDS = (
    "the of and to in is was for that on as with by at from it an be or are this which not have were had one all two "
    "time can other new people first may been who now made over such our man me even most also after years many must "
    "before through back where way well down should because each just those how too good very make world still own see "
    "work long here between both life being under never day same another know while last might us great old year off "
    "come since against go right used take three states himself few house use during without again place around small"
)
_TRIALS = 6


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's prompt and how many tokens to generate for it. Either text or ids is there."""

    text: str
    output_tokens: int
    token_ids: tuple[int, ...] = ()


def random_ids(count: int, input_tokens: int, output_tokens: int, vocab_size: int, seed: int) -> list[Prompt]:
    """Prompts of exactly `input_tokens` ids, drawn from the whole vocabulary."""
    draws = random.Random(seed)  # noqa: S311  a load, no secret
    return [
        Prompt("", output_tokens, tuple(draws.randrange(vocab_size) for _ in range(input_tokens))) for _ in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Sharing:
    """How much of each prompt's beginning is that of others."""

    words: int = 0
    prefixes: int = 1
    """Different beginnings, drawn from at random."""


def random_words(
    count: int, num_words: int, output_tokens: int, seed: int, *, sharing: Sharing | None = None
) -> list[Prompt]:
    """Prompts of so many common words, most of which are one token in most vocabularies."""
    words = _WORDS.split()
    draws = random.Random(seed)  # noqa: S311  a load, no secret
    shared = sharing or Sharing()
    prefixes = [draws.choices(words, k=shared.words) for _ in range(shared.prefixes)]
    return [
        Prompt(" ".join(draws.choice(prefixes) + draws.choices(words, k=num_words - shared.words)), output_tokens)
        for _ in range(count)
    ]


async def words_for(input_tokens: int, count_tokens: Callable[[int], Awaitable[int]]) -> int:
    """How many words make a prompt of `input_tokens`, as the server counts (its template's tokens among them).

    `count_tokens` asks the server about that many words. The nearest found in a few trials is taken.
    """
    words, counted = input_tokens, await count_tokens(input_tokens)
    tried = {words: counted}
    slope = counted / words
    for _ in range(_TRIALS):
        following = max(words + round((input_tokens - counted) / slope), 1)
        if following in tried:
            break
        before = words, counted
        words, counted = following, await count_tokens(following)
        tried[words] = counted
        # Of two trials: a template's tokens come on top and do not grow with the words.
        slope = max((counted - before[1]) / (words - before[0]), 0.5)
    return min(tried, key=lambda words: abs(tried[words] - input_tokens))


def conversations(file: Path, count: int, output_tokens: int | None, seed: int) -> list[Prompt]:
    """First questions of a file in ShareGPT's form: a list of `{"conversations": [{"value": ...}, ...]}`.

    The answer's length is `output_tokens`, or that of the answer in the file. Raises ValueError for another form.
    """
    entries = json.loads(file.read_text(encoding="utf-8"))
    turns = [entry.get("conversations") or entry.get("conversation") or [] for entry in entries]
    pairs = [(_value(talk[0]), _value(talk[1])) for talk in turns if len(talk) >= 2]
    if not pairs:
        raise ValueError(f"{file} holds no conversation of two turns; it must be JSON in ShareGPT's form")
    draws = random.Random(seed)  # noqa: S311  a load, no secret
    draws.shuffle(pairs)
    return [
        Prompt(question, output_tokens or max(len(answer) // CHARACTERS_PER_TOKEN, 1))
        for question, answer in _cycle(pairs, count)
    ]


def _value(turn: dict[str, str]) -> str:
    return turn.get("value") or turn.get("content") or ""


def _cycle(pairs: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    return [pairs[number % len(pairs)] for number in range(count)]

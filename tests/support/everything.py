"""Questions that ask for all that a request may ask for, at once and in random parts."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mainspring.core.grammar.checking import Checker
from mainspring.core.grammar.messages import AUTO, Check, GrammarSpec
from mainspring.core.processors.watermark import DEFAULT_KEY
from mainspring.core.request import Grammar, LogitsProcessing, SamplingParams, Vocabulary
from tests.support.answering import Question
from tests.support.byte_model import VOCABULARY, ids_of

CARD = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "pattern": "^[a-z]{3,6}$"},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["word", "count", "tags"],
    "additionalProperties": False,
}
FLAGS = {"type": "array", "items": {"enum": [True, False, None]}, "minItems": 3, "maxItems": 12}
GRAMMARS = (
    GrammarSpec("json_schema", json.dumps(CARD)),
    GrammarSpec("json_schema", json.dumps(FLAGS)),
    GrammarSpec("regex", "((ab|cd)-){4,12}[0-9]{2,5}"),
)
EXAMPLES = ('{"word":"tree","count":7,"tags":["red","blue"]}', "[true,false,null,true,false,null]", "ab-cd-ab-cd-ab-12")
Draws = random.Random
Wish = Callable[[Draws], dict[str, Any]]


def grammars(vocabulary: Vocabulary = VOCABULARY) -> list[Grammar]:
    """As the engine takes them."""
    checker = Checker(vocabulary, len(vocabulary.tokens))
    found = [checker.check(Check(AUTO, spec)).grammar for spec in GRAMMARS]
    return [grammar for grammar in found if grammar is not None]


def wishes(known: list[Grammar], words: int) -> Mapping[str, Wish]:
    """By name, the parameters that a feature may come with. Stop strings and `n` are not the sampler's."""
    return {
        "grammar": lambda draws: {"grammar": draws.choice(known)},
        "repetition": lambda draws: {"repetition_penalty": draws.uniform(1.05, 1.6)},
        "penalties": lambda draws: {
            "frequency_penalty": draws.uniform(0.1, 1),
            "presence_penalty": draws.uniform(0, 1),
        },
        "logprobs": lambda draws: {"logprobs": draws.randint(0, 5)},
        "prompt_logprobs": lambda draws: {"prompt_logprobs": draws.randint(0, 3)},
        "bias": lambda draws: {"logit_bias": {draws.randrange(1, words): draws.uniform(-4, 4) for _ in range(5)}},
        "min_tokens": lambda draws: {"min_tokens": draws.randint(2, 12)},
        "watermark": lambda draws: {"processors": (LogitsProcessing("watermark", (0.4, 1.5, DEFAULT_KEY)),)},
    }


TOGETHER = ("grammar", "repetition", "penalties", "logprobs")
"""What every fourth question asks for, with stop strings and greedily."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The model that is asked; by default that of `byte_model.py`."""

    encode: Callable[[str], list[int]] = ids_of
    vocabulary: Vocabulary = VOCABULARY
    longest: int = 40
    """Tokens of an answer, at most."""


def questions(count: int, *, seed: int = 0, greedy: bool = True, of: Asked = Asked()) -> list[Question]:
    """So many, each with a prompt of its own; not greedy: every other one draws."""
    draws, known = random.Random(seed), wishes(grammars(of.vocabulary), len(of.vocabulary.tokens))
    return [_question(number, draws, known, of, greedy=greedy) for number in range(count)]


def _question(number: int, draws: Draws, known: Mapping[str, Wish], of: Asked, *, greedy: bool) -> Question:
    together = number % 4 == 0
    chosen = TOGETHER if together else [name for name in known if draws.random() < 0.4]
    params: dict[str, Any] = {"max_tokens": draws.randint(12, of.longest)}
    for name in chosen:
        params |= known[name](draws)
    if not greedy and number % 2:
        params |= {"temperature": draws.choice([0.4, 1.0]), "top_p": 0.95, "seed": number}
    stops = tuple(_stop(draws) for _ in range(3)) if together or draws.random() < 0.3 else ()
    several = 2 if not together and draws.random() < 0.2 else 1
    return Question(of.encode(_prompt(number, draws)), SamplingParams(**params), stops, several)


def _stop(draws: Draws) -> str:
    """Short, so that it comes up now and then."""
    return "".join(draws.choice(string.ascii_lowercase + '",-]') for _ in range(draws.randint(1, 2)))


def _prompt(number: int, draws: Draws) -> str:
    """Some begin alike, and some have what is to be copied."""
    shared = "All of these questions begin with these words. " if number % 3 == 0 else ""
    words = "".join(draws.choice(string.ascii_lowercase + "   ") for _ in range(draws.randint(2, 50)))
    example = draws.choice(EXAMPLES) if draws.random() < 0.5 else ""
    return f"{shared}{words}{example}"

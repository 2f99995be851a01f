"""SmolLM2 at temperature 1 answers every schema and every expression; whoever finishes must be right.

    python -m tests.guided [--engine auto|llguidance|xgrammar] [--tokens 160] [--seed 0] [--only KIND]

Prints a report in Markdown, as docs/verified/guided.md has it, and fails when an answer is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jsonschema

from mainspring.core.config import EngineConfig
from mainspring.core.errors import RequestError
from mainspring.core.grammar.messages import AUTO, GrammarSpec
from mainspring.core.request import FinishReason, SamplingParams
from mainspring.server.offline import LLM
from mainspring.server.source import resolve
from tests.guided import expressions, schemas
from tests.guided.formats import checker

AT_ONCE = 32
HOW = ("finished", "cut", "refused", "wrong")
"""Cut: out of tokens, so the answer is the beginning of a right one. Refused: by the server, with the reason."""


@dataclass(frozen=True, slots=True)
class Question:
    """A grammar, and what to ask so that a model may want to say it."""

    kind: str
    spec: GrammarSpec
    wanted: Any
    """The schema or the expression."""

    @property
    def prompt(self) -> str:
        noun = "JSON that fits the schema" if self.spec.kind == "json_schema" else "a text that matches"
        return f"Write a short example of {noun} {self.spec.text[:300]} and nothing else."

    def problem(self, answer: str) -> str | None:
        """Why a finished answer is wrong."""
        if self.spec.kind == "regex":
            return None if re.fullmatch(self.wanted, answer) else "no match"
        try:
            jsonschema.validate(
                json.loads(answer), self.wanted, jsonschema.Draft202012Validator, format_checker=checker()
            )
        except (ValueError, jsonschema.ValidationError) as error:
            return str(error).splitlines()[0]
        return None


def questions() -> Iterator[Question]:
    """All of them."""
    for kind, wanted in schemas.KINDS.items():
        yield from (Question(kind, GrammarSpec("json_schema", json.dumps(one)), one) for one in wanted)
    for kind, patterns in expressions.KINDS.items():
        yield from (Question(kind, GrammarSpec("regex", one), one) for one in patterns)


def answer(llm: LLM, question: Question, params: SamplingParams) -> tuple[str, str]:
    """How it went (finished, cut, refused, wrong), and the answer or the reason."""
    prompt = llm.chat_prompt([{"role": "user", "content": question.prompt}])
    try:
        (output,) = llm.generate([prompt], params, grammar=question.spec)
    except RequestError as refusal:
        return "refused", refusal.message
    if output.finish_reason is FinishReason.LENGTH:
        return "cut", output.text
    problem = question.problem(output.text)
    return ("finished", output.text) if problem is None else ("wrong", f"{output.text!r}: {problem}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=AUTO)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    options = parser.parse_args()
    asked = [question for question in questions() if options.only in question.kind]
    outcomes = list(outcomes_of(asked, options))
    for line in report(asked, outcomes, options):
        print(line)
    return any(how == "wrong" for how, _ in outcomes)


def outcomes_of(asked: Sequence[Question], options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """How each question went, in order; many are answered at once."""
    config = EngineConfig(model=str(resolve("demo").path), backend="cpu", max_length=1024, max_sequences=AT_ONCE)
    with LLM.of(config, grammar_engine=options.engine) as llm, ThreadPoolExecutor(AT_ONCE) as threads:

        def one(numbered: tuple[int, Question]) -> tuple[str, str]:
            number, question = numbered
            params = SamplingParams(max_tokens=options.tokens, temperature=1.0, seed=options.seed * 1000 + number)
            return answer(llm, question, params)

        yield from threads.map(one, enumerate(asked))


def report(
    asked: Sequence[Question], outcomes: Sequence[tuple[str, str]], options: argparse.Namespace
) -> Iterator[str]:
    """In Markdown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, (how, _) in zip(asked, outcomes, strict=True):
        counts[question.kind][how] += 1
    yield f"## {options.engine}"
    yield ""
    yield f"SmolLM2-135M-Instruct, temperature 1, at most {options.tokens} tokens, seed {options.seed}."
    yield ""
    yield "| about | " + " | ".join(HOW) + " |"
    yield "|---|" + "--:|" * len(HOW)
    for kind, count in [*counts.items(), ("**all**", sum(counts.values(), Counter[str]()))]:
        yield f"| {kind} | " + " | ".join(str(count[how]) for how in HOW) + " |"
    yield ""
    for question, (how, what) in zip(asked, outcomes, strict=True):
        if how in ("refused", "wrong"):
            yield f"- {how}: `{question.spec.text[:160]}`: {what[:300]}"


if __name__ == "__main__":
    sys.exit(main())

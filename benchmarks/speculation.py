"""What guessing tokens gains where text is copied, and costs where it is not: decoding with a speculator and without.

    python benchmarks/speculation.py [--model demo] [--backend cpu] [--speculator ngram] [--rounds 5] [--json FILE]
    python benchmarks/speculation.py --backend cuda --memory-fraction 0.3 --rounding --json FILE

Two engines of one model, one with `--speculator` and one without, take turns in one run; on a device of its own memory
each needs a `--memory-fraction`. *Copy*: a text is to be said again with a word changed, one request at a time. *Chat*:
questions with sampled answers, 1, 8 and 32 at a time. Told are medians of tokens a second over the rounds. Answers must
be equal, token for token. `--rounding` is for devices on which a token's numbers depend on how many others its step
computes, where two tokens may tie one way and the other: then it is told how many answers are equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from operator import eq
from pathlib import Path

from mainspring.core.config import EngineConfig
from mainspring.core.request import SamplingParams
from mainspring.server.offline import LLM

TEXT = (
    "The lighthouse stands at the end of a narrow spit of land, and its keeper climbs one hundred and twelve "
    "steps every evening to light the lamp. In winter the waves reach the door, and the keeper stays inside for "
    "days, reading by the stove and writing letters that nobody collects. In summer, visitors come with baskets "
    "of bread and cheese, and they ask the same three questions: how tall is it, how old is it, and is the keeper "
    "ever lonely? The keeper answers the first two and laughs at the third."
)
COPIES = [
    f"{TEXT}\n\nThe same text again, word for word:\n\n{TEXT}\n\nAnd once more, with `{old}` changed to `{new}`:\n\n"
    for old, new in (("lamp", "lantern"), ("stove", "fire"), ("letters", "poems"), ("bread", "cake"))
]
QUESTIONS = [
    "What is gravity?", "Tell me a story about a fox.", "How do I boil an egg?", "Why is the sky blue?",
    "Write a poem about rain.", "What should I pack for a week at the sea?", "Explain what a prime number is.",
    "Give me three ideas for dinner.",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load."""

    name: str
    prompts: tuple[str, ...]
    at_once: int
    params: SamplingParams
    chat: bool


def cases(tokens: int) -> list[Case]:
    """The copies one by one, and the chats at three loads."""
    greedy = SamplingParams(max_tokens=tokens, temperature=0.0)
    drawn = SamplingParams(max_tokens=tokens, temperature=0.8, top_p=0.95, seed=7)
    chats = [
        Case(f"chat, {count} at once", tuple((QUESTIONS * 4)[:count]), count, drawn, chat=True) for count in (1, 8, 32)
    ]
    return [Case("copy, 1 at once", tuple(COPIES), 1, greedy, chat=False), *chats]


def run(llm: LLM, case: Case) -> tuple[list[list[int]], float]:
    """Tokens, and seconds, after the prompts are in the prefix cache."""
    prompts: list[str | list[int]] = list(case.prompts)
    if case.chat:
        prompts = [llm.chat_prompt([{"role": "user", "content": prompt}]) for prompt in case.prompts]
    began, tokens = time.perf_counter(), []
    for first in range(0, len(prompts), case.at_once):
        outputs = llm.generate(prompts[first : first + case.at_once], case.params)
        tokens += [output.token_ids for output in outputs]
    return tokens, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--speculator", default="ngram")
    parser.add_argument("--speculate", type=int)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-fraction", type=float)
    parser.add_argument("--rounding", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    facts = []
    common = {
        "model": given.model, "backend": given.backend, "max_length": 2048, "max_sequences": 32,
        "memory_fraction": given.memory_fraction,
    }  # fmt: skip
    with (
        LLM.of(EngineConfig(**common)) as plain,
        LLM.of(EngineConfig(**common, speculator=given.speculator, speculate=given.speculate)) as drafting,
    ):
        print(f"{'case':18} {'without':>9} {'with':>9} {'ratio':>7}  equal; tokens/s, medians of {given.rounds}")
        for case in cases(given.tokens):
            rates: dict[str, list[float]] = {"without": [], "with": []}
            equal = answers = 0
            for turn in range(given.rounds + 1):
                said = {}
                for name, llm in (("without", plain), ("with", drafting)):
                    tokens, seconds = run(llm, case)
                    said[name] = tokens
                    if turn:  # the first fills the prefix caches, and is what the gate learns from
                        rates[name].append(sum(map(len, tokens)) / seconds)
                equal += sum(map(eq, said["with"], said["without"]))
                answers += len(said["with"])
            without, with_ = (statistics.median(rates[name]) for name in ("without", "with"))
            shown = f"{equal} of {answers}"
            print(f"{case.name:18} {without:9.1f} {with_:9.1f} {with_ / without:7.2f}  {shown}", flush=True)
            facts.append({"case": case.name, "rates": rates, "ratio": with_ / without, "equal answers": shown})
            if equal < answers and not given.rounding:
                sys.exit(f"{case.name}: answers differ")
    if given.json is not None:
        given.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

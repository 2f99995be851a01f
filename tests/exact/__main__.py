"""SmolLM2 answers prompts with everything on at once and in random parts, with each speculator and with none.

    python -m tests.exact [--prompts 100] [--seed 0] [--quantize none] [--draw]

Everybody guesses all the time, whether or not it pays. Prints a table in Markdown, as docs/verified/speculation.md has
it, and fails when an answer differs by a token, a character, its reason, or a log-probability by more than rounding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mainspring.core.architectures import read_model_config
from mainspring.core.config import EngineConfig
from mainspring.core.grammar.store import Grammars
from mainspring.core.metrics import Stats
from mainspring.core.request import Vocabulary
from mainspring.server.source import resolve
from mainspring.server.text.tokenizer import Tokenizer, load_tokenizer
from tests.support.answering import Answer, Question, answer, differences
from tests.support.everything import Asked, questions
from tests.support.in_process import open_in_process
from tests.support.open_gate import open_gate

AT_ONCE = 32
Served = tuple[list[Answer], Stats]


def vocabulary_of(tokenizer: Tokenizer, ends: tuple[int, ...]) -> Vocabulary:
    """As the server tells it to the engine."""
    ids = range(tokenizer.vocab_size)
    special = tuple(token for token in ids if tokenizer.is_special(token))
    return Vocabulary(tuple(map(tokenizer.token_bytes, ids)), special, ends)


def served(path: Path, speculator: str | None, asked: Sequence[Question], of: Asked, quantize: str | None) -> Served:
    """Answers to all questions, and what the scheduler counted."""
    config = EngineConfig(
        model=str(path), backend="cpu", dtype="float32", quantize=quantize, max_length=512, num_blocks=600,
        max_sequences=AT_ONCE, max_batch_tokens=512, speculator=speculator, speculate=4 if speculator else None,
    )  # fmt: skip
    grammars = Grammars(len(of.vocabulary.tokens))
    grammars.learn(of.vocabulary)
    loop = open_in_process(config, grammars=grammars)
    open_gate(loop.scheduler)
    answers = answer(loop, load_tokenizer(path), asked)
    loop.executor.close()
    grammars.close()
    return answers, loop.scheduler.stats()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantize", help="as the server's; without it the file's blocks are kept as they are")
    parser.add_argument("--draw", action="store_true", help="every other answer is drawn, not greedy")
    options = parser.parse_args()
    path = resolve("demo").path
    tokenizer = load_tokenizer(path)
    of = Asked(tokenizer.encode, vocabulary_of(tokenizer, read_model_config(path).eos_token_ids))
    asked = questions(options.prompts, seed=options.seed, greedy=not options.draw, of=of)
    plain, _ = served(path, None, asked, of, options.quantize)
    print("| guesses by | answers | tokens | guessed | right | answers that differ |")
    print("|---|--:|--:|--:|--:|--:|")
    wrong = 0
    for name, speculator in {"n-grams": "ngram", "the model itself": str(path)}.items():
        answers, stats = served(path, speculator, asked, of, options.quantize)
        found = differences(answers, plain)
        different = len({difference.partition(",")[0] for difference in found})
        tokens = sum(len(one.tokens) for one in answers)
        print(
            f"| {name} | {len(answers)} | {tokens} | {stats.draft_tokens} | {stats.accepted_tokens} | {different} |",
            flush=True,
        )
        for difference in found:
            print(difference, file=sys.stderr)
        wrong += different
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())

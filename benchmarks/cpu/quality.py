"""What rounding weights costs a model: its perplexity on text, and how often its first choice stays the same.

    python benchmarks/cpu/quality.py MODEL TEXT... [--schemes int8-dynamic int4-dynamic int8 int4]

Each file is cut into windows of `--window` tokens, which the model scores as prompts, first in float32 and then under
each scheme; of a GGUF file first with its blocks as they are, which is what it is served as. Perplexity depends on the
text; its ratio between two schemes on the same text is what to read.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mainspring import LLM
from mainspring.core.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Scores:
    """Of every token that has one before it."""

    logprobs: list[float]
    choices: list[int]
    """The model's own first choice in its place."""

    @property
    def perplexity(self) -> float:
        """e to the mean surprise."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs))

    def agreement(self, other: Scores) -> float:
        """Share of places where both choose the same."""
        same = sum(mine == theirs for mine, theirs in zip(self.choices, other.choices, strict=True))
        return same / len(self.choices)


def score(model: str, texts: Sequence[str], quantize: str | None, window: int) -> Scores:
    """The texts under one scheme."""
    scores = Scores([], [])
    with LLM(model, "cpu", dtype="float32", quantize=quantize, prefix_caching=False) as llm:
        ids = [token for text in texts for token in llm.tokenizer.encode(text)]
        prompts = [ids[at : at + window] for at in range(0, len(ids) - window + 1, window)]
        for output in llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=1)):
            for token in (output.prompt_logprobs or [])[1:]:
                if token is not None:
                    scores.logprobs.append(token.logprob)
                    scores.choices.append(token.top_ids[0])
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--schemes", nargs="+", default=["int8-dynamic", "int4-dynamic", "int8", "int4"])
    parser.add_argument("--window", type=int, default=256)
    arguments = parser.parse_args()
    texts = [path.read_text(encoding="utf-8") for path in arguments.texts]
    plain = score(arguments.model, texts, "none", arguments.window)
    print(f"{'float32':14} perplexity {plain.perplexity:8.3f}, {len(plain.choices)} tokens", flush=True)
    stored = ["as stored"] if arguments.model.endswith((".gguf", "demo")) else []
    for scheme in (*stored, *arguments.schemes):
        quantize = None if scheme in stored else scheme
        rounded = score(arguments.model, texts, quantize, arguments.window)
        change = rounded.perplexity / plain.perplexity - 1
        same = rounded.agreement(plain)
        print(
            f"{scheme:14} perplexity {rounded.perplexity:8.3f} ({change:+.2%}), first choice same {same:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()

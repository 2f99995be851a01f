"""How well the watermark is told apart: z-scores of marked and of plain texts of SmolLM2, sampled at temperature 1.

python -m benchmarks.watermark --texts 100 --tokens 200
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable

from mainspring import LLM
from mainspring.core.request import LogitsProcessing, SamplingParams
from mainspring.server.watermark import DEFAULT_KEY, DEFAULT_THRESHOLD, detect

_OPENINGS = (
    "The history of the railway began",
    "A good way to cook rice is",
    "In the small town by the sea,",
    "My favourite book is about",
    "Scientists have found that",
    "The most important thing in chess is",
    "When winter comes, the garden",
    "The company announced on Monday that",
)


def scores(llm: LLM, texts: int, tokens: int, *, gamma: float, delta: float) -> list[float]:
    """z-scores of so many texts; with a delta of 0, of plain ones."""
    mark = (LogitsProcessing("watermark", (gamma, delta, DEFAULT_KEY)),) if delta else ()
    params = [
        SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed, ignore_eos=True, processors=mark)
        for seed in range(texts)
    ]
    prompts = [_OPENINGS[number % len(_OPENINGS)] for number in range(texts)]
    return [detect(output.token_ids, gamma=gamma).z for output in llm.generate(prompts, params)]


def summary(found: Iterable[float]) -> dict[str, float]:
    """What there is to say of z-scores."""
    ordered = sorted(found)
    return {
        "mean": round(statistics.mean(ordered), 2),
        "least": round(ordered[0], 2),
        "most": round(ordered[-1], 2),
        "above_threshold": sum(z > DEFAULT_THRESHOLD for z in ordered) / len(ordered),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--gamma", type=float, default=0.5)
    parser.add_argument("--delta", type=float, default=2.0)
    asked = parser.parse_args()
    with LLM(asked.model, asked.backend, max_length=512) as llm:
        for name, delta in (("marked", asked.delta), ("plain", 0.0)):
            found = scores(llm, asked.texts, asked.tokens, gamma=asked.gamma, delta=delta)
            said = {"texts": name, "tokens": asked.tokens, "gamma": asked.gamma, "delta": delta}
            print(json.dumps(said | summary(found)), flush=True)


if __name__ == "__main__":
    main()

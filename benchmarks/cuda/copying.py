"""What n-grams gain where text is copied, and cost where it is new, at true shapes: decoding with them and without.

    python benchmarks/cuda/copying.py [--model 8b] [--model 0.6b] [--rounds 3] [--json FILE]

A model of random weights copies nothing, so what it copies is dictated: a logits processor has it say what stood PERIOD
tokens before, but for one place in so many, at which it says something new. New text it writes itself, sampled, so that
its steps are those of any chat: a processor would keep the choice out of the captured programs. Model, choice, guesses
and verification run as always, over one executor, behind two schedulers in turn: one guesses, the other does not. Told
are medians of tokens a second over the rounds, and how many of the guesses were right. With real weights and text:
../speculation.py.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from shapes import COMMON, MODELS
from torch import Tensor

from mainspring.core.backend import Executor
from mainspring.core.composition import build_executor, build_scheduler
from mainspring.core.config import EngineConfig
from mainspring.core.plan import make_plan
from mainspring.core.plugins import hookimpl
from mainspring.core.processors.contract import LogitsProcessor, ProcessedRows
from mainspring.core.request import LogitsProcessing, Parameter, RequestId, SamplingParams, Submit
from mainspring.core.scheduling.scheduler import Scheduler
from mainspring.core.setting import settle

PERIOD = 48
PROMPT = 512
SHAPES = {
    **MODELS,
    "tiny": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 128,
        "vocab_size": 1024, "max_position_embeddings": 8192, "tie_word_embeddings": True, **COMMON,
    },
}  # fmt: skip
CASES = (
    ("an edit, 1 at once", 1, 24), ("new text, 1 at once", 1, None), ("8 at once", 8, None), ("32 at once", 32, None),
)  # fmt: skip
"""What is said, how many say it, and one place in how many is new where it is dictated."""


class Dictation(LogitsProcessor):
    """Says what stood PERIOD tokens before, and at every position that `every` divides something new."""

    parameters = (Parameter("every", "integer", minimum=1, maximum=1 << 20, default=24),)
    history = PERIOD

    def process(self, logits_PV: Tensor, rows: ProcessedRows) -> Tensor:
        position, last = rows.position.long(), rows.previous[:, -1].long()
        new = (position * 40503 + last * 31) % self.vocab_size
        said = torch.where(position % rows.parameters["every"] == 0, new, rows.previous[:, 0].long().clamp(min=0))
        return logits_PV.scatter_(1, said[:, None], 1e6)


class Hooks:
    """Offers the dictation."""

    @hookimpl
    def mainspring_logits_processors(self) -> Mapping[str, str]:
        return {"dictation": f"{Dictation.__module__}:{Dictation.__name__}"}


@dataclass(slots=True)
class Loop:
    """One scheduler over an executor that others use in turn."""

    executor: Executor
    scheduler: Scheduler
    vocab_size: int
    requests: int = 0

    def rate(self, rows: int, tokens: int, every: int | None) -> float:
        """Tokens a second of so many sequences, from when all of them have their first."""
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=1.0, seed=self.requests)
        if every is not None:
            dictation = LogitsProcessing("dictation", (float(every),))
            params = SamplingParams(max_tokens=tokens, ignore_eos=True, processors=(dictation,))
        for row in range(rows):
            source = random.Random(row)
            prompt = [source.randrange(10, self.vocab_size) for _ in range(PROMPT)]
            self.requests += 1
            self.scheduler.submit(Submit(RequestId(self.requests), prompt, params))
        began, counted, started = 0.0, 0, set()
        landing = None
        while self.scheduler.has_work:
            batch = self.scheduler.schedule()
            flying = None if batch is None else (batch, self.executor.execute(batch))
            for delta in () if landing is None else self.scheduler.commit(landing[0], landing[1].result()):
                counted += len(delta.tokens) if began else 0
                started.add(delta.request_id)
            if not began and len(started) == rows:
                began = time.perf_counter()
            landing = flying
        return counted / (time.perf_counter() - began)


def loops(shape: Mapping[str, object], backend: str) -> dict[str, Loop]:
    """One that guesses and one that does not, over one executor with dummy weights."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape))
        config = EngineConfig(
            model=folder, backend=backend, load_format="dummy", max_length=PROMPT + 2048, max_sequences=256,
            max_batch_tokens=8192, prefix_caching=False, speculator="ngram", num_blocks=4096,
        )  # fmt: skip
        setting = settle(config)
        setting.plugins.manager.register(Hooks())
        plan = make_plan(setting.config, setting.model, setting.choice.backend, setting.choice.device)
        executor = build_executor(setting, plan, lambda phase, done, total: None)
    plain = replace(setting, config=msgspec.structs.replace(setting.config, speculator="none"))
    size, length = setting.model.vocab_size, plan.max_length
    return {
        "without": Loop(executor, build_scheduler(plain, executor, length), size),
        "with": Loop(executor, build_scheduler(setting, executor, length), size),
    }


def measure(both: Mapping[str, Loop], tokens: int, rounds: int) -> Iterator[dict[str, object]]:
    """The cases, one after the other."""
    for name, rows, every in CASES:
        rates: dict[str, list[float]] = {"without": [], "with": []}
        before = both["with"].scheduler.stats()
        for turn in range(rounds + 1):
            for which, loop in both.items():
                rate = loop.rate(rows, tokens, every)
                if turn:  # the first is what the gate learns from
                    rates[which].append(rate)
        after = both["with"].scheduler.stats()
        drafted, right = after.draft_tokens - before.draft_tokens, after.accepted_tokens - before.accepted_tokens
        ratio = statistics.median(rates["with"]) / statistics.median(rates["without"])
        yield {"case": name, "rates": rates, "ratio": ratio, "drafted": drafted, "right": right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(SHAPES))
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    facts = {}
    print(f"{'':6} {'case':20} {'without':>9} {'with':>9} {'ratio':>6}  right of guessed; tokens/s, medians")
    for model in given.model or ("8b", "0.6b"):
        both = loops(SHAPES[model], given.backend)
        facts[model] = []
        for found in measure(both, given.tokens, given.rounds):
            without, with_ = (statistics.median(rates) for rates in found["rates"].values())
            print(
                f"{model:6} {found['case']:20} {without:9.1f} {with_:9.1f} {found['ratio']:6.2f}  "
                f"{found['right']} of {found['drafted']}",
                flush=True,
            )
            facts[model].append(found)
        both["with"].executor.close()
    if given.json is not None:
        given.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

"""One model on one GPU and on two: whether they say the same, and what the second one brings.

    python benchmarks/cuda/tensor_parallel.py [--ranks 2] [--stages] [--model 8b] [--json FILE]

Needs as many GPUs as ranks. With `--stages` each holds some of the layers, else a part of each layer. Each number of
ranks is a process of its own, so that the first leaves no memory behind. First a small model in float32 with seeded
weights, greedy, with captured graphs, chunks, a prefix in common and a cache that runs out: its tokens must be equal.
Then the shape, as `shapes.py` measures it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from shapes import COMMON, LOADS, MODELS, Serving, decode_step, throughput

from mainspring.core.composition import build_executor, build_scheduler
from mainspring.core.config import EngineConfig
from mainspring.core.plan import make_plan
from mainspring.core.request import RequestId, SamplingParams, Submit
from mainspring.core.setting import settle

BATCHES = (1, 32, 256)
SMALL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 1024, "vocab_size": 1999,
    "max_position_embeddings": 512, "rope_theta": 10000.0, "tie_word_embeddings": False, **COMMON,
}  # fmt: skip
PREFIX = [3 + 7 * i % 1990 for i in range(100)]
PROMPTS = [[*PREFIX, 3 + last] for last in range(24)] + [[5, 6, 7], PREFIX[:50]]


def opened(shape: dict[str, object], ranks: int, stages: bool, **options: object) -> tuple[Serving, float]:
    """The model with seeded weights on so many devices, and the seconds until it served."""
    options |= {"num_stages": ranks} if stages else {"num_shard": ranks}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape))
        setting = settle(EngineConfig(model=folder, load_format="dummy", **options))
        began = time.perf_counter()
        plan = make_plan(setting.config, setting.model, setting.choice.backend, setting.smallest)
        executor = build_executor(setting, plan, lambda phase, done, total: None)
        seconds = time.perf_counter() - began
    length = (executor.num_blocks() - 1) * executor.kv_spec().block_size
    scheduler = build_scheduler(setting, executor, min(length, plan.max_length))
    return Serving(setting.model, executor, scheduler), seconds


def generate(served: Serving, params: SamplingParams) -> list[list[int]]:
    """The tokens of all prompts, one step planned ahead as the engine does."""
    outputs: dict[int, list[int]] = {}
    for prompt in PROMPTS:
        served.requests += 1
        outputs[served.requests] = []
        served.scheduler.submit(Submit(RequestId(served.requests), prompt, params))
    landing = None
    while served.scheduler.has_work or landing is not None:
        batch = served.scheduler.schedule()
        flying = None if batch is None else (batch, served.executor.execute(batch))
        if landing is not None:
            for delta in served.scheduler.commit(landing[0], landing[1].result()):
                outputs[delta.request_id] += delta.tokens
        landing = flying
    return list(outputs.values())


def say(backend: str, ranks: int, stages: bool) -> dict[str, object]:
    """What the small model answers, by greedy choice and by seeded draws."""
    served, _ = opened(
        SMALL, ranks, stages, backend=backend, dtype="float32", kv_dtype="float32", block_size=32, max_sequences=16,
        max_batch_tokens=256, max_prefill_chunk=64, num_blocks=40,
    )  # fmt: skip
    tokens = generate(served, SamplingParams(max_tokens=64, ignore_eos=True))
    tokens += generate(served, SamplingParams(max_tokens=64, ignore_eos=True, temperature=1.0, seed=3))
    stats = served.scheduler.stats()
    served.executor.close()
    print(f"{ranks} ranks: {stats.preemptions} preemptions, {stats.prefix_hits} tokens found in the cache", flush=True)
    return {"tokens": tokens}


def measure(name: str, ranks: int, stages: bool) -> dict[str, object]:
    """The shape's numbers."""
    served, seconds = opened(
        MODELS[name], ranks, stages, backend="cuda", max_length=8192, max_sequences=256, max_batch_tokens=8192,
        prefix_caching=False,
    )  # fmt: skip
    found: dict[str, object] = {"start, s": seconds, "KV blocks": served.executor.num_blocks()}
    for rows in BATCHES:
        found[f"decode step, batch {rows}, ms"], _ = decode_step(served, rows)
    for load, (requests, num_prompt, num_tokens) in LOADS.items():
        found[f"{load}, out tok/s"] = throughput(served, requests, num_prompt, num_tokens)
    served.executor.close()
    return found


def apart(*arguments: str) -> dict[str, object]:
    """The result of one of the two above, computed in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([sys.executable, __file__, *arguments, "--json", file.name], check=True, timeout=200)
        found: dict[str, object] = json.loads(Path(file.name).read_text())
        return found


def differences(one: dict[str, object], other: dict[str, object]) -> Iterator[str]:
    """A sentence for each answer that is not the same."""
    for number, (tokens, expected) in enumerate(zip(other["tokens"], one["tokens"], strict=True)):
        if tokens != expected:
            place = next(at for at, pair in enumerate(zip(tokens, expected, strict=True)) if pair[0] != pair[1])
            yield f"answer {number} differs from token {place} on: {tokens[place]} for {expected[place]}"


def compare(backend: str, name: str, ranks: int, stages: bool) -> dict[str, object]:
    """Prints the table."""
    worlds, way = (1, ranks), ["--stages"] if stages else []
    said = {world: apart("--say", str(world), "--backend", backend, *way) for world in worlds}
    wrong = list(differences(said[1], said[ranks]))
    print(f"{len(said[1]['tokens']) - len(wrong)} of {len(said[1]['tokens'])} answers are equal on {ranks} ranks")
    print("\n".join(wrong[:5]), flush=True)
    if backend != "cuda":
        return {"equal": not wrong}
    found = {world: apart("--measure", str(world), "--model", name, *way) for world in worlds}
    print(f"{name:38} {'1 GPU':>10} {f'{ranks} GPUs':>10}")
    for what in found[1]:
        one, other = found[1][what], found[ranks][what]
        print(f"{what:38} {one:10.2f} {other:10.2f} {other / one:6.2f}x", flush=True)
    return {"equal": not wrong, "found": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", action="store_true", help="pipeline stages")
    parser.add_argument("--model", default="8b", choices=list(MODELS))
    parser.add_argument("--backend", default="cuda", help="another one only says whether the answers are equal")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--say", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    result: dict[str, object]
    if given.say:
        result = say(given.backend, given.say, given.stages)
    elif given.measure:
        result = measure(given.model, given.measure, given.stages)
    else:
        result = compare(given.backend, given.model, given.ranks, given.stages)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))
    return 0 if result.get("equal", True) else 1


if __name__ == "__main__":
    sys.exit(main())

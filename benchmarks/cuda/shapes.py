"""Speed of true shapes on one GPU, with random weights and random token ids, through the engine's own loop.

    python benchmarks/cuda/shapes.py [--model 8b] [--model 0.6b] [--json FILE]

Scheduler and executor run as in the engine process, one step planned ahead; what is left out is the channel, text and
HTTP. Every number stands beside its floor: the bytes that must be read over the card's measured read bandwidth, or the
operations over its measured matrix rate, whichever is longer.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mainspring.core.backend import Executor, WeightScheme
from mainspring.core.composition import build_executor, build_scheduler
from mainspring.core.config import EngineConfig, ModelConfig
from mainspring.core.plan import make_plan
from mainspring.core.request import RequestId, SamplingParams, Submit
from mainspring.core.scheduling.scheduler import Scheduler
from mainspring.core.setting import settle

READ_BYTES_PER_SECOND = 3.05e12
OPERATIONS_PER_SECOND = 771e12
"""An H100 80GB HBM3, measured: a pure read, and a bf16 product of 8192 cubed."""

COMMON = {"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "hidden_act": "silu"}
MODELS = {
    "8b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14336,
        "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0, "tie_word_embeddings": False,
        **COMMON,
    },
    "30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "intermediate_size": 6144, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "norm_topk_prob": True, "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000.0,
        "tie_word_embeddings": False, **COMMON,
    },
    "0.6b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        **COMMON,
    },
}  # fmt: skip
ROWS = (1, 8, 32, 128, 256)
CONTEXT = 1024
STEPS = 100
LOADS = {"256 x 128/512": (256, 128, 512), "512 x 1024/256": (512, 1024, 256)}
"""Requests, tokens in, tokens out."""


@dataclass(slots=True)
class Serving:
    """A model on the card, and its loop."""

    model: ModelConfig
    executor: Executor
    scheduler: Scheduler
    requests: int = 0
    landing: object = None
    waited: float = 0.0
    """Seconds that the host waited for the device."""

    def request(self, num_prompt: int, num_tokens: int) -> Submit:
        """A new request, not submitted."""
        source = random.Random(self.requests)
        tokens = [source.randrange(10, self.model.vocab_size) for _ in range(num_prompt)]
        self.requests += 1
        return Submit(RequestId(self.requests), tokens, SamplingParams(max_tokens=num_tokens, ignore_eos=True))

    def submit(self, num_prompt: int, num_tokens: int) -> None:
        """Makes and submits one."""
        self.scheduler.submit(self.request(num_prompt, num_tokens))

    def turn(self) -> int:
        """One step given to the device and the one before it taken back; tokens that came."""
        batch = self.scheduler.schedule()
        flying = None if batch is None else (batch, self.executor.execute(batch))
        landing, self.landing = self.landing, flying
        if landing is None:
            return 0
        began = time.perf_counter()
        result = landing[1].result()
        self.waited += time.perf_counter() - began
        deltas = self.scheduler.commit(landing[0], result)
        return sum(len(delta.tokens) for delta in deltas)

    def drain(self) -> int:
        """To the end of all requests; tokens that came."""
        tokens = 0
        while self.scheduler.has_work or self.landing is not None:
            tokens += self.turn()
        return tokens


def serving(
    shape: dict[str, object],
    kv_dtype: str = "auto",
    *,
    quantize: str | None = None,
    scheme: WeightScheme | None = None,
    sequences: int = 256,
    **options: str,
) -> tuple[Serving, float]:
    """The model with dummy weights, and the seconds until it served. `scheme` is served instead of `quantize`'s."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape))
        config = EngineConfig(
            model=folder, backend="cuda", load_format="dummy", max_length=8192,
            max_sequences=sequences, max_batch_tokens=8192, prefix_caching=False, backend_options=options,
            kv_dtype=kv_dtype, quantize=quantize,
        )  # fmt: skip
        setting = settle(config)
        began = time.perf_counter()
        plan = make_plan(setting.config, setting.model, setting.choice.backend, setting.choice.device)
        plan = plan if scheme is None else replace(plan, scheme=scheme)
        executor = build_executor(setting, plan, lambda phase, done, total: None)
        seconds = time.perf_counter() - began
    return Serving(setting.model, executor, build_scheduler(setting, executor, 8192)), seconds


def weight_bytes(model: ModelConfig, rows: int = 1) -> float:
    """Weights that one decode step reads: all but the embedding's table, whose head is as large when tied.

    Of experts those that `rows` tokens choose on average, when they choose evenly.
    """
    heads = model.num_heads + 2 * model.num_kv_heads
    mlp = 3 * model.intermediate_size
    if model.experts is not None:
        chosen = model.experts.count * (1 - (1 - model.experts.chosen / model.experts.count) ** rows)
        mlp = 3 * chosen * model.experts.size + model.experts.count
    layer = model.hidden_size * (model.head_dim * (heads + model.num_heads) + mlp)
    return 2 * (model.num_layers * layer + model.hidden_size * model.vocab_size)


def kv_bytes(model: ModelConfig) -> int:
    """Keys and values of one token."""
    return 2 * 2 * model.num_layers * model.num_kv_heads * model.head_dim


def decode_step(served: Serving, rows: int) -> tuple[float, float]:
    """(milliseconds a step, its floor) with so many rows, at a context of CONTEXT tokens and a few more."""
    for _ in range(rows):
        served.submit(CONTEXT, STEPS + 24 + rows * CONTEXT // 8192)
    tokens = 0
    while tokens != rows:
        tokens = served.turn()
    for _ in range(4):
        served.turn()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        tokens = served.turn()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / STEPS
    served.drain()
    model = served.model
    read = weight_bytes(model, rows) + rows * (CONTEXT + STEPS // 2) * kv_bytes(model)
    return 1e3 * seconds, 1e3 * read / READ_BYTES_PER_SECOND


def first_token(served: Serving, num_prompt: int) -> tuple[float, float]:
    """(milliseconds to the first token of one prompt, its floor); the best of five."""
    times = []
    for _ in range(5):
        request = served.request(num_prompt, 1)  # 8000 random numbers take three milliseconds
        torch.cuda.synchronize()
        began = time.perf_counter()
        served.scheduler.submit(request)
        while not served.turn():
            pass
        times.append(time.perf_counter() - began)
        served.drain()
    model = served.model
    # Two operations a weight and token, two bytes a weight; the head is asked for one token alone.
    products = (weight_bytes(model) - 2 * model.hidden_size * model.vocab_size) * num_prompt
    attention = 2 * num_prompt**2 * model.num_heads * model.head_dim * model.num_layers
    compute = (products + attention) / OPERATIONS_PER_SECOND
    return 1e3 * min(times), 1e3 * max(compute, weight_bytes(model, num_prompt) / READ_BYTES_PER_SECOND)


def throughput(served: Serving, requests: int, num_prompt: int, num_tokens: int) -> float:
    """Output tokens a second, all requests at once."""
    # Half a million random numbers take a third of a second, and a server is not asked for them.
    made = [served.request(num_prompt, num_tokens) for _ in range(requests)]
    began = time.perf_counter()
    for request in made:
        served.scheduler.submit(request)
    tokens = served.drain()
    return tokens / (time.perf_counter() - began)


def measure(name: str) -> Iterator[tuple[str, float, float | None]]:
    """(what, measured, floor)."""
    served, seconds = serving(MODELS[name])
    yield "start, s", seconds, None
    yield "KV blocks of 32", served.executor.num_blocks(), None
    for rows in ROWS:
        yield f"decode step, batch {rows}, ms", *decode_step(served, rows)
    for num_prompt in (128, 1024, 8000):
        yield f"TTFT {num_prompt}, ms", *first_token(served, num_prompt)
    for load, (requests, num_prompt, num_tokens) in LOADS.items():
        yield f"{load}, out tok/s", throughput(served, requests, num_prompt, num_tokens), None
    yield "peak of torch's memory, GiB", torch.cuda.max_memory_allocated() / 2**30, None
    served.executor.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    results = {}
    for name in given.model or list(MODELS):
        for what, measured, floor in measure(name):
            beside = "" if floor is None else f"{floor:10.2f} {measured / floor:6.2f}x"
            print(f"{name:5} {what:32} {measured:10.2f} {beside}", flush=True)
            results[f"{name} {what}"] = {"measured": measured, "floor": floor}
        torch.cuda.empty_cache()
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

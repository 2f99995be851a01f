"""The same model on one CPU through Mainspring, transformers' `generate`, llama.cpp and vLLM's CPU build, in turn.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/cpu/compare.py MODEL --gguf FILE [--runs 5] [--json FILE]

MODEL is a directory with safetensors, which three of them read; FILE is for llama.cpp. Each peer runs in a process of
its own, loads once, and then takes part in every round: one peer after another, `--runs` rounds, so that what else the
machine does meets all of them alike. Told are medians, and ratios to Mainspring's. A peer that is not installed is left
out, and the table says so. What is timed is the same for all: from prompts as token ids, greedy, to the last token;
`--output-tokens` of them for every prompt, whatever the model says.

Cases: decode at 1, 8 and 32 prompts at once (transformers: one after another, and as one batch), 16 prompts of mixed
lengths, and prefill of 512 tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], None]
"""Generates so many tokens for each prompt, and returns when the last one is there."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed, and how many tokens it is counted as."""

    name: str
    prompts: Prompts
    output_tokens: int

    @property
    def tokens(self) -> int:
        """Generated ones; of a prefill, those of the prompts."""
        if self.output_tokens > 1:
            return len(self.prompts) * self.output_tokens
        return sum(map(len, self.prompts))


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to run the model. `package` is what must be installed for it."""

    name: str
    package: str
    load: Callable[[argparse.Namespace], Generate]


def load_mainspring(arguments: argparse.Namespace) -> Generate:
    """The cpu backend through the offline face; the engine has a process of its own."""
    from mainspring import LLM
    from mainspring.core.request import SamplingParams

    model = LLM(
        arguments.model, "cpu", dtype=arguments.dtype, quantize=arguments.quantize, threads=arguments.threads,
        prefix_caching=False,
    )  # fmt: skip

    def generate(prompts: Prompts, output_tokens: int) -> None:
        model.generate(prompts, SamplingParams(max_tokens=output_tokens, ignore_eos=True))

    return generate


def _transformers(arguments: argparse.Namespace) -> Callable[[Prompts, int], None]:
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))

    def generate(prompts: Prompts, output_tokens: int) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        model.generate(
            ids, attention_mask=mask, do_sample=False, pad_token_id=0,
            min_new_tokens=output_tokens, max_new_tokens=output_tokens,
        )  # fmt: skip

    return generate


def load_transformers_one_by_one(arguments: argparse.Namespace) -> Generate:
    """One prompt after another, as a script without batching does."""
    one_batch = _transformers(arguments)

    def generate(prompts: Prompts, output_tokens: int) -> None:
        for prompt in prompts:
            one_batch([prompt], output_tokens)

    return generate


def load_llama_cpp(arguments: argparse.Namespace) -> Generate:
    """llama-cpp-python, which has no continuous batching: one prompt after another."""
    import llama_cpp

    if arguments.gguf is None:
        raise FileNotFoundError("--gguf names no file")
    model = llama_cpp.Llama(
        str(arguments.gguf), n_ctx=4096, n_threads=arguments.threads, n_threads_batch=arguments.threads, verbose=False
    )

    def generate(prompts: Prompts, output_tokens: int) -> None:
        for prompt in prompts:
            model.reset()
            tokens = model.generate(prompt, temp=0.0, reset=False)
            for _ in range(output_tokens):
                next(tokens)

    return generate


def load_vllm(arguments: argparse.Namespace) -> Generate:
    """vLLM's CPU build, its own defaults but the threads and no prefix cache."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))[: arguments.threads]))
    import vllm

    model = vllm.LLM(arguments.model, dtype=arguments.dtype, enable_prefix_caching=False, max_model_len=4096)

    def generate(prompts: Prompts, output_tokens: int) -> None:
        params = vllm.SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True)
        model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    return generate


PEERS = (
    Peer("mainspring", "mainspring", load_mainspring),
    Peer("transformers, one by one", "transformers", load_transformers_one_by_one),
    Peer("transformers, one batch", "transformers", _transformers),
    Peer("llama.cpp", "llama_cpp", load_llama_cpp),
    Peer("vllm", "vllm", load_vllm),
)
_DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python"}


def cases(output_tokens: int, vocab_size: int, seed: int) -> list[Case]:
    """The same prompts for every peer."""
    draws = random.Random(seed)

    def prompts(*lengths: int) -> Prompts:
        return [[draws.randrange(vocab_size) for _ in range(length)] for length in lengths]

    mixed = [draws.choice((16, 64, 128, 256)) for _ in range(16)]
    return [
        *(Case(f"decode, {count} at once", prompts(*[32] * count), output_tokens) for count in (1, 8, 32)),
        Case("16 of mixed lengths", prompts(*mixed), output_tokens),
        Case("prefill of 512", prompts(512), 1),
    ]


def work(peer: Peer, arguments: argparse.Namespace, pipe: Connection) -> None:
    """A peer's process: loads, then times each case it is sent; answers with seconds, or with why it cannot."""
    try:
        generate = peer.load(arguments)
    except Exception as error:  # noqa: BLE001  a peer's own troubles must not end the others
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("")
    while (case := pipe.recv()) is not None:
        began = perf_counter()
        generate(case.prompts, case.output_tokens)
        pipe.send(perf_counter() - began)


def start(peer: Peer, arguments: argparse.Namespace) -> tuple[Connection | None, str]:
    """A connection to a loaded peer, or None and why there is none."""
    if importlib.util.find_spec(peer.package) is None:
        return None, "not installed"
    here, there = multiprocessing.Pipe()
    # Not forked: a peer must find no threads of another in its memory.
    process = multiprocessing.get_context("spawn").Process(target=work, args=(peer, arguments, there))
    process.start()
    there.close()
    try:
        reason: str = here.recv()
    except EOFError:
        reason = "its process ended while loading"
    return (None, reason) if reason else (here, version(_DISTRIBUTIONS.get(peer.package, peer.package)))


def measure(peers: dict[str, Connection], todo: Sequence[Case], runs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by case and peer, in rounds; a first round is not counted."""
    seconds: dict[str, dict[str, list[float]]] = {case.name: {name: [] for name in peers} for case in todo}
    for round_number in range(runs + 1):
        for case in todo:
            for name, pipe in peers.items():
                pipe.send(case)
                taken = pipe.recv()
                if round_number:
                    seconds[case.name][name].append(taken)
    return seconds


def report(todo: Sequence[Case], seconds: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Prints the medians and gives them back, one entry a case and peer."""
    rows = []
    for case in todo:
        medians = {name: statistics.median(taken) for name, taken in seconds[case.name].items()}
        ours = medians.get("mainspring")
        for name, median in medians.items():
            ratio = f"{median / ours:6.2f} x" if ours else ""
            times = f"{median:8.3f} s  {min(seconds[case.name][name]):8.3f} s  {ratio}"
            print(f"{case.name:22} {name:26} {case.tokens / median:9.1f} tokens/s  {times}")
            rows.append({"case": case.name, "peer": name, "tokens": case.tokens, "seconds": seconds[case.name][name]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gguf", type=Path, help="the model for llama.cpp")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quantize", help="weight scheme for Mainspring, e.g. int8, against a quantized --gguf")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], help="[default: all]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {arguments.dtype}", flush=True)
    connections: dict[str, Connection] = {}
    about: dict[str, str] = {}
    for peer in PEERS:
        if arguments.peers and peer.name not in arguments.peers:
            continue
        connection, about[peer.name] = start(peer, arguments)
        if connection is not None:
            connections[peer.name] = connection
        print(f"{peer.name}: {about[peer.name] if connection else 'left out, ' + about[peer.name]}", flush=True)
    vocab_size = json.loads((Path(arguments.model) / "config.json").read_text())["vocab_size"]
    todo = cases(arguments.output_tokens, vocab_size, seed=0)
    print(f"{'':49} {'median':>18} {'median':>11} {'least':>11}    to mainspring's time")
    try:
        rows = report(todo, measure(connections, todo, arguments.runs))
    finally:
        for pipe in connections.values():
            pipe.send(None)
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items()}
        arguments.json.write_text(json.dumps({"settings": settings, "peers": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

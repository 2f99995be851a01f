"""One peer of `compare.py`: a process that loads a model once and generates what it is told, in lines of JSON.

    PYTHON benchmarks/cpu/peer.py NAME SETTINGS

It runs under the peer's own interpreter, because peers pin torches that exclude one another, so it imports nothing but
the standard library and that peer. SETTINGS is JSON: model, gguf, dtype, threads. It says `{"version": ...}` or
`{"error": ...}` once it is loaded; then each line of standard input, `{"prompts": [[id, ...], ...], "tokens": n}`, is
answered by `{"seconds": s}`. Whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from time import perf_counter
from typing import Any

Prompts = list[list[int]]
Settings = dict[str, Any]
Generate = Callable[[Prompts, int], None]
"""Generates so many tokens for each prompt, greedily, and returns when the last one is there."""

LONGEST = 1024
"""Tokens of the longest sequence of any case."""
ROWS = 32
"""Sequences at once in the largest case."""


def load_mainspring(settings: Settings, quantize: str | None = None) -> Generate:
    """The cpu backend through the offline face; the engine has a process of its own."""
    from mainspring import LLM
    from mainspring.core.request import SamplingParams

    model = LLM(
        settings["model"], "cpu", dtype=settings["dtype"], quantize=quantize, threads=settings["threads"],
        prefix_caching=False,
    )  # fmt: skip

    def generate(prompts: Prompts, output_tokens: int) -> None:
        model.generate(prompts, SamplingParams(max_tokens=output_tokens, ignore_eos=True))

    return generate


def load_transformers_batch(settings: Settings) -> Generate:
    """`generate` with all prompts as one padded batch."""
    import torch
    import transformers

    torch.set_num_threads(settings["threads"])
    dtype = getattr(torch, settings["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype)

    def generate(prompts: Prompts, output_tokens: int) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        model.generate(
            ids, attention_mask=mask, do_sample=False, pad_token_id=0,
            min_new_tokens=output_tokens, max_new_tokens=output_tokens,
        )  # fmt: skip

    return generate


def load_transformers(settings: Settings) -> Generate:
    """One prompt after another, as a script without batching does."""
    one_batch = load_transformers_batch(settings)

    def generate(prompts: Prompts, output_tokens: int) -> None:
        for prompt in prompts:
            one_batch([prompt], output_tokens)

    return generate


def load_llama_cpp_batch(settings: Settings) -> Generate:
    """llama.cpp's own batch interface: every prompt a sequence of one context, and a step decodes all of them.

    Prompts go in first, as much of them in a batch as it holds. Greedy, so a step costs llama.cpp no sampler: the
    largest logit is found by numpy.
    """
    import llama_cpp as api
    import numpy as np

    api.llama_backend_init()
    model = api.llama_model_load_from_file(str(settings["gguf"]).encode(), api.llama_model_default_params())
    options = api.llama_context_default_params()
    options.n_ctx, options.n_seq_max, options.n_batch, options.n_ubatch = ROWS * LONGEST, ROWS, 2048, 512
    options.n_threads = options.n_threads_batch = settings["threads"]
    options.kv_unified = False
    context = api.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("llama.cpp made no context")
    vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(2048, 0, 1)

    def put(token: int, position: int, sequence: int, wanted: bool) -> None:
        at = batch.n_tokens
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.n_tokens += 1

    def run(ids: list[int]) -> None:
        """Decodes the batch and takes the next token of each sequence that wants one."""
        if api.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        for at in range(batch.n_tokens):
            if batch.logits[at]:
                logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, at), (vocab_size,))
                ids[batch.seq_id[at][0]] = int(logits.argmax())
        batch.n_tokens = 0

    def generate(prompts: Prompts, output_tokens: int) -> None:
        api.llama_memory_clear(api.llama_get_memory(context), False)
        ids = [0] * len(prompts)
        for sequence, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                put(token, position, sequence, position == len(prompt) - 1)
                if batch.n_tokens == 2048:
                    run(ids)
        if batch.n_tokens:
            run(ids)
        for step in range(output_tokens - 1):
            for sequence, prompt in enumerate(prompts):
                put(ids[sequence], len(prompt) + step, sequence, True)
            run(ids)

    return generate


def load_llama_cpp(settings: Settings) -> Generate:
    """One prompt after another."""
    together = load_llama_cpp_batch(settings)

    def generate(prompts: Prompts, output_tokens: int) -> None:
        for prompt in prompts:
            together([prompt], output_tokens)

    return generate


def load_vllm(settings: Settings) -> Generate:
    """vLLM's CPU build: its own defaults but the threads, the size of its cache and no prefix cache."""
    cores = sorted(os.sched_getaffinity(0))[: settings["threads"]]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    import vllm

    model = vllm.LLM(settings["model"], dtype=settings["dtype"], enable_prefix_caching=False, max_model_len=LONGEST)

    def generate(prompts: Prompts, output_tokens: int) -> None:
        params = vllm.SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True)
        model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    return generate


PEERS: Mapping[str, tuple[str, Callable[[Settings], Generate]]] = {
    "mainspring": ("mainspring", load_mainspring),
    "mainspring int8": ("mainspring", lambda settings: load_mainspring(settings, "int8-dynamic")),
    "mainspring int4": ("mainspring", lambda settings: load_mainspring(settings, "int4-dynamic")),
    "mainspring gguf": ("mainspring", lambda settings: load_mainspring(settings | {"model": settings["gguf"]})),
    "transformers": ("transformers", load_transformers),
    "transformers batch": ("transformers", load_transformers_batch),
    "llama.cpp": ("llama-cpp-python", load_llama_cpp),
    "llama.cpp batch": ("llama-cpp-python", load_llama_cpp_batch),
    "vllm": ("vllm-cpu", load_vllm),
}
"""By name: the distribution that it is, and how it is loaded."""


def main() -> None:
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    # Standard output is the conversation's; what libraries print there must not get into it.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    distribution, load = PEERS[name]
    try:
        generate = load(settings)
    except Exception as error:  # noqa: BLE001  a peer's own troubles must not end the others
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return
    print(json.dumps({"version": f"{distribution} {version(distribution)}"}), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        began = perf_counter()
        generate(order["prompts"], order["tokens"])
        print(json.dumps({"seconds": perf_counter() - began}), file=answers)


if __name__ == "__main__":
    main()

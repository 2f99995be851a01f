"""What a draft model gains at most, and never costs: tokens a second with one against none, in turn, round after round.

The target has 30 layers of which only the first ones move its stream, and the draft model is those: so drafts are right
always (`--right`), which is the bound of what speculation gains here. Or the draft model is another one of its size
(`--wrong`), whose drafts are never right: what is lost then is what the gate is there to prevent.

python -m benchmarks.draft_model --right --wrong --rows 1 8
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers

from mainspring import LLM
from mainspring.core.request import SamplingParams

WORDS = 4096


def write(directory: Path, layers: int, moving: int, *, seed: int = 0) -> Path:
    """A Llama of SmolLM2's sizes but for its vocabulary, with a word a token; layers from `moving` on add nothing."""
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=drawn)
        for layer in model.model.layers[moving:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(directory)
    vocab = {f"w{token}": token for token in range(WORDS)}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


def rate(llm: LLM, rows: int, tokens: int) -> float:
    """Tokens a second of so many sequences, prompts included."""
    prompts = [[(7 * place + row) % WORDS for place in range(32)] for row in range(rows)]
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    began = time.perf_counter()
    llm.generate(prompts, params)
    return rows * tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--moving", type=int, default=3, help="layers of the draft model")
    parser.add_argument("--speculate", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--right", action="store_true")
    parser.add_argument("--wrong", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        target = write(Path(room, "target"), 30, asked.moving)
        drafts = {"none": None}
        if asked.right:
            drafts["right"] = str(write(Path(room, "right"), asked.moving, asked.moving))
        if asked.wrong:
            drafts["wrong"] = str(write(Path(room, "wrong"), asked.moving, asked.moving, seed=1))
        for rows in asked.rows:
            measure(str(target), drafts, rows, asked)


def measure(target: str, drafts: dict[str, str | None], rows: int, asked: argparse.Namespace) -> None:
    """Prints a line for each drafter: the median rate, and what it is of none's."""
    llms = {
        name: LLM(
            target,
            asked.backend,
            max_length=512,
            max_sequences=8 * rows,  # what all of them guess must have room in a step
            threads=asked.threads,
            prefix_caching=False,
            speculator=draft,
            speculate=None if draft is None else asked.speculate,
        )
        for name, draft in drafts.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in llms}
    for _ in range(1 + asked.rounds):
        for name, llm in llms.items():
            rates[name].append(rate(llm, rows, asked.tokens))
    for name, llm in llms.items():
        # The first round loads, records and looks.
        found = statistics.median(rates[name][1:])
        of_none = round(found / statistics.median(rates["none"][1:]), 3)
        print(json.dumps({"rows": rows, "drafter": name, "tokens_per_second": round(found, 1), "of_none": of_none}))
        llm.close()


if __name__ == "__main__":
    main()

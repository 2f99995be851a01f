"""Makes the checkpoints: `python -m tests.quantized.make OUT [NAME ...]`, in an environment with the tools.

Each entry of `TOOLS` writes a directory that transformers and others would load, by calling the format's own tool, and
returns what that tool itself de-quantises the weights to. Beside the checkpoint goes `reference.safetensors`:
transformers' logits in float32 with those weights, and `tool.txt`: the tool and its version.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.quantized import (
    autoawq,
    bnb,
    gptqmodel_tool,
    hqq_tool,
    llmcompressor_tool,
    source,
    torchao_tool,
    transformers_fp8,
    transformers_mxfp4,
)

Make = Callable[[Path, Path], Mapping[str, Tensor]]
"""From the model's directory to a checkpoint's: all weights as the tool de-quantises them."""

TOOLS: Mapping[str, tuple[str, Make]] = MappingProxyType(
    {
        **{f"compressed-{name}": ("llmcompressor", make) for name, make in llmcompressor_tool.MAKES.items()},
        **{f"bnb-{name}": ("bitsandbytes", make) for name, make in bnb.MAKES.items()},
        **{f"gptq-{name}": ("gptqmodel", make) for name, make in gptqmodel_tool.MAKES.items()},
        **{f"fp8-{name}": ("transformers", make) for name, make in transformers_fp8.MAKES.items()},
        **{f"hqq-{name}": ("hqq", make) for name, make in hqq_tool.MAKES.items()},
        **{f"torchao-{name}": ("torchao", make) for name, make in torchao_tool.MAKES.items()},
        **{name: ("autoawq", make) for name, make in autoawq.MAKES.items()},
        "mxfp4": ("transformers", transformers_mxfp4.make),
    }
)
"""By the checkpoint's name: whose it is."""


def make(name: str, model: Path, directory: Path) -> None:
    """One checkpoint with its reference."""
    tool, write = TOOLS[name]
    shutil.rmtree(directory, ignore_errors=True)
    weights: Any = write(model, directory)
    save_file({"logits": source.logits(weights)}, directory / "reference.safetensors")
    (directory / "tool.txt").write_text(f"{tool} {version(tool)}\n")
    for surplus in directory.iterdir():
        if surplus.suffix not in (".safetensors", ".txt") and surplus.name != "config.json":
            surplus.unlink()


def main(out: Path, names: list[str]) -> None:
    """All checkpoints, or those named."""
    with tempfile.TemporaryDirectory() as model:
        source.write(Path(model))
        for name in names or TOOLS:
            torch.manual_seed(0)
            make(name, Path(model), out / name)
            print(name, (out / name / "tool.txt").read_text().strip(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Checkpoints that each format's own tool wrote, against the tool's own reading of them.

`tests/quantized` made them; `tool.txt` beside each says by what. The reference is transformers' logits in float32 with
the weights as that tool de-quantises them, so a code, a scale or an order that is misread shows as another model.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quantized.compare import TOLERANCE, difference

DATA = Path(__file__).parent / "data" / "quantized"
NAMES = sorted(path.name for path in DATA.iterdir())
GGUF = sorted((Path(__file__).parent / "data" / "gguf").glob("*.gguf"))
"""Written by llama.cpp."""


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_what_the_tool_reads(name: str) -> None:
    assert difference(DATA / name, DATA / name / "reference.safetensors") < TOLERANCE


@pytest.mark.parametrize("file", GGUF, ids=lambda file: file.stem)
def test_blocks_are_what_the_gguf_package_reads(file: Path) -> None:
    assert difference(file, file.with_suffix(".safetensors")) < 1e-5

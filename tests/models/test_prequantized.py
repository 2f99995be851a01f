"""Checkpoints that each format's own tool wrote, against the tool's own reading of them.

`tests/quantized` made them; `tool.txt` beside each says by what. The reference is transformers' logits in float32 with
the weights as that tool de-quantises them, so a code, a scale or an order that is misread shows as another model.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.models.conftest import load
from tests.support.model_driver import ModelDriver, Track

DATA = Path(__file__).parent / "data" / "quantized"
NAMES = sorted(path.name for path in DATA.iterdir())
TOLERANCE = 3e-3
"""Of the largest logit: tools de-quantise in float16. One group's scale taken for its neighbour's is 50 times that."""
TOKENS = [(7 * place * place + 3) % 64 for place in range(1, 25)]


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_what_the_tool_reads(name: str) -> None:
    model, config = load(DATA / name, 64)
    expected = load_file(DATA / name / "reference.safetensors")["logits"]
    ours = ModelDriver(model, config).step([(Track(list(TOKENS)), len(TOKENS))])[0]
    assert (ours - expected).abs().max() < TOLERANCE * expected.abs().max()

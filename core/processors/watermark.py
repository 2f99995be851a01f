"""A watermark that a reader with the key can find in the text.

It is the soft scheme with one token of context of Kirchenbauer et al. 2023, "A Watermark for Large Language Models"
(arXiv:2301.10226).

The token before decides which of the vocabulary are green, a share `gamma` of it; the green ones get `delta`. Whether a
token is green is a hash of (key, token before, token) and of nothing else, the same on every device:

    h = MurmurHash3_x86_32(key, 0x6D61726B, token before, token; hash seed 0), four little-endian 32-bit words
    green where (h mod 2**31) div 2**7 < gamma * 2**24, with gamma as a float32

so the detector (`server/watermark.py`) needs neither torch nor the vocabulary. The scheme of TGI and of transformers'
`WatermarkingConfig` draws its lists from a device's random generator, and their detectors do not find this one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mainspring.core.ops.sample import key_state, token_hashes
from mainspring.core.processors.contract import LogitsProcessor, ProcessedRows
from mainspring.core.request import Parameter

SALT = 0x6D61726B
"""Keeps green lists apart from the noise of draws, which is the same hash."""
DEFAULT_KEY = 15_485_863
"""The millionth prime, as in the paper's code."""


class Watermark(LogitsProcessor):
    """Adds `delta` to the green tokens."""

    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("gamma", "number", minimum=0.01, maximum=0.99, default=0.5),
        Parameter("delta", "number", minimum=0.0, maximum=100.0, default=2.0),
        Parameter("key", "integer", minimum=0, maximum=2**31 - 1, default=DEFAULT_KEY),
    )
    history: ClassVar[int] = 1
    order: ClassVar[int] = 100

    def process(self, logits_PV: Tensor, rows: ProcessedRows) -> Tensor:
        state_P = key_state(rows.parameters["key"], SALT)
        hash_PV = token_hashes(state_P, rows.previous[:, -1], logits_PV.shape[-1])
        share_PV = (hash_PV & 0x7FFFFFFF).bitwise_right_shift(7).float()
        green_PV = share_PV < rows.parameters["gamma"][:, None] * 2.0**24
        return logits_PV + torch.where(green_PV, rows.parameters["delta"][:, None], 0.0)

"""What is known of a device that kernels must be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mainspring.backends.torch_gpu.quantized_tiles import small_scaled_tile, small_word_tile
from mainspring.backends.triton.attention import Tile
from mainspring.backends.triton.codes import PLAIN, Reader
from mainspring.backends.triton.launch import ALONE, Overlap
from mainspring.backends.triton.moe import Tile as ExpertsTile
from mainspring.backends.triton.scaled import ScaledTile, ScaledWeight
from mainspring.backends.triton.words import WordTile, WordWeight


class FewRows(Protocol):
    """A kernel of the machine's own for products of so few rows that reading the weight is all that takes time."""

    def takes(self, x_MK: Tensor, weight: WordWeight) -> bool:
        """Whether it multiplies these."""
        ...

    def __call__(self, x_MK: Tensor, weight: WordWeight, bias_N: Tensor | None) -> Tensor:
        """[M, N] in x's dtype; as `word_linear` of `backends/triton/words.py`."""
        ...


@dataclass(frozen=True, slots=True)
class Tuning:
    """The default of each is what Triton's kernels take on a machine that nobody has measured."""

    processors: int
    """That run programs side by side: below two programs each, sequences are split."""
    prefill: Callable[[int, int, int, torch.dtype], Tile | None] = field(default=lambda *_: None)
    """(tokens, head dim, heads a kv head, dtype) -> tile of a step with chunks; None: Triton's own choice."""
    decode: Callable[[int, torch.dtype], Tile | None] = field(default=lambda *_: None)
    """(head dim, dtype) -> positions, warps and stages of a decode."""
    experts: Callable[[int, int, torch.dtype], ExpertsTile | None] = field(default=lambda *_: None)
    """(pairs of a token and an expert, experts, dtype) -> tile of their products."""
    overlap: Overlap = ALONE
    words: Callable[[int, WordWeight, int], WordTile] = small_word_tile
    """(rows, weight, processors) -> tile of a product with a quantized weight."""
    few_rows: FewRows | None = None
    """None: few rows are multiplied as many are."""
    reader: Reader = PLAIN
    """How bfloat16 numbers are made of codes."""
    scaled: Callable[[int, ScaledWeight, int], ScaledTile] = small_scaled_tile
    """The same of a product of 8 bits on either side."""
    float8: bool = False
    """Whether matrices of float8_e4m3fn are multiplied; without, weights are read as codes, and activations stay."""
    float8_library_rows: int | None = None
    """From how many rows on torch's own product of them is faster; None: never."""

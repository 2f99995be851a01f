"""Linear layers and tables in GGUF's blocks by the compiled kernels; how they lie is said in blocks.cpp.

Blocks are laid out anew at load, so that 32 outputs are computed together, in as many bytes: only the steps of Q4_K and
Q5_K grow, from 6 bits to 8, which is 3 % of the weight.

Legend: T tokens, K input features, N output features, P panels of 32 outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.backends.cpu.native.library import Blocks, Kernel, Kernels
from mainspring.backends.cpu.native.linear import PANEL
from mainspring.core.backend import GGUF_PACKINGS, GGUFPacking, WeightScheme
from mainspring.core.gguf_layouts import LAYOUTS
from mainspring.core.ops import gguf_blocks

PACKED_AT_ONCE = 8192
"""Rows whose blocks are apart in memory at one time; whole panels."""


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """A packed weight, as `backends.cpu.linear.Weights` wants it."""

    kernels: Kernels
    form: int
    codes: Tensor
    high: Tensor | None
    halves: Tensor
    steps: Tensor | None
    in_features: int
    out_features: int

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        """[T, N] in x's dtype, bias added."""
        x32_TK = x_TK if x_TK.dtype == torch.float32 and x_TK.is_contiguous() else x_TK.float().contiguous()
        bias_N = None if bias_N is None else bias_N.float().contiguous()
        out_TN = self.kernels.empty(x_TK.shape[0], self.out_features)
        self._run(x32_TK, None, bias_N, out_TN)
        return out_TN if x_TK.dtype == torch.float32 else out_TN.to(x_TK.dtype)

    def rows(self, index_T: Tensor, dtype: torch.dtype) -> Tensor:
        """[T, K]."""
        index_T = index_T.to(torch.int32).contiguous()
        out_TK = self.kernels.empty(len(index_T), self.in_features)
        self._run(None, index_T, None, out_TK)
        return out_TK if dtype == torch.float32 else out_TK.to(dtype)

    def num_bytes(self) -> int:
        """Memory of the weight."""
        return sum(part.nbytes for part in (self.codes, self.high, self.halves, self.steps) if part is not None)

    def _run(self, x_TK: Tensor | None, index_T: Tensor | None, bias_N: Tensor | None, out: Tensor) -> None:
        parts = (x_TK, index_T, self.codes, self.high, self.halves, self.steps, bias_N, out)
        record = Blocks(
            *(None if part is None else part.data_ptr() for part in parts),
            out.shape[0], self.in_features, self.out_features, self.form,
        )  # fmt: skip
        work = self.in_features * (self.out_features if index_T is None else len(index_T))
        self.kernels.run(Kernel.BLOCKS, record, work)


def pack_blocks(scheme: WeightScheme, weight_NB: Tensor, kernels: Kernels) -> BlockWeights:
    """Raw rows of blocks, [N, row bytes] uint8, in the kernel's panels."""
    packing = gguf_blocks.blocks_of(scheme)
    pieces = [_panels(packing, rows) for rows in weight_NB.split(PACKED_AT_ONCE)]
    codes, high, halves, steps = (_joined(parts) for parts in zip(*pieces, strict=True))
    if codes is None or halves is None:
        raise ValueError(f"a weight of shape {list(weight_NB.shape)} has no blocks")
    in_features = gguf_blocks.in_features(packing, weight_NB.shape[1])
    form = GGUF_PACKINGS.index(packing)
    return BlockWeights(kernels, form, codes, high, halves, steps, in_features, len(weight_NB))


Panels = tuple[Tensor | None, ...]
"""Codes, high bits, halves, steps."""


def _panels(packing: GGUFPacking, weight_NB: Tensor) -> Panels:
    layout = LAYOUTS[packing]
    blocks = gguf_blocks.take_apart(packing, F.pad(weight_NB, (0, 0, 0, -len(weight_NB) % PANEL)))
    codes = blocks.codes.view(-1, 2, PANEL // 2, blocks.codes.shape[1] // 4, 4)
    halves = _beside(blocks.scales, blocks.minimums)
    steps = None if blocks.steps is None else _beside(blocks.steps, blocks.minimum_steps)
    if layout.bits == 8:
        return codes.permute(0, 3, 1, 2, 4).contiguous(), None, halves, steps
    low = (codes[:, 0] & 15) | (codes[:, 1] << 4)
    high = None if layout.bits == 4 else _high_bits(codes >> 4, layout.bits - 4)
    return low.transpose(1, 2).contiguous(), high, halves, steps


def _high_bits(bits: Tensor, width: int) -> Tensor:
    """[P, 2, 16, quads, 4] as [P, quads that share bytes, 2, 16, 4]: each takes `width` bits, the first the lowest."""
    shared = 8 // width
    apart = bits.reshape(*bits.shape[:3], -1, shared, 4)
    joined = apart[..., 0, :].clone()
    for quad in range(1, shared):
        joined |= apart[..., quad, :] << (width * quad)
    return joined.permute(0, 3, 1, 2, 4).contiguous()


def _beside(first: Tensor, second: Tensor | None) -> Tensor:
    """[N, n] each as [P, n, 1 or 2, 32]."""
    both = torch.stack([first] if second is None else [first, second], dim=1)
    return both.view(-1, PANEL, *both.shape[1:]).permute(0, 3, 2, 1).contiguous()


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    held = [part for part in parts if part is not None]
    if not held:
        return None
    return held[0] if len(held) == 1 else torch.cat(held)

"""The small ops by the compiled kernels, for float32 that lies as they want it; else by torch.

Legend: T packed tokens, E hidden size, I intermediate size, H query heads, K kv heads, D head dim, P positions,
N rows that choose a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mainspring.backends.cpu import elementwise
from mainspring.backends.cpu.native.library import Kernel, Kernels, Norm, Rope, SiluMul
from mainspring.core.ops.bitmask import apply_bitmask
from mainspring.core.ops.logprobs import likeliest, logprobs
from mainspring.core.ops.sample import SamplingTensors, sample, truncate

ELEMENT = 4
"""Multiplications that an element takes as long as."""


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Methods with the signatures of `core.ops`."""

    kernels: Kernels

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """As `core.ops.norm.rms_norm`."""
        if x.dtype != torch.float32 or not x.is_contiguous():
            return elementwise.rms_norm(x, weight, epsilon)
        out, size = self.kernels.empty(*x.shape), x.shape[-1]
        record = Norm(
            x.data_ptr(), None, weight.data_ptr(), out.data_ptr(), None, x.numel() // size, size, epsilon
        )  # fmt: skip
        self.kernels.run(Kernel.NORM, record, ELEMENT * x.numel())
        return out

    def add_rms_norm(
        self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """As `core.ops.norm.add_rms_norm`."""
        if x_TE.dtype != torch.float32 or not (x_TE.is_contiguous() and residual_TE.is_contiguous()):
            return elementwise.add_rms_norm(x_TE, residual_TE, weight_E, epsilon)
        normed_TE, total_TE = self.kernels.empty(*x_TE.shape), self.kernels.empty(*x_TE.shape)
        record = Norm(
            x_TE.data_ptr(), residual_TE.data_ptr(), weight_E.data_ptr(), normed_TE.data_ptr(), total_TE.data_ptr(),
            x_TE.shape[0], x_TE.shape[1], epsilon,
        )  # fmt: skip
        self.kernels.run(Kernel.NORM, record, ELEMENT * x_TE.numel())
        return normed_TE, total_TE

    def silu_mul(self, x_T2I: Tensor) -> Tensor:
        """As `core.ops.activation.silu_mul`."""
        if x_T2I.dtype != torch.float32 or not x_T2I.is_contiguous() or x_T2I.dim() != 2:
            return elementwise.silu_mul(x_T2I)
        tokens, size = x_T2I.shape[0], x_T2I.shape[1] // 2
        out_TI = self.kernels.empty(tokens, size)
        record = SiluMul(x_T2I.data_ptr(), out_TI.data_ptr(), tokens, size)
        self.kernels.run(Kernel.SILU_MUL, record, ELEMENT * out_TI.numel())
        return out_TI

    def rope(self, q_THD: Tensor, k_TKD: Tensor, positions_T: Tensor, cos_sin_PR: Tensor) -> tuple[Tensor, Tensor]:
        """As `core.ops.rope.rope`."""
        head_dim = q_THD.shape[2]
        if not (cos_sin_PR.shape[1] == head_dim and positions_T.dtype == torch.int32 and dense(q_THD) and dense(k_TKD)):
            return elementwise.rope(q_THD, k_TKD, positions_T, cos_sin_PR)
        positions, table = positions_T.contiguous().data_ptr(), cos_sin_PR.data_ptr()
        out = []
        for x in (q_THD, k_TKD):
            tokens, heads, _ = x.shape
            turned = self.kernels.empty(*x.shape)
            record = Rope(x.data_ptr(), positions, table, turned.data_ptr(), x.stride(0), tokens, heads, head_dim)
            self.kernels.run(Kernel.ROPE, record, ELEMENT * x.numel())
            out.append(turned)
        return out[0], out[1]

    def sample(self, logits_NV: Tensor, sampling: SamplingTensors) -> Tensor:
        """As `core.ops.sample.sample`; what typical_p cuts is cut by torch."""
        if logits_NV.dtype != torch.float32 or not logits_NV.is_contiguous():
            return sample(logits_NV, sampling, peek=True)
        ids_N = torch.empty(len(logits_NV), dtype=torch.int32)
        if not sampling.any_sampled:
            self.kernels.argmax(logits_NV.data_ptr(), ids_N.data_ptr(), *logits_NV.shape, self.kernels.threads)
            return ids_N
        temperature_N, floors_N = sampling.temperature.contiguous(), None
        if sampling.any_typical_p:
            logits_NV = truncate(logits_NV, sampling, slice(None), peek=True)
            temperature_N = (temperature_N > 0).float()
        elif sampling.any_top_k or sampling.any_top_p or sampling.any_min_p:
            floors_N = torch.empty_like(temperature_N)
            bounds = [x.contiguous() for x in (sampling.top_k.int(), sampling.top_p, sampling.min_p)]
            self._call(self.kernels.floors, logits_NV, temperature_N, *bounds, floors_N)
        key_N, position_N = sampling.key.contiguous(), sampling.position.contiguous()
        self._call(self.kernels.draw, logits_NV, temperature_N, key_N, position_N, floors_N, ids_N)
        return ids_N

    def logprobs(self, logits_NV: Tensor, ids_N: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `core.ops.logprobs.logprobs`; the likeliest are found by torch."""
        if logits_NV.dtype != torch.float32 or not logits_NV.is_contiguous():
            return logprobs(logits_NV, ids_N, k)
        chosen_N, total_N = torch.empty(2, len(logits_NV))
        self._call(self.kernels.logprobs, logits_NV, ids_N.int().contiguous(), chosen_N, total_N)
        if not k:
            return chosen_N, torch.empty(len(ids_N), 0, dtype=torch.int32), torch.empty(len(ids_N), 0)
        top_ids_Nk, top_Nk = likeliest(logits_NV, k)
        return chosen_N, top_ids_Nk, top_Nk - total_N[:, None]

    def _call(self, kernel: Callable[..., Any], logits_NV: Tensor, *of_rows: Tensor | None) -> None:
        """A kernel that takes logits and what there is of each row."""
        pointers = [None if x is None else x.data_ptr() for x in of_rows]
        kernel(logits_NV.data_ptr(), *pointers, *logits_NV.shape, self.kernels.threads)

    def apply_bitmask(self, logits_NV: Tensor, rows_G: Tensor, mask_GW: Tensor) -> Tensor:
        """As `core.ops.bitmask.apply_bitmask`, in one pass."""
        if logits_NV.dtype != torch.float32 or not (logits_NV.is_contiguous() and mask_GW.is_contiguous()):
            return apply_bitmask(logits_NV, rows_G, mask_GW)
        (rows, size), words = logits_NV.shape, mask_GW.shape[1]
        places_N = torch.full((rows,), -1).index_copy_(0, rows_G, torch.arange(len(rows_G)))
        out_NV = torch.empty_like(logits_NV)
        pointers = [x.data_ptr() for x in (logits_NV, places_N, mask_GW, out_NV)]
        self.kernels.bitmask(*pointers, rows, size, words, self.kernels.threads)
        return out_NV


def dense(x_THD: Tensor) -> bool:
    """Whether the heads of a token lie in one piece, in float32."""
    _, head_stride, dim_stride = x_THD.stride()
    return x_THD.dtype == torch.float32 and dim_stride == 1 and head_stride == x_THD.shape[2]

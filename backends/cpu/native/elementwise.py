"""The small ops by the compiled kernels, for float32 that lies as they want it; else by torch.

Legend: T packed tokens, E hidden size, I intermediate size, H query heads, K kv heads, D head dim, P positions,
N rows that choose a token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.backends.cpu import elementwise
from mainspring.backends.cpu.native.library import Kernels
from mainspring.core.ops.sample import SamplingTensors, sample


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Methods with the signatures of `core.ops`."""

    kernels: Kernels

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """As `core.ops.norm.rms_norm`."""
        if x.dtype != torch.float32 or not x.is_contiguous():
            return elementwise.rms_norm(x, weight, epsilon)
        out, size = torch.empty_like(x), x.shape[-1]
        self.kernels.add_rms_norm(
            x.data_ptr(), None, weight.data_ptr(), epsilon, out.data_ptr(), None, x.numel() // size, size,
            self.kernels.threads,
        )  # fmt: skip
        return out

    def add_rms_norm(
        self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """As `core.ops.norm.add_rms_norm`."""
        if x_TE.dtype != torch.float32 or not (x_TE.is_contiguous() and residual_TE.is_contiguous()):
            return elementwise.add_rms_norm(x_TE, residual_TE, weight_E, epsilon)
        normed_TE, total_TE = torch.empty_like(x_TE), torch.empty_like(x_TE)
        self.kernels.add_rms_norm(
            x_TE.data_ptr(), residual_TE.data_ptr(), weight_E.data_ptr(), epsilon, normed_TE.data_ptr(),
            total_TE.data_ptr(), x_TE.shape[0], x_TE.shape[1], self.kernels.threads,
        )  # fmt: skip
        return normed_TE, total_TE

    def silu_mul(self, x_T2I: Tensor) -> Tensor:
        """As `core.ops.activation.silu_mul`."""
        if x_T2I.dtype != torch.float32 or not x_T2I.is_contiguous() or x_T2I.dim() != 2:
            return elementwise.silu_mul(x_T2I)
        tokens, size = x_T2I.shape[0], x_T2I.shape[1] // 2
        out_TI = x_T2I.new_empty(tokens, size)
        self.kernels.silu_mul(x_T2I.data_ptr(), out_TI.data_ptr(), tokens, size, self.kernels.threads)
        return out_TI

    def rope(self, q_THD: Tensor, k_TKD: Tensor, positions_T: Tensor, cos_sin_PR: Tensor) -> tuple[Tensor, Tensor]:
        """As `core.ops.rope.rope`."""
        head_dim = q_THD.shape[2]
        if not (cos_sin_PR.shape[1] == head_dim and positions_T.dtype == torch.int32 and dense(q_THD) and dense(k_TKD)):
            return elementwise.rope(q_THD, k_TKD, positions_T, cos_sin_PR)
        positions_T = positions_T.contiguous()
        if behind(q_THD, k_TKD):
            heads = q_THD.shape[1] + k_TKD.shape[1]
            together = q_THD.as_strided((len(q_THD), heads, head_dim), q_THD.stride())
            turned = self._turned(together, positions_T, cos_sin_PR)
            return turned[:, : q_THD.shape[1]], turned[:, q_THD.shape[1] :]
        return self._turned(q_THD, positions_T, cos_sin_PR), self._turned(k_TKD, positions_T, cos_sin_PR)

    def _turned(self, x_THD: Tensor, positions_T: Tensor, cos_sin_PR: Tensor) -> Tensor:
        tokens, heads, head_dim = x_THD.shape
        turned_THD = x_THD.new_empty(x_THD.shape)
        self.kernels.rope(
            x_THD.data_ptr(), x_THD.stride(0), positions_T.data_ptr(), cos_sin_PR.data_ptr(), turned_THD.data_ptr(),
            heads * head_dim, tokens, heads, head_dim, self.kernels.threads,
        )  # fmt: skip
        return turned_THD

    def sample(self, logits_NV: Tensor, sampling: SamplingTensors) -> Tensor:
        """As `core.ops.sample.sample`: rows that are all greedy by the kernel, others by torch."""
        if sampling.any_sampled or logits_NV.dtype != torch.float32 or not logits_NV.is_contiguous():
            return sample(logits_NV, sampling, peek=True)
        ids_N = torch.empty(len(logits_NV), dtype=torch.int32)
        self.kernels.argmax(logits_NV.data_ptr(), ids_N.data_ptr(), *logits_NV.shape, self.kernels.threads)
        return ids_N


def dense(x_THD: Tensor) -> bool:
    """Whether the heads of a token lie in one piece, in float32."""
    _, head_stride, dim_stride = x_THD.stride()
    return x_THD.dtype == torch.float32 and dim_stride == 1 and head_stride == x_THD.shape[2]


def behind(q_THD: Tensor, k_TKD: Tensor) -> bool:
    """Whether each token's keys begin where its queries end, as where one product gave both."""
    ends = q_THD.data_ptr() + q_THD.shape[1] * q_THD.shape[2] * q_THD.element_size()
    one = k_TKD.untyped_storage().data_ptr() == q_THD.untyped_storage().data_ptr()
    return one and k_TKD.data_ptr() == ends and k_TKD.stride() == q_THD.stride()

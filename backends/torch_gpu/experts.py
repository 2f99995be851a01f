"""The op `moe` on the device, with the tile that is known to be best there."""

from __future__ import annotations

from torch import Tensor

from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.triton import moe as kernels
from mainspring.backends.triton.launch import ALONE, Overlap


def moe(
    x_TE: Tensor,
    gate_up_X2IE: Tensor,
    down_XEI: Tensor,
    weights_TC: Tensor,
    experts_TC: Tensor,
    *,
    tuning: Tuning,
    overlap: Overlap = ALONE,
) -> Tensor:
    """As `core.ops.moe.moe`."""
    tile = tuning.experts(experts_TC.numel(), gate_up_X2IE.shape[0], x_TE.dtype)
    return kernels.moe(x_TE, gate_up_X2IE, down_XEI, weights_TC, experts_TC, overlap=overlap, tile=tile)

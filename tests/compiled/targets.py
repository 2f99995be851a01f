"""The machines that kernels are compiled for, and what must hold of the code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from triton.backends.compiler import GPUTarget

from mainspring.backends.rocm import tiles as rocm_tiles
from mainspring.backends.rocm.chips import CHIPS, Chip
from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.triton.launch import ALONE
from mainspring.backends.xpu import tiles as xpu_tiles

KIB = 1024


@dataclass(frozen=True, slots=True)
class Target:
    """One architecture."""

    gpu: GPUTarget
    tuning: Tuning
    matrix: str
    """How the matrix instructions' names begin in its assembly."""
    shared_bytes: int
    """That a program may have."""
    matrix_of_float32: bool
    fp8: torch.dtype | None = None
    """Of a cache of 8 bits."""


def _amd(arch: str, chip: Chip) -> Target:
    tuning = Tuning(
        100,
        prefill=lambda tokens, head_dim, group, dtype: rocm_tiles.prefill_tile(chip, head_dim, group, dtype),
        decode=partial(rocm_tiles.decode_tile, chip),
    )
    return Target(
        GPUTarget("hip", arch, chip.wave),
        tuning,
        chip.matrix,
        chip.lds_bytes,
        matrix_of_float32=chip.matrix == "v_mfma",
        fp8=None if chip.fp8 is None else getattr(torch, chip.fp8),
    )


def _nvidia(capability: int, shared: int) -> Target:
    from mainspring.backends.cuda.overlap import overlap_of
    from mainspring.backends.cuda.tiles import experts_tile, prefill_tile

    overlap = overlap_of(divmod(capability, 10)) if capability >= 90 else ALONE
    tuning = Tuning(132, prefill=prefill_tile, experts=experts_tile, overlap=overlap)
    fp8 = torch.float8_e4m3fn if capability >= 89 else None
    # mma.sync, or wgmma of Hopper.
    return Target(GPUTarget("cuda", capability, 32), tuning, "mma", shared, matrix_of_float32=False, fp8=fp8)


def vendors() -> Mapping[str, Target]:
    """AMD's and NVIDIA's, by name. Shared memory of a block as in CUDA's programming guide, "Compute capabilities"."""
    return {
        **{arch: _amd(arch, chip) for arch, chip in CHIPS.items()},
        "sm_80": _nvidia(80, 163 * KIB),
        "sm_90": _nvidia(90, 227 * KIB),
    }


def intel() -> Mapping[str, Target]:
    """Intel's GPUs with matrix engines: one SPIR-V, which `ocloc` makes binaries of for PVC and for DG2."""
    wanted: dict[str, Any] = {
        "name": "pvc", "architecture": 0, "gpu_eu_count": 512, "gpu_subslice_count": 64, "max_work_group_size": 1024,
        "max_num_sub_groups": 64, "sub_group_sizes": [16, 32], "has_fp64": True,
        "has_subgroup_matrix_multiply_accumulate": True,
        "has_subgroup_matrix_multiply_accumulate_tensor_float32": True,
        "has_subgroup_2d_block_io": True, "has_bfloat16_conversions": True,
    }  # fmt: skip
    tuning = Tuning(64, prefill=xpu_tiles.prefill_tile, decode=xpu_tiles.decode_tile)
    # The matrix operation is seen in Triton's own form of the program, before it becomes SPIR-V.
    return {
        "pvc": Target(GPUTarget("xpu", wanted, 32), tuning, "ttig.dpas|triton_intel_gpu.dpas", 128 * KIB, False),
    }

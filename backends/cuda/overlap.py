"""Programmatic dependent launch (CUDA programming guide; Hopper and newer): a kernel starts while the one before it
drains, fetches weights, and waits before it reads what others wrote.

It is sound because every kernel launched this way waits, so that each finds all kernels before it finished; kernels
launched otherwise, torch's among them, start only then anyway.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mainspring.backends.triton.launch import ALONE, Overlap

NEWEST_WITHOUT = (8, 9)
"""Compute capability up to which kernels start one after the other."""


@triton.jit
def _begin():
    gdc_launch_dependents()
    gdc_wait()


@triton.jit
def _fetch(pointers, size):
    """A bulk prefetch to L2 (PTX ISA, cp.async.bulk.prefetch)."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [pointers.to(tl.int64), size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def overlap_of(capability: tuple[int, int]) -> Overlap:
    """What kernels do at their borders on a GPU of this compute capability."""
    if capability <= NEWEST_WITHOUT:
        return ALONE
    # The first kernels of a step are torch's: they gather its input ids.
    return Overlap(_begin, _fetch, step_inputs_early=True, options={"launch_pdl": True})

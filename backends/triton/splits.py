"""Sums that several programs make together: each leaves its part, and the one that arrives last adds them up.

Parts are added in their order, so that results do not depend on who was late.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_parts(acc_NM, partial, arrived, tile, split, splits, num_rows):
    """(the sum, whether it is this program's to finish). `arrived` holds zeros, a tile each, and will again.

    Columns from `num_rows` on are nobody's: neither stored nor read.
    """
    BN: tl.constexpr = acc_NM.shape[0]
    M: tl.constexpr = acc_NM.shape[1]
    m = tl.arange(0, M)[None, :]
    places_NM = tl.arange(0, BN)[:, None] + m * BN
    inside = (m < num_rows) & (places_NM >= 0)
    parts = partial + tile.to(tl.int64) * (splits * BN * M)
    tl.store(parts + split * (BN * M) + places_NM, acc_NM, mask=inside)
    # What all threads of this program stored must be seen before its arrival is.
    tl.debug_barrier()
    last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == splits - 1
    if last:
        tl.debug_barrier()
        acc_NM = tl.zeros((BN, M), tl.float32)
        for other in range(splits):
            acc_NM += tl.load(parts + other * (BN * M) + places_NM, mask=inside, other=0.0, cache_modifier=".cg")
        # The next launch finds the counters as this one did.
        tl.store(arrived + tile, 0)
    return acc_NM, last

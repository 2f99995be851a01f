"""How a kernel joins the one before it in a queue: what a backend may know of its machine that kernels must not.

Every kernel of this folder that a decode runs calls `BEGIN` once, before it reads what another kernel wrote, and
`FETCH` with addresses that no kernel writes. Where a machine can start a kernel while the one before it drains, the
backend gives functions that do so, and the launch option that allows it; everywhere else both do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import triton
import triton.language as tl


@triton.jit
def _begin():
    """The kernels before this one have finished: so it is where a queue runs one at a time."""
    tl.static_assert(True)


@triton.jit
def _fetch(pointers, size):
    """Weights come when they are read."""
    tl.static_assert(True)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Device functions, and the options that kernels calling them are launched with."""

    begin: Any = _begin
    """Called without arguments; returns when all that earlier kernels wrote can be read."""
    fetch: Any = _fetch
    """Called with a tensor of pointers and a size in bytes, multiples of `FETCHED` both: starts bringing so much
    from each nearer."""
    step_inputs_early: bool = False
    """Whether a step's integers, and what the cache held before it, may be read before `begin`. They may where every
    step starts with a kernel that is not launched by these options: it waits for all before it."""
    options: Mapping[str, object] = field(default_factory=dict)


FETCHED = 16
"""Bytes: where a fetch begins, and how much it takes, are multiples."""
ALONE = Overlap()
"""One kernel after the other."""

"""The op as rocm and xpu launch it, with the tiles of their chips, against the reference."""

from __future__ import annotations

import pytest
import torch

from mainspring.backends.rocm import tiles as rocm
from mainspring.backends.rocm.chips import CHIPS
from mainspring.backends.torch_gpu.attention import attention, plan_step
from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.xpu import tiles as xpu
from tests.interpreted.test_kernels import SCORINGS, near, step, wanted

pytestmark = [
    pytest.mark.filterwarnings("ignore:divide by zero"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]


def tuning(name: str, dtype: torch.dtype) -> Tuning:
    """Of a machine, as for `dtype`: float32 in the tiles of 16 bits shows their masks without their rounding."""
    if name == "xpu":
        return Tuning(
            8,
            prefill=lambda tokens, dim, group, _: xpu.prefill_tile(tokens, dim, group, dtype),
            decode=lambda dim, _: xpu.decode_tile(dim, dtype),
        )
    chip = CHIPS[name]
    return Tuning(
        8,
        prefill=lambda tokens, dim, group, _: rocm.prefill_tile(chip, dim, group, dtype),
        decode=lambda dim, _: rocm.decode_tile(chip, dim, dtype),
    )


@pytest.mark.parametrize("name", ["gfx942", "gfx1100", "xpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("lengths", "counts"), [([70, 1, 0, 33], [1, 1, 1, 1]), ([70, 17, 40], [1, 17, 21])])
def test_steps_in_the_tiles_of_a_machine(name: str, dtype: torch.dtype, lengths: list[int], counts: list[int]) -> None:
    torch.manual_seed(0)
    given, scoring = step(lengths, counts, 16, 64), SCORINGS["all"]
    expected = wanted(given, scoring)
    plan = plan_step(given.metadata, 2, 8)
    found = attention(
        given.q, given.k, given.v, given.poisoned, 0, plan, scale=scoring.scale, window=scoring.window,
        softcap=scoring.softcap, sinks=scoring.sinks, tuning=tuning(name, dtype),
    )  # fmt: skip
    assert near(found, expected)

"""The kernels of experts against the reference, in float32 and float16."""

from __future__ import annotations

import pytest
import torch

from mainspring.backends.triton.moe import Tile, moe
from mainspring.backends.triton.moe import route as choose
from mainspring.core.ops.moe import moe as reference
from mainspring.core.ops.moe import route


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "experts", "chosen", "size", "features"), [(1, 4, 2, 64, 48), (9, 5, 1, 80, 40), (40, 6, 3, 48, 64)]
)
def test_experts(tokens: int, experts: int, chosen: int, size: int, features: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(tokens, size, dtype=dtype)
    gate_up, down = torch.randn(experts, 2 * features, size) / 8, torch.randn(experts, size, features) / 8
    weights, indices = route(torch.randn(tokens, experts), chosen, normalized=True)
    wanted = reference(x.float(), gate_up.to(dtype).float(), down.to(dtype).float(), weights, indices)
    found = moe(x, gate_up.to(dtype), down.to(dtype), weights, indices, tile=Tile(16, 32, 32, 4, 2))
    assert found.dtype == dtype
    assert (found - wanted).norm() <= (1e-5 if dtype == torch.float32 else 4e-3) * wanted.norm()


def test_many_pairs_of_one_expert() -> None:
    """More than are sorted at once, and experts that nobody chose before and behind."""
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(1100, 16), torch.randn(3, 32, 16) / 4, torch.randn(3, 16, 16) / 4
    weights, indices = torch.rand(1100, 1), torch.ones(1100, 1, dtype=torch.int64)
    found = moe(x, gate_up, down, weights, indices, tile=Tile(128, 16, 16, 4, 2))
    assert torch.allclose(found, reference(x, gate_up, down, weights, indices), atol=1e-5)


@pytest.mark.parametrize(("experts", "chosen", "normalized"), [(4, 2, True), (6, 1, False), (60, 6, True)])
def test_choice_of_experts(experts: int, chosen: int, normalized: bool) -> None:
    torch.manual_seed(0)
    scores = torch.randn(7, experts + 3)[:, :experts]
    found, wanted = choose(scores, chosen, normalized), route(scores, chosen, normalized)
    assert torch.equal(found[1].long(), wanted[1])
    assert torch.allclose(found[0], wanted[0])


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_no_numbers_choose_experts_all_the_same() -> None:
    _, experts = choose(torch.full((2, 5), float("nan")), 3, normalized=True)
    assert bool(((experts >= 0) & (experts < 5)).all())


def test_no_tokens() -> None:
    none = torch.empty(0, 16)
    assert moe(none, torch.ones(3, 32, 16), torch.ones(3, 16, 16), none[:, :2], none[:, :2].long()).shape == (0, 16)

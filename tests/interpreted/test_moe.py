"""The kernels of experts against the reference, in float32 and float16."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mainspring.backends.triton.launch import ALONE
from mainspring.backends.triton.moe import Tile, _sorted, moe
from mainspring.backends.triton.moe import route as choose
from mainspring.core.ops.moe import moe as reference
from mainspring.core.ops.moe import route


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


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


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("tokens", "held"), [(1, 3), (40, 3), (40, 1), (600, 2), (9, 0)])
def test_pairs_without_weight_are_not_computed(tokens: int, held: int) -> None:
    """Experts past `held` are not numbers, and the choices of them, as others', weigh nothing."""
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(tokens, 48), torch.randn(6, 64, 48) / 4, torch.randn(6, 48, 32) / 4
    gate_up[held:], down[held:] = torch.nan, torch.nan
    weights, indices = route(torch.randn(tokens, 6), 3, normalized=True)
    weights = torch.where(indices < held, weights, 0.0)
    strided = torch.cat((weights, weights), 1)[:, :3]
    found = moe(x, gate_up, down, strided, indices, tile=Tile(16, 32, 32, 4, 2))
    assert torch.allclose(found, reference(x, gate_up, down, weights, indices), atol=1e-5)


def test_choices_of_others_at_the_places_of_ours() -> None:
    """Pairs of one expert with and without weight: an expert's tiles are as many as those that weigh something fill."""
    torch.manual_seed(0)
    indices, weights = torch.randint(0, 4, (700, 2)), torch.rand(700, 2) + 0.1
    weights = torch.where(torch.rand(700, 2) < 0.5, weights, 0.0)
    order, starts = _sorted(indices, weights, 4, ALONE)
    live = weights.flatten() != 0
    for expert in range(4):
        wanted = (live & (indices.flatten() == expert)).nonzero()[:, 0]
        assert torch.equal(order[starts[expert] : starts[expert + 1]].long(), wanted)
    assert int(starts[4]) == int(live.sum())


def test_a_weight_that_is_no_number_is_a_weight() -> None:
    """So that what went wrong is seen."""
    weights = torch.tensor([[torch.nan, 0.5]])
    out = moe(torch.ones(1, 16), torch.ones(3, 32, 16), torch.ones(3, 16, 16), weights, torch.tensor([[0, 1]]))
    assert bool(out.isnan().all())


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

"""The CPU backend's kernels that choose tokens: ties, rows that are ruled out, rows of no numbers; cuts and draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mainspring.backends.cpu.host import Host
from mainspring.backends.cpu.native.build import build
from mainspring.backends.cpu.native.elementwise import Elementwise
from mainspring.backends.cpu.native.library import Kernels, open_library
from mainspring.core.ops.sample import SamplingTensors, gumbel_noise, truncate


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    torch.manual_seed(0)
    return open_library(build(Host().instructions()), 1)


@pytest.mark.parametrize("vocab_size", [1, 63, 4096, 49_153])
def test_the_likeliest_token_is_the_first_of_the_largest(kernels: Kernels, vocab_size: int) -> None:
    logits_NV = torch.randint(-9, 9, (33, vocab_size)).float()
    logits_NV[5] = float("-inf")
    ids_N = torch.empty(33, dtype=torch.int32)
    kernels.argmax(logits_NV.data_ptr(), ids_N.data_ptr(), 33, vocab_size, 3)
    largest_N1 = logits_NV.amax(-1, keepdim=True)
    assert ids_N.tolist() == (logits_NV == largest_N1).int().argmax(-1).tolist()


def test_a_row_of_no_numbers_has_some_token_and_leaves_its_neighbours_theirs(kernels: Kernels) -> None:
    logits_NV = torch.randn(3, 100)
    logits_NV[1] = float("nan")
    ids_N = torch.empty(3, dtype=torch.int32)
    kernels.argmax(logits_NV.data_ptr(), ids_N.data_ptr(), 3, 100, 1)
    assert 0 <= ids_N[1] < 100
    assert ids_N[[0, 2]].tolist() == logits_NV[[0, 2]].argmax(-1).tolist()


def draw(kernels: Kernels, logits_NV: Tensor, temperature_N: Tensor, key_N: Tensor, position_N: Tensor) -> Tensor:
    ids_N = torch.empty(len(logits_NV), dtype=torch.int32)
    tensors = (logits_NV, temperature_N, key_N, position_N, None, ids_N)
    kernels.draw(*(None if x is None else x.data_ptr() for x in tensors), *logits_NV.shape, 3)
    return ids_N


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 20.0])
@pytest.mark.parametrize("vocab_size", [1, 17, 4096, 49_153])
def test_draws_are_those_of_the_reference(kernels: Kernels, vocab_size: int, spread: float) -> None:
    logits_NV = spread * torch.randn(64, vocab_size)
    logits_NV[9, vocab_size // 2 :] = float("-inf")
    temperature_N = 2 * torch.rand(64)
    temperature_N[::7], temperature_N[3] = 0, 1e-6
    key_N, position_N = torch.randint(-(2**31), 2**31, (64,)).int(), torch.randint(0, 9999, (64,)).int()
    scores_NV = logits_NV - logits_NV.amax(-1, keepdim=True)
    scores_NV /= torch.where(temperature_N > 0, temperature_N, 1.0)[:, None]
    scores_NV += gumbel_noise(key_N, position_N, vocab_size) * (temperature_N > 0)[:, None]
    assert draw(kernels, logits_NV, temperature_N, key_N, position_N).tolist() == scores_NV.argmax(-1).tolist()


def test_draws_beside_rows_of_no_numbers_stay_what_they_are(kernels: Kernels) -> None:
    logits_NV, ones_N = torch.randn(4, 100), torch.ones(4)
    key_N = position_N = torch.arange(4).int()
    alone_N = draw(kernels, logits_NV, ones_N, key_N, position_N)
    logits_NV[1], logits_NV[2] = float("nan"), float("inf")
    ids_N = draw(kernels, logits_NV, ones_N, key_N, position_N)
    assert 0 <= int(ids_N[1]) < 100
    assert 0 <= int(ids_N[2]) < 100
    assert ids_N[[0, 3]].tolist() == alone_N[[0, 3]].tolist()


def floors(kernels: Kernels, logits_NV: Tensor, cuts: SamplingTensors) -> Tensor:
    floors_N = torch.empty(len(logits_NV))
    tensors = (logits_NV, cuts.temperature, cuts.top_k, cuts.top_p, cuts.min_p, floors_N)
    kernels.floors(*(x.data_ptr() for x in tensors), *logits_NV.shape, 3)
    return floors_N


def cuts_of(count: int, **wanted: Tensor) -> SamplingTensors:
    ones_N, none_N = torch.ones(count), torch.zeros(count, dtype=torch.int32)
    cuts = SamplingTensors(
        temperature=ones_N, top_k=none_N, top_p=ones_N, typical_p=ones_N, min_p=0 * ones_N, key=none_N,
        position=none_N, sampled=None, any_sampled=True, any_top_k=True, any_top_p=True, any_typical_p=False,
        any_min_p=True, max_top_k=0,
    )  # fmt: skip
    return replace(cuts, **wanted)


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("vocab_size", [1, 17, 4096, 49_153])
@pytest.mark.parametrize("bounds", ["top_k", "top_p", "min_p", "all"])
def test_cuts_leave_what_the_reference_leaves(kernels: Kernels, vocab_size: int, spread: float, bounds: str) -> None:
    logits_NV = spread * torch.randn(48, vocab_size)
    logits_NV[9, vocab_size // 2 + 1 :] = float("-inf")
    wanted = {
        "temperature": 0.1 + 2 * torch.rand(48),
        "top_k": torch.randint(0, min(vocab_size, 900) + 2, (48,)).int(),
        "top_p": torch.rand(48).clamp(min=0.01),
        "min_p": torch.rand(48) * 0.2,
    }
    cuts = cuts_of(48, **(wanted if bounds == "all" else {bounds: wanted[bounds]}))
    scores_NV = truncate(logits_NV, cuts, slice(None))
    plain_NV = truncate(logits_NV, replace(cuts, any_top_k=False, any_top_p=False, any_min_p=False), slice(None))
    kept_NV = plain_NV >= floors(kernels, logits_NV, cuts)[:, None]
    # Where masses that tie in exact arithmetic are summed in another order, one token more or less may stay.
    different_N = (kept_NV != (scores_NV > float("-inf"))).logical_and(plain_NV > float("-inf")).sum(1)
    assert int((different_N > 0).sum()) <= 1
    assert int(different_N.max()) <= 1


def test_what_is_cut_is_not_drawn(kernels: Kernels) -> None:
    logits_NV, key_N = torch.randn(500, 64), torch.arange(500).int()
    cuts = cuts_of(500, top_k=torch.full((500,), 3).int(), key=key_N)
    ids_N = Elementwise(kernels).sample(logits_NV, cuts).long()
    best_NK = logits_NV.topk(3).indices
    places_N = (best_NK == ids_N[:, None]).int().argmax(-1)
    assert (best_NK == ids_N[:, None]).any(-1).all()
    assert places_N.bincount(minlength=3).min() > 50

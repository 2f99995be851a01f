"""The threads that the CPU backend's compiled kernels share: every part is done once, whoever takes it.

Results are compared bit for bit with one thread's, since which thread computes a part must not show.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mainspring.backends.cpu.host import Host
from mainspring.backends.cpu.native.build import build
from mainspring.backends.cpu.native.elementwise import Elementwise
from mainspring.backends.cpu.native.library import Kernels, open_library
from mainspring.backends.cpu.native.linear import NativeWeights, pack_float

IN_FEATURES, OUT_FEATURES = 192, 1040
MANY_CALLS = 200
LONGER_THAN_HELPERS_LOOK = 1 << 17
"""Random numbers that take longer to draw than an idle helper stays awake."""


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    torch.manual_seed(0)
    return open_library(build(Host().instructions()), 1)


def with_threads(weights: NativeWeights, threads: int) -> NativeWeights:
    return replace(weights, kernels=replace(weights.kernels, threads=threads))


def products(weights: NativeWeights, inputs: list[Tensor]) -> list[Tensor]:
    return [weights.product(x_TK, None) for x_TK in inputs]


@pytest.fixture(scope="module")
def weights(kernels: Kernels) -> NativeWeights:
    return pack_float(torch.randn(OUT_FEATURES, IN_FEATURES), kernels)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_many_short_kernels_in_a_row_are_one_threads(weights: NativeWeights, threads: int) -> None:
    inputs = [torch.randn(1 + call % 40, IN_FEATURES) for call in range(MANY_CALLS)]
    alone, shared = products(weights, inputs), products(with_threads(weights, threads), inputs)
    assert all(map(torch.equal, alone, shared))


def test_helpers_that_fell_asleep_are_woken(weights: NativeWeights) -> None:
    several = with_threads(weights, 3)
    for _ in range(20):
        x_TK = torch.randn(LONGER_THAN_HELPERS_LOOK)[: 16 * IN_FEATURES].view(16, IN_FEATURES)
        assert torch.equal(several.product(x_TK, None), weights.product(x_TK, None))


def test_callers_at_the_same_time_each_get_their_own(weights: NativeWeights) -> None:
    several = with_threads(weights, 3)
    inputs = [[torch.randn(8, IN_FEATURES) for _ in range(MANY_CALLS)] for _ in range(4)]
    with ThreadPoolExecutor(len(inputs)) as pool:
        found = list(pool.map(lambda mine: products(several, mine), inputs))
    for mine, outputs in zip(inputs, found, strict=True):
        assert all(map(torch.equal, products(weights, mine), outputs))


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


def test_keys_beside_queries_turn_as_keys_apart(kernels: Kernels) -> None:
    small = Elementwise(kernels)
    heads_THD = torch.randn(5, 9, 32)
    q_THD, k_TKD = heads_THD[:, :6], heads_THD[:, 6:8]
    positions_T, table_PR = torch.arange(5, dtype=torch.int32), torch.randn(8, 32)
    beside = small.rope(q_THD, k_TKD, positions_T, table_PR)
    apart = small.rope(q_THD, k_TKD.clone(), positions_T, table_PR)
    assert all(map(torch.equal, beside, apart))

"""The CPU backend's kernel for greedy tokens: ties, rows that are ruled out, rows of no numbers."""

from __future__ import annotations

import pytest
import torch

from mainspring.backends.cpu.host import Host
from mainspring.backends.cpu.native.build import build
from mainspring.backends.cpu.native.library import Kernels, open_library


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

"""Drafters on the CPU backend: its kernels, its cache, and single steps that are played from tapes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mainspring.backends.cpu import CpuBackend
from mainspring.core.architectures import read_model_config
from mainspring.core.backend import Device
from mainspring.core.config import EngineConfig
from mainspring.core.models import build_model
from mainspring.core.ops import resolve
from mainspring.core.request import SamplingParams
from mainspring.core.weights import load_weights
from tests.support import tiny_drafts, tiny_models
from tests.support.drafting_by_hand import DraftingByHand, Written
from tests.support.reference_device import ReferenceDevice

LENGTH = 64
DRAWN = SamplingParams(temperature=1.0)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    threads = torch.get_num_threads()
    yield CpuBackend().open(0, 0, 1, EngineConfig(model="m", threads=2))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.build(tiny_models.CASES["llama"].config())
    return tiny_models.save(model, tmp_path_factory.mktemp("model") / "llama")


def on(device: Device, path: Path) -> DraftingByHand:
    config = read_model_config(path)
    model = build_model(config, resolve(device.ops()), device, torch.float32, LENGTH)
    load_weights(model, path, config, device, torch.float32, None, lambda phase, done, total: None)
    return DraftingByHand(model, config, LENGTH, device, block_size=16)


def sequences() -> list[Written]:
    generator = random.Random(5)
    prompts = [[generator.randrange(tiny_models.VOCABULARY) for _ in range(length)] for length in (14, 3, 17)]
    return [
        Written(row, prompt, list(range(1 + 4 * row, 5 + 4 * row)), params=DRAWN if row else SamplingParams(), seed=row)
        for row, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("count", [1, 4])
def test_a_copy_of_the_target_is_always_right(device: Device, path: Path, count: int) -> None:
    setup, rows = on(device, path), sequences()
    setup.draft_with(path, count)
    setup.step([(row, len(row.tokens)) for row in rows])
    for _ in range(5):
        setup.step([(row, 1) for row in rows])
    assert [row.accepted for row in rows] == [[count] * 5] * 3


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_eagle_drafts_what_the_reference_drafts(device: Device, path: Path, tmp_path: Path, kind: str) -> None:
    if kind == "eagle":
        tiny_drafts.eagle(tmp_path, own_ends=False)
    else:
        tiny_drafts.eagle3(tmp_path)
    found = []
    for setup in (on(device, path), on(ReferenceDevice(), path)):
        rows = sequences()
        setup.draft_with(tmp_path, 4)
        setup.step([(row, len(row.tokens)) for row in rows])
        found.append([setup.step([(row, 1) for row in rows]) for _ in range(4)])
    assert found[0] == found[1]

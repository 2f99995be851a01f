"""Each tiny model is built, saved and loaded once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mainspring.core.architectures import read_model_config
from mainspring.core.config import ModelConfig
from mainspring.core.models import CausalLM, build_model
from mainspring.core.ops import resolve
from mainspring.core.weights import load_weights
from tests.support import tiny_models
from tests.support.reference_device import ReferenceDevice


@dataclass(frozen=True, slots=True)
class Pair:
    """A model of ours and transformers' of the same weights."""

    path: Path
    theirs: Any
    ours: CausalLM
    config: ModelConfig
    tokens: list[int]
    logits: Tensor
    """transformers', of all tokens in one pass."""


def load(path: Path, max_length: int, dtype: torch.dtype = torch.float32) -> tuple[CausalLM, ModelConfig]:
    """A model of ours on the reference device."""
    config, device = read_model_config(path), ReferenceDevice()
    model = build_model(config, resolve(device.ops()), device, dtype, max_length)
    load_weights(model, path, config, device, dtype, None, lambda phase, done, total: None)
    return model, config


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Makes the pair of a case by its name."""

    @cache
    def make(name: str) -> Pair:
        case = tiny_models.CASES[name]
        theirs = tiny_models.build(case.config())
        path = tiny_models.save(theirs, tmp_path_factory.mktemp("model") / name, case.max_shard_size)
        ours, config = load(path, case.max_length)
        tokens = tiny_models.sequence()
        return Pair(path, theirs, ours, config, tokens, tiny_models.reference_logits(theirs, tokens))

    return make

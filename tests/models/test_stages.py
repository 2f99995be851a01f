"""A model cut into stages: what each reads of a checkpoint, and that all in a row they are the model, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from mainspring.core.architectures import read_model_config
from mainspring.core.backend import Device, KVCache
from mainspring.core.checkpoints import Safetensors
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models import CausalLM, build_model
from mainspring.core.ops import Ops
from mainspring.core.parallel.stages import Stage
from mainspring.core.weights import load_weights, weight_layers
from tests.models.conftest import load
from tests.support import tiny_models
from tests.support.model_driver import ModelDriver, Track
from tests.support.reference_device import ReferenceDevice
from tests.support.tiny_models import LENGTH, SMALL

REFERENCE_DEVICE = ReferenceDevice()

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": tiny_models.llama(num_hidden_layers=3),
    "gemma3, two ropes": lambda: transformers.Gemma3TextConfig(**tiny_models.gemma3_text(tie_word_embeddings=False)),
    "gemma3, one table at both ends": lambda: transformers.Gemma3TextConfig(**tiny_models.gemma3_text()),
    "qwen3-moe, a dense layer in the second stage": lambda: transformers.Qwen3MoeConfig(
        **{**SMALL, "num_hidden_layers": 3},
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[2],
    ),
}  # fmt: skip


def stage_of(path: Path, stage: Stage, room: Tensor, device: Device = REFERENCE_DEVICE) -> tuple[CausalLM, ModelConfig]:
    """One stage, loaded; what it takes in lies in `room`."""
    config = read_model_config(path)
    whole = build_model(config, Ops(), device, torch.float32, LENGTH)
    arrivals = None if stage.first else room
    model = build_model(config, Ops(), device, torch.float32, LENGTH, stage=stage, arrivals=arrivals)
    load_weights(model, path, config, device, torch.float32, None, lambda phase, done, total: None, whole=whole)
    return model, config


class Chained(CausalLM):
    """Two stages, each with a cache of its own, in one process."""

    def __init__(self, stages: list[CausalLM], room: Tensor, cache: KVCache) -> None:
        super().__init__()
        self.ahead, self.behind = stages
        self._room, self._cache = room, cache

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        self._room[: len(tokens_T)] = self.ahead(tokens_T, positions_T, step)
        hidden_TE: Tensor = self.behind(tokens_T, positions_T, replace(step, kv=self._cache))
        return hidden_TE

    def logits(self, hidden_NE: Tensor) -> Tensor:
        return self.behind.logits(hidden_NE)


def assert_staged_is_whole(path: Path, whole: CausalLM, config: ModelConfig, device: Device = REFERENCE_DEVICE) -> None:
    """Bit for bit."""
    room = torch.full((LENGTH, config.hidden_size), float("nan"))
    stages = [stage_of(path, Stage(index, 2), room, device)[0] for index in (0, 1)]
    parts = [Stage(index, 2).part_of(config) for index in (0, 1)]
    chained = Chained(stages, room, ModelDriver(stages[1], parts[1]).kv)
    tokens = tiny_models.sequence()
    staged, alone = ModelDriver(chained, parts[0]), ModelDriver(whole, config)
    one, two = Track(list(tokens)), Track(list(tokens))
    for count in (11, 1, LENGTH - 12):
        assert torch.equal(staged.step([(one, count)])[0], alone.step([(two, count)])[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_stages_one_behind_the_other_are_the_model(name: str, tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.build(CONFIGS[name]()), tmp_path / "m")
    assert_staged_is_whole(path, *load(path, LENGTH))


def test_what_is_not_a_stage_s_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_models.save(tiny_models.build(CONFIGS["llama"]()), tmp_path / "m")
    taken: list[str] = []
    read = Safetensors.read

    def noted(self: Safetensors, name: str, *cut: Any) -> Tensor:
        taken.append(name)
        return read(self, name, *cut)

    monkeypatch.setattr(Safetensors, "read", noted)
    room = torch.zeros(LENGTH, SMALL["hidden_size"])
    (first, config), (last, _) = (stage_of(path, Stage(index, 2), room) for index in (0, 1))
    whole = build_model(config, Ops(), ReferenceDevice(), torch.float32, LENGTH)
    assert len(taken) == len(set(taken))
    assert set(taken) == {name for at, layer in weight_layers(whole).items() for name in layer.sources(at)}
    ends = ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight")
    for model, held, numbers in ((first, ends[:1], {"0", "1"}), (last, ends[1:], {"2"})):
        names = {name for at, layer in weight_layers(model).items() for name in layer.sources(at)}
        assert {name for name in names if ".layers." not in name} == set(held)
        assert {name.split(".")[2] for name in names if ".layers." in name} == numbers


def test_a_stage_has_no_head_and_a_checkpoint_must_hold_the_other_stages(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.build(CONFIGS["llama"]()), tmp_path / "m")
    first, config = stage_of(path, Stage(0, 2), torch.zeros(0))
    with pytest.raises(ModelError, match="this stage has no head"):
        first.logits(torch.zeros(1, config.hidden_size))
    device = ReferenceDevice()
    model = build_model(config, Ops(), device, torch.float32, LENGTH, stage=Stage(0, 2))
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.up_proj\.weight belongs nowhere"):
        load_weights(model, path, config, device, torch.float32, None, lambda phase, done, total: None)


def test_models_without_a_cut_say_so(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.build(tiny_models.CASES["gpt2"].config()), tmp_path / "m")
    with pytest.raises(ModelError, match=r"GPT2, .* cannot be cut into stages; leave --pipeline-parallel-size out"):
        build_model(read_model_config(path), Ops(), ReferenceDevice(), torch.float32, LENGTH, stage=Stage(0, 2))

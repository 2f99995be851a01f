"""Weights: what a checkpoint may look like, what is said when it does not fit, and what the backend gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from mainspring.core.architectures import parameter_count, read_model_config
from mainspring.core.backend import PackedLinear, WeightScheme, unquantized
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models import CausalLM, build_model
from mainspring.core.models.llama import Llama
from mainspring.core.ops import Ops
from mainspring.core.weights import fill_dummy, load_weights
from tests.models.conftest import Pair, load
from tests.models.test_parity import close
from tests.support import tiny_models
from tests.support.model_driver import ModelDriver, Track
from tests.support.reference_device import ReferenceDevice
from tests.support.tiny_models import CASES, LENGTH

Pairs = Callable[[str], Pair]


def copied(source: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A checkpoint in one file with its tensors changed."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors")
    return target


def logits(model: CausalLM, config: ModelConfig) -> Tensor:
    return ModelDriver(model, config).step([(Track(tiny_models.sequence()), LENGTH)])[0]


@pytest.mark.parametrize("name", list(CASES))
def test_parameters_are_counted_exactly(pair: Pairs, name: str) -> None:
    case = pair(name)
    counted = parameter_count(case.config)
    assert counted == sum(parameter.numel() for parameter in case.ours.parameters())
    assert counted == sum(parameter.numel() for parameter in case.theirs.parameters())


def test_a_model_is_built_without_memory(pair: Pairs) -> None:
    config = pair("llama").config
    model = build_model(config, Ops(), ReferenceDevice(), torch.bfloat16, 16)
    assert {(parameter.device.type, parameter.dtype) for parameter in model.parameters()} == {("meta", torch.bfloat16)}


def test_everything_wrong_with_a_checkpoint_is_said_at_once(pair: Pairs, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.k_proj.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(7, 48)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(56, 48)
        return tensors

    path = copied(pair("llama").path, tmp_path / "m", change)
    with pytest.raises(ModelError) as caught:
        load(path, LENGTH)
    assert caught.value.reasons == (
        f"{path}: tensor model.layers.1.self_attn.k_proj.weight [16, 48] is missing",
        f"{path}: tensor model.norm.weight [48] is missing",
        f"{path}: tensor model.layers.2.mlp.up_proj.weight belongs nowhere in the model",
        f"{path}: tensor model.layers.0.mlp.up_proj.weight is [7, 48] where the model's config makes it [56, 48]",
        "the checkpoint and its config do not belong together; fetch both from one place",
    )


def test_tensors_that_models_do_not_need_are_passed_over(pair: Pairs, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        inverse_frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in (0, 1)}
        return tensors | inverse_frequencies | {"lm_head.weight": torch.ones(89, 48)}

    case = pair("qwen3")
    model, config = load(copied(case.path, tmp_path / "m", change), LENGTH)
    close(logits(model, config), case.logits)


def test_gpt2_as_it_was_first_published(pair: Pairs, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return plain | {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in (0, 1)}

    case = pair("gpt2")
    model, config = load(copied(case.path, tmp_path / "m", change), LENGTH)
    close(logits(model, config), case.logits)


@pytest.mark.parametrize("prefix", [None, "language_model."])
def test_text_model_of_a_multimodal_gemma3(tmp_path: Path, prefix: str | None) -> None:
    text = transformers.Gemma3TextConfig(**tiny_models.gemma3_text(final_logit_softcapping=None))
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    theirs = tiny_models.randomized(
        transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    )
    path = tiny_models.save(theirs, tmp_path / "m")
    if prefix is not None:
        # As the checkpoints of Google's own release are named.
        def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name.replace("model.language_model.", f"{prefix}model.").replace("model.vision", "vision"): tensor
                for name, tensor in tensors.items()
            }

        path = copied(path, tmp_path / "older", change)
    model, read = load(path, LENGTH)
    close(logits(model, read), tiny_models.reference_logits(theirs, tiny_models.sequence()))


def test_shards_that_are_missing_are_named(pair: Pairs, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    for file in pair("qwen2").path.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    shards = sorted(directory.glob("*.safetensors"))
    assert len(shards) > 3
    for shard in shards[1:3]:
        shard.unlink()
    with pytest.raises(ModelError) as caught:
        load(directory, LENGTH)
    index = "model.safetensors.index.json"
    assert caught.value.reasons == tuple(f"{shard}, which {index} names, is missing; fetch it" for shard in shards[1:3])


def test_directories_without_usable_weights(pair: Pairs, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((pair("llama").path / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        load(tmp_path, LENGTH)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load(tmp_path, LENGTH)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(ModelError, match="is not an index of safetensors"):
        load(tmp_path, LENGTH)


def test_progress_reaches_the_total(pair: Pairs) -> None:
    case = pair("llama-tied-sharded")
    device = ReferenceDevice()
    model = build_model(case.config, Ops(), device, torch.float32, LENGTH)
    seen: list[tuple[str, int, int]] = []
    load_weights(
        model, case.path, case.config, device, torch.float32, None, lambda *report: seen.append(report)
    )  # fmt: skip
    assert {phase for phase, _, _ in seen} == {"weights"}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2] > 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_bfloat16_rounds_weights_and_keeps_tables_exact(pair: Pairs, name: str) -> None:
    case = pair(name)
    model, config = load(case.path, LENGTH, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} <= {torch.float32}
    ours = logits(model, config).float()
    assert (ours - case.logits).abs().mean() / case.logits.abs().mean() < 0.05


class Recorder(ReferenceDevice):
    """A backend that stores weights its own way: transposed, bias and all in one record."""

    def __init__(self) -> None:
        self.packed: list[tuple[WeightScheme, dict[str, tuple[int, ...]]]] = []

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> PackedLinear:
        self.packed.append((scheme, {name: tuple(tensor.shape) for name, tensor in tensors.items()}))
        packed = super().pack(scheme, tensors)
        return replace(packed, data=packed.data.t().contiguous())

    def quantized_linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        return x @ packed.data if packed.bias is None else x @ packed.data + packed.bias


def test_linear_layers_belong_to_the_backend(pair: Pairs) -> None:
    case = pair("llama-biases")
    device, scheme = Recorder(), WeightScheme(weight="int8", bits=8)
    model = build_model(case.config, Ops(), device, torch.float32, LENGTH)
    load_weights(model, case.path, case.config, device, torch.float32, scheme, lambda phase, done, total: None)
    layer = [
        (scheme, {"weight": (80, 48), "bias": (80,)}),
        (scheme, {"weight": (48, 48), "bias": (48,)}),
        (scheme, {"weight": (112, 48), "bias": (112,)}),
        (scheme, {"weight": (48, 56), "bias": (48,)}),
    ]
    assert device.packed == [*layer, *layer, (unquantized("float32"), {"weight": (89, 48)})]
    close(logits(model, case.config), case.logits)


def test_a_tied_head_shares_the_embeddings_memory(pair: Pairs) -> None:
    model: Any = pair("llama-tied-sharded").ours
    assert model.lm_head.packed.data.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_dummy_weights(pair: Pairs) -> None:
    def filled(seed: int) -> Any:
        config, device = pair("llama").config, ReferenceDevice()
        model = build_model(config, Ops(), device, torch.float32, LENGTH)
        fill_dummy(model, seed, device, torch.float32, None)
        return model

    first, again, other = filled(1), filled(1), filled(2)
    config = pair("llama").config
    assert torch.equal(logits(first, config), logits(again, config))
    assert not torch.equal(logits(first, config), logits(other, config))
    assert logits(first, config).isfinite().all()
    one, two = (layer.mlp.down_proj.packed[0].data for layer in first.model.layers)
    assert not torch.equal(one, two)
    assert 0.015 < one.std() < 0.025


class NotAModel:
    def __init__(self, config: ModelConfig, make: LayerFactory) -> None:
        pass


class OwnLlama(Llama):
    """What a plugin might bring."""


def test_models_of_plugins(pair: Pairs) -> None:
    case = pair("llama")
    config, device = read_model_config(case.path, {"LlamaForCausalLM": f"{__name__}:OwnLlama"}), ReferenceDevice()

    def built(name: str) -> CausalLM:
        return build_model(config, Ops(), device, torch.float32, LENGTH, plugins={"LlamaForCausalLM": name})

    assert type(built(f"{__name__}:OwnLlama")) is OwnLlama
    with pytest.raises(ModelError, match="is no CausalLM; mend the plugin that names it"):
        built(f"{__name__}:NotAModel")
    with pytest.raises(ModelError, match=r"cannot be imported: .*Absent"):
        built(f"{__name__}:Absent")
    with pytest.raises(ModelError, match="cannot be imported: No module named 'nowhere'"):
        built("nowhere:Absent")

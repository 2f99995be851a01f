"""GGUF weights that stay quantized: the same numbers as dequantized, whatever mixture of blocks the file has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor

from mainspring.backends.cpu import CpuBackend
from mainspring.backends.cpu.native.blocks import BlockWeights
from mainspring.core.architectures import read_model_config
from mainspring.core.backend import Device, PackedLinear, Verdict, WeightScheme
from mainspring.core.checkpoints import GGUF
from mainspring.core.config import EngineConfig, ModelConfig
from mainspring.core.gguf_layouts import LAYOUTS, exact_scheme
from mainspring.core.layers.weights import Cut
from mainspring.core.models import CausalLM, build_model
from mainspring.core.ops import gguf_blocks, resolve
from mainspring.core.parallel.stages import Stage
from mainspring.core.weights import load_weights
from tests.models.test_stages import assert_staged_is_whole, stage_of
from tests.support import smollm2, tiny_models
from tests.support.gguf_files import write_gguf
from tests.support.model_driver import ModelDriver, Track
from tests.support.reference_device import ReferenceDevice
from tests.support.tiny_models import LENGTH

KIND = gguf.GGMLQuantizationType
FILES: dict[str, Mapping[str, gguf.GGMLQuantizationType]] = {
    **{packing: {"": KIND[packing.upper()]} for packing in LAYOUTS},
    # As llama.cpp's Q4_K_M has it: q and k, v, and the table in three types, one of which is not kept.
    "mixed": {"attn_v|ffn_down": KIND.Q6_K, "token_embd": KIND.Q8_0, "ffn_up": KIND.Q5_0, "": KIND.Q4_K},
}


class Keeper(ReferenceDevice):
    """Multiplies blocks by the reference, with activations as they are or rounded."""

    def __init__(self, *, rounds: bool = False) -> None:
        self._activation = "int8" if rounds else None

    def supports(self, scheme: WeightScheme, in_features: int, out_features: int) -> Verdict:
        if scheme.packing in LAYOUTS:
            return Verdict(scheme.activation == self._activation, "activations are only the other way here")
        return super().supports(scheme, in_features, out_features)

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> PackedLinear:
        if scheme.packing not in LAYOUTS:
            return super().pack(scheme, tensors)
        raw = tensors["weight"]
        in_features = gguf_blocks.in_features(gguf_blocks.blocks_of(scheme), raw.shape[1])
        return PackedLinear(scheme, in_features, len(raw), raw, tensors.get("bias"))

    def quantized_linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        if packed.scheme.packing not in LAYOUTS:
            return super().quantized_linear(x, packed)
        return gguf_blocks.product(x, packed.scheme, packed.data, packed.bias)

    def reads_rows(self, scheme: WeightScheme) -> bool:
        return scheme.packing in LAYOUTS

    def rows(self, index: Tensor, packed: PackedLinear, dtype: torch.dtype) -> Tensor:
        return gguf_blocks.dequantize(gguf_blocks.blocks_of(packed.scheme), packed.data[index.long()]).to(dtype)


def loaded(path: Path, device: Device, length: int = LENGTH, *, keeps: bool = True) -> tuple[CausalLM, ModelConfig]:
    config = read_model_config(path)
    ops = resolve(ReferenceDevice().ops())
    model = build_model(config, ops, device, torch.float32, length)
    load_weights(model, path, config, device, torch.float32, None, lambda *_: None, keeps_quantized=keeps)
    return model, config


def logits(path: Path, device: Device, *, keeps: bool = True) -> Tensor:
    model, config = loaded(path, device, keeps=keeps)
    (found,) = ModelDriver(model, config).step([(Track(tiny_models.sequence()), LENGTH)])
    return found


@pytest.fixture
def cpu() -> Iterator[Device]:
    threads = torch.get_num_threads()
    yield CpuBackend().open(0, 0, 1, EngineConfig(model="", threads=1))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=list(FILES))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, its head the table of tokens; projections with biases."""
    theirs = tiny_models.build(
        tiny_models.llama(
            hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2,
            attention_bias=True, tie_word_embeddings=True,
        )()
    )  # fmt: skip
    return write_gguf(
        tmp_path_factory.mktemp("kept") / "m.gguf", theirs, "llama", kinds=FILES[request.param],
        metadata={
            "feed_forward_length": 512, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.freq_base": 10000.0,
        },
    )  # fmt: skip


def test_kept_weights_are_the_same_model(path: Path) -> None:
    numbers = logits(path, Keeper(), keeps=False)
    torch.testing.assert_close(logits(path, Keeper()), numbers, rtol=1e-4, atol=1e-4)


def test_a_gguf_file_in_stages_keeps_its_blocks(path: Path) -> None:
    """Its one table is read as rows by the first stage, and multiplied by in the last."""
    assert_staged_is_whole(path, *loaded(path, Keeper()), Keeper())
    last, _ = stage_of(path, Stage(1, 2), torch.zeros(0), Keeper())
    assert last.lm_head.packed.scheme.packing in LAYOUTS


def test_the_cpu_rounds_activations_and_nothing_else(path: Path, cpu: Device) -> None:
    rounded = logits(path, Keeper(rounds=True))
    # A sum in another order may turn the rounding of an activation, which later layers then carry on.
    assert (logits(path, cpu) - rounded).abs().mean() < 0.6 * (logits(path, Keeper()) - rounded).abs().mean()


def test_parts_in_different_blocks_are_packed_apart(path: Path) -> None:
    model, _ = loaded(path, Keeper())
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    mixed = len(attention.qkv_proj.packed) > 1
    held = [packed.scheme.packing for packed in attention.qkv_proj.packed]
    assert held == (["q4_k", "q6_k"] if mixed else held[:1])
    assert [packed.scheme.packing for packed in mlp.gate_up_proj.packed] == (["q4_k", "plain"] if mixed else held)
    assert model.lm_head.packed is model.model.embed_tokens.packed


def test_a_part_of_a_weight_is_cut_at_whole_blocks(path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    file = GGUF(path, read_model_config(path), [name])
    rounding, exact = file.schemes(name)
    packing = gguf_blocks.blocks_of(exact)
    assert (rounding.activation, exact) == ("int8", exact_scheme(packing))
    whole, half = file.read(name), LAYOUTS[packing].inputs // 2
    for cut in (Cut(((0, 64),)), Cut(((64, 128), (0, 64))), Cut(columns=(0, 256))):
        raw = file.read_stored(name, cut)["weight"]
        assert torch.equal(gguf_blocks.dequantize(packing, raw), cut.of(whole))
    assert file.schemes(name, Cut(columns=(0, half))) == ()


def test_the_cpu_holds_no_more_than_the_file(path: Path, cpu: Device) -> None:
    model, config = loaded(path, cpu)
    held = {id(packed.data): packed.data for packed in _packed(model)}
    num_bytes = sum(weights.num_bytes() for weights in held.values() if isinstance(weights, BlockWeights))
    stored = sum(weights.num_bytes for weights in config.stored)
    assert stored <= num_bytes < 1.1 * stored


def test_smollm2_takes_the_bytes_of_its_file(cpu: Device) -> None:
    file = smollm2.path()
    model, config = loaded(file, cpu, 64)
    held = {id(packed.data): packed.data for packed in _packed(model)}
    norms = sum(norm.weight.nbytes for norm in model.modules() if type(norm).__name__ == "RMSNorm")
    stored = sum(weights.num_bytes for weights in config.stored)
    num_bytes = sum(weights.num_bytes() for weights in held.values() if isinstance(weights, BlockWeights)) + norms
    assert stored < num_bytes < 1.01 * stored
    # "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    assert ModelDriver(model, config).greedy(prompt, 6) == smollm2_says(prompt, 6)


def smollm2_says(prompt: list[int], count: int) -> list[int]:
    model, config = loaded(smollm2.path(), ReferenceDevice(), 64)
    return ModelDriver(model, config).greedy(prompt, count)


def _packed(model: CausalLM) -> Iterator[PackedLinear]:
    for module in model.modules():
        packed = getattr(module, "packed", None)
        if isinstance(packed, PackedLinear):
            yield packed
        elif packed is not None:
            yield from packed

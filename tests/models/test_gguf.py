"""GGUF files: each architecture under llama.cpp's conventions, and a real quantized model, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers

from mainspring.core.architectures import parameter_count, read_model_config
from mainspring.core.checkpoints import GGUF
from mainspring.core.errors import ModelError
from mainspring.core.gguf_file import GGUFFile
from mainspring.core.layers.weights import Cut
from tests.models.conftest import Pair, load
from tests.models.test_parity import close
from tests.support import smollm2, tiny_models
from tests.support.gguf_files import write_gguf
from tests.support.model_driver import ModelDriver, Track
from tests.support.tiny_models import LENGTH, LONG, SHORT

LLAMA = {
    "feed_forward_length": 56, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
}  # fmt: skip
PHI3 = LLAMA | {"attention.layer_norm_rms_epsilon": 1e-5}
GEMMA = LLAMA | {
    "attention.key_length": 20, "attention.value_length": 20, "attention.sliding_window": 6,
    "final_logit_softcapping": 3.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """What a file of a case of `tiny_models` says beside the weights."""

    case: str
    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, list[float]] | None = None


def llama3_divisors() -> list[float]:
    """The divisors that llama.cpp's converter works out for Llama 3's rope, from transformers' own frequencies."""
    config = tiny_models.CASES["llama-llama3"].config()
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500.0 ** (torch.arange(0, 16, 2).float() / 16)
    divisors: list[float] = (plain / scaled).tolist()
    return divisors


FILES = {
    "llama": lambda: Written("llama", "llama", LLAMA | {"rope.dimension_count": 16}),
    "llama-tied": lambda: Written("llama-tied-sharded", "llama", LLAMA | {"attention.key_length": 24}),
    "llama-biases": lambda: Written("llama-biases", "llama", LLAMA),
    "llama-linear": lambda: Written(
        "llama-linear", "llama",
        LLAMA | {"rope.freq_base": 500.0, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "llama-yarn": lambda: Written(
        "llama-yarn", "llama",
        LLAMA | {"rope.freq_base": 500.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                 "rope.scaling.original_context_length": 16},
    ),
    "llama-llama3": lambda: Written(
        "llama-llama3", "llama", LLAMA | {"rope.freq_base": 500.0}, {"rope_freqs.weight": llama3_divisors()}
    ),
    "qwen3": lambda: Written("qwen3", "qwen3", LLAMA | {"attention.key_length": 32}),
    "gemma3": lambda: Written("gemma3-plain", "gemma3", GEMMA | {"rope.freq_base": 1e6}),
    "gemma2": lambda: Written("gemma2-plain", "gemma2", GEMMA | {"attn_logit_softcapping": 2.0}),
    "qwen2": lambda: Written("qwen2-plain", "qwen2", LLAMA),
    "phi3": lambda: Written("phi3", "phi3", PHI3 | {"attention.head_count_kv": 2, "attention.sliding_window": 9}),
    "phi3-longrope": lambda: Written(
        "phi3-longrope-short", "phi3",
        PHI3 | {
            "attention.head_count_kv": 3, "rope.freq_base": 500.0, "rope.dimension_count": 8,
            "rope.scaling.original_context_length": 48,
        },
        {"rope_factors_short.weight": SHORT[:4], "rope_factors_long.weight": LONG[:4]},
    ),
    "gpt2": lambda: Written(
        "gpt2", "gpt2", {"feed_forward_length": 192, "attention.layer_norm_epsilon": 1e-5}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FILES))
def test_architectures(pair: Callable[[str], Pair], tmp_path: Path, name: str) -> None:
    written = FILES[name]()
    case = pair(written.case)
    path = write_gguf(
        tmp_path / "m.gguf", case.theirs, written.architecture, metadata=written.metadata, tensors=written.tensors
    )
    model, config = load(path, tiny_models.CASES[written.case].max_length)
    assert config.eos_token_ids == (5, 6)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(config)
    close(ModelDriver(model, config).step([(Track(case.tokens), LENGTH)])[0], case.logits)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_stored_types_are_read_as_the_values_they_stand_for(tmp_path: Path, kind: str) -> None:
    theirs = tiny_models.build(tiny_models.llama(hidden_size=96, intermediate_size=64, num_attention_heads=3)())
    stored = gguf.GGMLQuantizationType[kind]
    metadata = LLAMA | {"feed_forward_length": 64}
    path = write_gguf(tmp_path / "m.gguf", theirs, "llama", metadata=metadata, kind=stored)
    expected = theirs.get_parameter("model.layers.1.mlp.up_proj.weight").detach().numpy()
    rounded = gguf.quants.dequantize(gguf.quants.quantize(expected, stored), stored)
    file = GGUFFile.open(path)
    assert file.tensors["blk.1.ffn_up.weight"].kind is stored
    assert (file.read("blk.1.ffn_up.weight") == rounded).all()
    model, config = load(path, LENGTH)
    (logits,) = ModelDriver(model, config).step([(Track(tiny_models.sequence()), LENGTH)])
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_a_part_of_a_tensor_is_that_part_of_its_values(tmp_path: Path, kind: str) -> None:
    theirs = tiny_models.build(
        tiny_models.llama(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, attention_bias=True)()
    )
    stored = gguf.GGMLQuantizationType[kind]
    path = write_gguf(
        tmp_path / "m.gguf", theirs, "llama", metadata=LLAMA | {"attention.head_count_kv": 2}, kind=stored
    )
    names = [f"model.layers.0.self_attn.{part}_proj.{what}" for part in "qkvo" for what in ("weight", "bias")]
    file = GGUF(path, read_model_config(path), names)
    for name in names:
        whole = file.read(name)
        cuts = [Cut(((0, 32),)), Cut(((32, 64),)) if len(whole) == 64 else Cut(((16, 32),))]
        cuts += [Cut(columns=(32, 64))] if whole.dim() == 2 else []
        for cut in cuts:
            assert torch.equal(file.read(name, cut), cut.of(whole))


def test_a_file_that_is_cut_off_is_refused_before_it_is_read(tmp_path: Path) -> None:
    theirs = tiny_models.build(tiny_models.llama()())
    path = write_gguf(tmp_path / "m.gguf", theirs, "llama", metadata=LLAMA)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"m\.gguf has \d+ bytes of \d+; it was cut off"):
        read_model_config(path)


def test_missing_and_surplus_tensors_go_by_their_names_in_the_file(tmp_path: Path) -> None:
    theirs = tiny_models.build(tiny_models.llama()())
    del theirs.model.layers[1].mlp.up_proj
    path = write_gguf(tmp_path / "m.gguf", theirs, "llama", metadata=LLAMA, tensors={"blk.0.odd.weight": [1.0]})
    with pytest.raises(ModelError) as caught:
        load(path, LENGTH)
    assert f"{path}: tensor model.layers.1.mlp.up_proj.weight [56, 48] is missing" in caught.value.reasons
    assert f"{path}: tensor blk.0.odd.weight belongs nowhere in the model" in caught.value.reasons


def test_smollm2_generates_what_transformers_does() -> None:
    path = smollm2.path()
    model, config = load(path, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(config) == 134_515_008
    theirs = smollm2.by_transformers()
    # "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    (logits,) = ModelDriver(model, config).step([(Track(prompt), len(prompt))])
    close(logits, tiny_models.reference_logits(theirs, prompt))
    assert ModelDriver(model, config).greedy(prompt, 8) == tiny_models.reference_greedy(theirs, prompt, 8)

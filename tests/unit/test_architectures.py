"""Configs as their authors published them, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mainspring.core.architectures import parameter_count, read_model_config
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError

LLAMA_32_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "torch_dtype": "bfloat16", "eos_token_id": 128001, "hidden_act": "silu",
}  # fmt: skip
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "sliding_window": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN25_05B = {
    "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "max_window_layers": 24, "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
}  # fmt: skip
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "max_window_layers": 28, "sliding_window": None, "use_sliding_window": False,
    "tie_word_embeddings": True, "rope_theta": 1000000, "rope_scaling": None, "attention_bias": False,
}  # fmt: skip
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "num_local_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_30B_A3B = {
    **QWEN3_06B, "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
GEMMA2_2B = {
    "architectures": ["Gemma2ForCausalLM"], "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 8192, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "eos_token_id": [1, 107],
}  # fmt: skip
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"], "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912,
    "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    "max_position_embeddings": 32768, "query_pre_attn_scalar": 256, "sliding_window": 512,
    "sliding_window_pattern": 6, "rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": None,
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "torch_dtype": "bfloat16", "eos_token_id": [1, 106],
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                    "sliding_window": 1024},
    "vision_config": {"hidden_size": 1152},
}  # fmt: skip
PHI3_MINI = {
    "architectures": ["Phi3ForCausalLM"], "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096, "sliding_window": 262144, "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
}  # fmt: skip
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "n_positions": 1024, "n_ctx": 1024, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05,
    "eos_token_id": 50256,
}  # fmt: skip


def read(directory: Path, config: dict[str, Any], **generation: Any) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(config))
    if generation:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return read_model_config(directory)


@pytest.mark.parametrize(
    ("published", "parameters"),
    [
        (LLAMA_32_1B, 1_235_814_400),
        (MISTRAL_7B, 7_241_732_096),
        (QWEN25_05B, 494_032_768),
        (QWEN3_06B, 596_049_920),
        (MIXTRAL_8X7B, 46_702_792_704),
        (QWEN3_30B_A3B, 30_532_122_624),
        (GEMMA2_2B, 2_614_341_888),
        (GEMMA3_1B, 999_885_952),
        (GEMMA3_4B, 3_880_263_168),
        (PHI3_MINI, 3_821_079_552),
        (GPT2, 124_439_808),
    ],
    ids=lambda value: value["architectures"][0] if isinstance(value, dict) else "",
)
def test_parameters_of_published_models(tmp_path: Path, published: dict[str, Any], parameters: int) -> None:
    assert parameter_count(read(tmp_path, published)) == parameters


def test_llama3_rope_and_dtype(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA_32_1B, eos_token_id=[128001, 128008, 128009])
    assert config.rope is not None
    assert (config.rope.scaling, config.rope.factor, config.rope.original_max_position) == ("llama3", 32.0, 8192)
    assert (config.max_position, config.dtype, config.tied_embeddings) == (131072, "bfloat16", True)
    assert config.eos_token_ids == (128001, 128008, 128009)


def test_generation_config_without_an_end_leaves_the_configs_own(tmp_path: Path) -> None:
    assert read(tmp_path, GEMMA2_2B, temperature=0.6).eos_token_ids == (1, 107)


def test_windows(tmp_path: Path) -> None:
    assert read(tmp_path, MISTRAL_7B).windows == (4096,) * 32
    assert read(tmp_path, {**MISTRAL_7B, "sliding_window": None}).windows == ()
    assert read(tmp_path, QWEN25_05B).windows == ()
    upper = {**QWEN25_05B, "use_sliding_window": True, "max_window_layers": 22}
    assert read(tmp_path, upper).windows == (*[None] * 22, 32768, 32768)
    everywhere = {**QWEN25_05B, "use_sliding_window": True, "max_window_layers": 0}
    assert read(tmp_path, everywhere).windows == (32768,) * 24
    assert read(tmp_path, GEMMA2_2B).windows == (4096, None) * 13
    assert read(tmp_path, GEMMA3_1B).windows == (*(*[512] * 5, None) * 4, 512, 512)


def test_terse_gemma3_takes_its_authors_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, GEMMA3_4B)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert config.rope is not None
    assert config.local_rope is not None
    assert (config.rope.theta, config.rope.scaling, config.rope.factor) == (1e6, "linear", 8.0)
    assert (config.local_rope.theta, config.local_rope.scaling) == (10000.0, "none")
    assert (config.max_position, config.dtype, config.eos_token_ids) == (131072, "bfloat16", (1, 106))


def test_phi3_longrope_under_its_older_name(tmp_path: Path) -> None:
    config = read(tmp_path, PHI3_MINI)
    assert config.rope is not None
    assert (config.rope.scaling, config.rope.factor, config.rope.original_max_position) == ("longrope", 32.0, 4096)
    assert config.rope.long_factors == (2.0,) * 48


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        ({"type": "linear", "factor": 4.0}, 131072),
        ({"type": "dynamic", "factor": 2.0}, 65536),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        (None, 32768),
    ],
)
def test_context_length_counts_the_scaling_in(tmp_path: Path, scaling: dict[str, Any] | None, positions: int) -> None:
    assert read(tmp_path, {**QWEN25_05B, "rope_scaling": scaling}).max_position == positions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCasualLM"]}, "unknown architecture 'LlamaForCasualLM'; did you mean"),
        ({"architectures": []}, r"architectures = \[\] in .*config.json cannot be used"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "rope type 'mrope' in .*config.json, rope_scaling is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling has no 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor = -1 in .* a positive number is needed"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear' in .* an object is needed"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            r"short_factor = \[1.0\] in .* it needs 32 numbers",
        ),
        ({"partial_rotary_factor": 0.3}, "partial_rotary_factor = 0.3 in .* an even part of the head's 64 dimensions"),
        ({"hidden_size": "2048"}, "hidden_size = '2048' in .* a positive integer is needed"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 in .* a positive integer is needed"),
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5 in .* must divide num_attention_heads, which is 32"),
        ({"head_dim": None, "num_attention_heads": 24}, "without head_dim it must divide hidden_size 2048"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes' in .* true or false is needed"),
        ({"torch_dtype": "float8"}, "unknown dtype 'float8'"),
        ({"hidden_act": "relu2"}, "unknown activation 'relu2'"),
        ({"vocab_size": None}, "config.json has no 'vocab_size'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized by 'gptq', which is not supported"),
    ],
)
def test_unusable_configs(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, {**LLAMA_32_1B, **changes})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**GEMMA2_2B, "use_bidirectional_attention": True}, "an embedding model cannot generate"),
        ({**GEMMA3_1B, "layer_types": ["full_attention"]}, "26 of sliding_attention or full_attention are needed"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "this variant of GPT-2 is not supported"),
    ],
)
def test_unusable_variants(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, config)


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config.json; give the directory of"):
        read_model_config(tmp_path)
    with pytest.raises(ModelError, match=r"is neither a directory with a config.json nor a .gguf file"):
        read_model_config(tmp_path / "model.bin")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json is not a JSON object"):
        read_model_config(tmp_path)


def test_a_plugins_architecture_is_read_under_llamas_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_32_1B, "architectures": ["OwnForCausalLM"]}))
    config = read_model_config(tmp_path, {"OwnForCausalLM": "own.models:Own"})
    assert (config.architecture, config.num_layers) == ("OwnForCausalLM", 16)


def test_configs_are_read_without_torch() -> None:
    code = "import sys, mainspring.core.architectures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_layers_without_experts_are_named(tmp_path: Path) -> None:
    changes = {"decoder_sparse_step": 2, "mlp_only_layers": [1], "num_hidden_layers": 6}
    experts = read(tmp_path, QWEN3_30B_A3B | changes).experts
    assert experts is not None
    assert (experts.count, experts.chosen, experts.size, experts.normalized) == (128, 8, 768, True)
    assert experts.dense_layers == (0, 1, 2, 4)


def test_more_experts_for_a_token_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there are 8 experts"):
        read(tmp_path, MIXTRAL_8X7B | {"num_experts_per_tok": 9})

"""The smallest model that is still one: its `ModelConfig`, and the same as a directory that the engine can be given."""

from __future__ import annotations

import json
from pathlib import Path

from mainspring.core.config import ModelConfig, RopeConfig

TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=1000,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=128,
    max_position=2048,
    norm_epsilon=1e-5,
    rope=RopeConfig(rotary_dim=16),
    eos_token_ids=(2,),
)


def write_tiny_model(
    directory: Path, max_position: int = TINY.max_position, *, num_layers: int = TINY.num_layers
) -> Path:
    """A directory with a `config.json` for `TINY` and no weights, which the sim backend does not miss."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [TINY.architecture],
        "model_type": "llama",
        "vocab_size": TINY.vocab_size,
        "hidden_size": TINY.hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": TINY.num_heads,
        "num_key_value_heads": TINY.num_kv_heads,
        "head_dim": TINY.head_dim,
        "intermediate_size": TINY.intermediate_size,
        "max_position_embeddings": max_position,
        "rms_norm_eps": TINY.norm_epsilon,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory

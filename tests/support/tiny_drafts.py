"""Tiny seeded speculators of every kind, saved as their authors save them, for the tiny models of `tiny_models`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.tiny_models import SMALL, VOCABULARY

HIDDEN, INNER = 48, 40
TAPS = (0, 1)
SCORED = 31
"""Tokens that the EAGLE-3 head scores."""

_LAYER_CONFIG = {**{key: value for key, value in SMALL.items() if value is not None}, "num_hidden_layers": 1,
                 "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-6}  # fmt: skip


def matrix(seed: int, *shape: int) -> Tensor:
    """Weights that keep the size of what they multiply."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


def vector(seed: int, size: int, around: float = 0.0) -> Tensor:
    """A bias, or a norm around 1."""
    return around + 0.2 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def save(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: str) -> Path:
    """A directory with a config and one file of tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / file)
    return directory


def medusa(directory: Path, *, own_scores: bool = True, num_heads: int = 3, num_layers: int = 2) -> dict[str, Tensor]:
    """Medusa's heads as TGI reads them; returns their tensors."""
    tensors = {}
    for head in range(num_heads):
        for layer in range(num_layers):
            tensors[f"{head}.{layer}.linear.weight"] = matrix(10 * head + layer, HIDDEN, HIDDEN)
            tensors[f"{head}.{layer}.linear.bias"] = vector(10 * head + layer, HIDDEN)
        if own_scores:
            tensors[f"{head}.{num_layers}.weight"] = matrix(100 + head, VOCABULARY, HIDDEN)
    config = {"medusa_num_heads": num_heads, "medusa_num_layers": num_layers, "base_model_name_or_path": "base"}
    save(directory, config, tensors, "medusa_lm_head.safetensors")
    return tensors


def mlp_speculator(directory: Path, *, tied: bool, scale_input: bool, links: int = 3) -> dict[str, Tensor]:
    """IBM's MLP speculator; returns its tensors."""
    tensors = {}
    for link in range(1 if tied else links):
        tensors[f"speculator.emb.{link}.weight"] = matrix(link, VOCABULARY, INNER)
        tensors[f"speculator.head.{link}.weight"] = matrix(10 + link, VOCABULARY, INNER)
        tensors[f"speculator.ln.{link}.weight"] = vector(20 + link, INNER, 1.0)
        tensors[f"speculator.ln.{link}.bias"] = vector(30 + link, INNER)
    for link in range(2 if tied else links):
        tensors[f"speculator.proj.{link}.weight"] = matrix(40 + link, INNER, INNER if link else HIDDEN)
    config = {
        "architectures": ["MLPSpeculatorPreTrainedModel"], "model_type": "mlp_speculator", "n_predict": links,
        "emb_dim": HIDDEN, "inner_dim": INNER, "vocab_size": VOCABULARY, "tie_weights": tied,
        "scale_input": scale_input, "base_model_name_or_path": "base",
    }  # fmt: skip
    save(directory, config, tensors, "model.safetensors")
    return tensors


def layer(prefix: str, inputs: int, seed: int) -> dict[str, Tensor]:
    """A Llama layer of the tiny shape, its attention reading `inputs` features."""
    head, mlp = HIDDEN // SMALL["num_attention_heads"], SMALL["intermediate_size"]
    return {
        f"{prefix}.self_attn.q_proj.weight": matrix(seed, HIDDEN, inputs),
        f"{prefix}.self_attn.k_proj.weight": matrix(seed + 1, head, inputs),
        f"{prefix}.self_attn.v_proj.weight": matrix(seed + 2, head, inputs),
        f"{prefix}.self_attn.o_proj.weight": matrix(seed + 3, HIDDEN, HIDDEN),
        f"{prefix}.post_attention_layernorm.weight": vector(seed + 4, HIDDEN, 1.0),
        f"{prefix}.mlp.gate_proj.weight": matrix(seed + 5, mlp, HIDDEN),
        f"{prefix}.mlp.up_proj.weight": matrix(seed + 6, mlp, HIDDEN),
        f"{prefix}.mlp.down_proj.weight": matrix(seed + 7, HIDDEN, mlp),
    }


def eagle(
    directory: Path, *, own_ends: bool, vocabulary: int = VOCABULARY, length: int = SMALL["max_position_embeddings"]
) -> dict[str, Tensor]:
    """An EAGLE head, with or without its own copies of the target's embedding and projection; returns its tensors."""
    tensors = {"fc.weight": matrix(1, HIDDEN, 2 * HIDDEN), "fc.bias": vector(2, HIDDEN), **layer("layers.0", HIDDEN, 3)}
    if own_ends:
        tensors["embed_tokens.weight"] = matrix(20, vocabulary, HIDDEN)
        tensors["lm_head.weight"] = matrix(21, vocabulary, HIDDEN)
    save(
        directory,
        _LAYER_CONFIG | {"vocab_size": vocabulary, "max_position_embeddings": length},
        tensors,
        "model.safetensors",
    )
    return tensors


def eagle3(directory: Path, *, norm_before_residual: bool = False, mapped: bool = True) -> dict[str, Tensor]:
    """An EAGLE-3 head over two taps; returns its tensors."""
    scored = SCORED if mapped else VOCABULARY
    tensors = {
        "fc.weight": matrix(1, HIDDEN, len(TAPS) * HIDDEN), **layer("midlayer", 2 * HIDDEN, 3),
        "midlayer.input_layernorm.weight": vector(11, HIDDEN, 1.0),
        "midlayer.hidden_norm.weight": vector(12, HIDDEN, 1.0), "norm.weight": vector(13, HIDDEN, 1.0),
        "lm_head.weight": matrix(14, scored, HIDDEN),
    }  # fmt: skip
    if mapped:
        ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(5))[:scored].sort().values
        tensors["d2t"] = ids - torch.arange(scored)
        tensors["t2d"] = torch.zeros(VOCABULARY, dtype=torch.bool).index_fill_(0, ids, True)
    config = {
        **_LAYER_CONFIG, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": scored,
        "norm_before_residual": norm_before_residual, "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(TAPS)},
    }  # fmt: skip
    save(directory, config, tensors, "model.safetensors")
    return tensors

"""The tiny Llama that the kit serves: seeded weights in a directory, and an oracle for its logits.

Weights are numbers that bfloat16 holds, so that they are the same in every compute dtype.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mainspring.core.architectures import read_model_config
from mainspring.core.backend import Device, KVSpec
from mainspring.core.conformance.cases import Row, step_of
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models import build_model
from mainspring.core.ops import Ops
from mainspring.core.ops.attention import PagedKV
from mainspring.core.weights import load_weights

VOCABULARY = 128
"""A power of two: log-probabilities of all tokens are asked for."""
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 96, 128, 2, 6, 2
MAX_POSITION = 4096

Oracle = Callable[[list[int]], Tensor]
"""From a sequence's tokens to the log-probabilities [T, V] of what follows each, in float32."""


def write(directory: Path, head_dim: int) -> None:
    """The model as a checkpoint."""
    (directory / "config.json").write_text(json.dumps(_config(head_dim)))
    save_file(_tensors(head_dim), directory / "model.safetensors")


def oracle(directory: Path) -> tuple[Oracle, str]:
    """transformers where it is installed, else the core's reference, and which of them it is."""
    if importlib.util.find_spec("transformers") is None:
        return _reference(directory), "the core's reference"
    import transformers

    values = json.loads((directory / "config.json").read_text())
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    model.load_state_dict(_tensors(values["head_dim"]))
    model.eval()

    def logprobs(tokens: list[int]) -> Tensor:
        logits_TV: Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
        return logits_TV.float().log_softmax(-1)

    return logprobs, f"transformers {transformers.__version__}"


class _Host(Device):
    """The contract's defaults: what the reference is computed on."""

    torch_device = "cpu"

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 1 << 30

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        return PagedKV.allocate(spec, num_blocks, "cpu")

    def synchronize(self) -> None:
        pass


def _reference(directory: Path) -> Oracle:
    config, host = read_model_config(directory), _Host()
    model = build_model(config, Ops(), host, torch.float32, MAX_POSITION)
    load_weights(model, directory, config, host, torch.float32, None, lambda phase, done, total: None)

    def logprobs(tokens: list[int]) -> Tensor:
        spec = KVSpec(config.num_layers, config.num_kv_heads, config.head_dim, "float32", len(tokens))
        step = step_of([Row(len(tokens), len(tokens))], [[1]], len(tokens), None)
        hidden_TE = model(
            torch.tensor(tokens), torch.arange(len(tokens)), AttentionStep(host.allocate_kv(spec, 2), step)
        )
        return model.logits(hidden_TE).float().log_softmax(-1)

    return logprobs


def _config(head_dim: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": head_dim, "max_position_embeddings": MAX_POSITION,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip


def _tensors(head_dim: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)

    def matrix(rows: int, columns: int, size: float = 1.5) -> Tensor:
        drawn: Tensor = torch.randn(rows, columns, generator=generator) * (size / math.sqrt(columns))
        return drawn.bfloat16().float()

    def norm() -> Tensor:
        return (1 + 0.2 * torch.randn(HIDDEN, generator=generator)).bfloat16().float()

    tensors = {
        "model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, 8.0),
        "model.norm.weight": norm(),
        "lm_head.weight": matrix(VOCABULARY, HIDDEN),
    }
    shapes = {
        "self_attn.q_proj": (HEADS * head_dim, HIDDEN), "self_attn.k_proj": (KV_HEADS * head_dim, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * head_dim, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * head_dim),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }  # fmt: skip
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {f"{at}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        tensors |= {f"{at}.{name}.weight": norm() for name in ("input_layernorm", "post_attention_layernorm")}
    return tensors

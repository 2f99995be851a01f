"""Llama (Touvron et al. 2023) and what has its graph with other numbers: Mistral's windows, Qwen2's biases.

Legend: T packed tokens, N rows to score, E hidden size, H query heads, K kv heads, D head dim, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from mainspring.core.config import ModelConfig
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.block import PreNormBlock
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.layers.rope import Rotary
from mainspring.core.models.causal import CausalLM


class LlamaAttention(nn.Module):
    def __init__(self, config: ModelConfig, make: LayerFactory, layer: int, rotary: Rotary) -> None:
        super().__init__()
        self.qkv_proj = make.qkv(config)
        self.o_proj = make.attention_output(config)
        self.rotary = rotary
        self.attention = make.attention(config, layer)

    def forward(self, x_TE: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        heads = self.attention.rotated(self.qkv_proj(x_TE), positions_T, step, self.rotary)
        out_TE: Tensor = self.o_proj(heads)
        return out_TE


class Llama(CausalLM):
    shards = True
    stages = True

    def __init__(self, config: ModelConfig, make: LayerFactory) -> None:
        super().__init__()
        make = make.summing_in_norms()
        rotary = make.rotary(config.rope)

        def block(layer: int) -> PreNormBlock:
            return PreNormBlock(config, make, LlamaAttention(config, make, layer, rotary), make.gated_mlp(config))

        self.model = make.decoder(config, block)
        self.lm_head = make.head(config, self.model.embed_tokens)

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        hidden_TE: Tensor = self.model(tokens_T, positions_T, step)
        return hidden_TE

    def logits(self, hidden_NE: Tensor) -> Tensor:
        scores_NV: Tensor = self.lm_head(hidden_NE)
        return scores_NV

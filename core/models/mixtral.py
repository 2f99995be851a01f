"""Mixtral (Jiang et al. 2024): Llama with a mixture of experts in place of each MLP.

Legend: T packed tokens, N rows to score, E hidden size, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from mainspring.core.config import ModelConfig
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.block import PreNormBlock
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models.causal import CausalLM, Convention
from mainspring.core.models.llama import LlamaAttention


class Mixtral(CausalLM):
    shards = True
    stages = True
    convention = Convention(
        renamed=(
            (r"\.block_sparse_moe\.", ".mlp."),
            (r"(\.experts\.\d+)\.w1\.", r"\1.gate_proj."),
            (r"(\.experts\.\d+)\.w2\.", r"\1.down_proj."),
            (r"(\.experts\.\d+)\.w3\.", r"\1.up_proj."),
        )
    )

    def __init__(self, config: ModelConfig, make: LayerFactory) -> None:
        super().__init__()
        make = make.summing_in_norms()
        rotary = make.rotary(config.rope)

        def block(layer: int) -> PreNormBlock:
            return PreNormBlock(config, make, LlamaAttention(config, make, layer, rotary), make.mlp(config, layer))

        self.model = make.decoder(config, block)
        self.lm_head = make.head(config, self.model.embed_tokens)

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        hidden_TE: Tensor = self.model(tokens_T, positions_T, step)
        return hidden_TE

    def logits(self, hidden_NE: Tensor) -> Tensor:
        scores_NV: Tensor = self.lm_head(hidden_NE)
        return scores_NV

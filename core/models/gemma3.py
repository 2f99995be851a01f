"""Gemma 3 (Kamath et al. 2025), its text model: Gemma 2's blocks with norms over each head of q and k instead of capped
scores, and two ropes, one of them for the layers with a window.

Legend: T packed tokens, N rows to score, E hidden size, H query heads, K kv heads, D head dim, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from mainspring.core.config import ModelConfig
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.block import SandwichNormBlock
from mainspring.core.layers.embedding import softcapped
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.layers.rope import Rotary
from mainspring.core.models.causal import CausalLM, Convention


class Gemma3Attention(nn.Module):
    def __init__(self, config: ModelConfig, make: LayerFactory, layer: int, rotary: Rotary) -> None:
        super().__init__()
        self.qkv_proj = make.qkv(config)
        self.q_norm = make.rms_norm(config.head_dim, config)
        self.k_norm = make.rms_norm(config.head_dim, config)
        self.o_proj = make.attention_output(config)
        self.rotary = rotary
        self.attention = make.attention(config, layer)

    def forward(self, x_TE: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        heads = self.attention.rotated(self.qkv_proj(x_TE), positions_T, step, self.rotary, (self.q_norm, self.k_norm))
        out_TE: Tensor = self.o_proj(heads)
        return out_TE


class Gemma3(CausalLM):
    shards = True
    stages = True
    convention = Convention(
        # The multimodal checkpoints hold the text model under a prefix, which changed places once.
        renamed=((r"^language_model\.", ""), (r"^model\.language_model\.", "model.")),
        ignored=(r"^(model\.)?(vision_tower|multi_modal_projector)\.",),
        plus_one=r"norm\.weight$",
    )

    def __init__(self, config: ModelConfig, make: LayerFactory) -> None:
        super().__init__()
        everywhere, local = make.rotary(config.rope), make.rotary(config.local_rope)

        def block(layer: int) -> SandwichNormBlock:
            rotary = local if config.window(layer) else everywhere
            return SandwichNormBlock(config, make, Gemma3Attention(config, make, layer, rotary), make.gated_mlp(config))

        self.model = make.decoder(config, block)
        self.lm_head = make.head(config, self.model.embed_tokens)
        self.logits_softcap = config.logits_softcap

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        hidden_TE: Tensor = self.model(tokens_T, positions_T, step)
        return hidden_TE

    def logits(self, hidden_NE: Tensor) -> Tensor:
        return softcapped(self.lm_head(hidden_NE), self.logits_softcap)

"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, an MLP without a gate.

Legend: T packed tokens, N rows to score, E hidden size, H heads, D head dim, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from mainspring.core.config import ModelConfig
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models.causal import CausalLM, Convention


class GPT2Attention(nn.Module):
    def __init__(self, config: ModelConfig, make: LayerFactory, layer: int) -> None:
        super().__init__()
        self.c_attn = make.merged_qkv(config)
        self.c_proj = make.attention_output(config)
        self.attention = make.attention(config, layer)

    def forward(self, x_TE: Tensor, step: AttentionStep) -> Tensor:
        q_THD, k_THD, v_THD = self.attention.split(self.c_attn(x_TE))
        out_TE: Tensor = self.c_proj(self.attention(q_THD, k_THD, v_THD, step))
        return out_TE


class GPT2MLP(nn.Module):
    def __init__(self, config: ModelConfig, make: LayerFactory) -> None:
        super().__init__()
        self.c_fc = make.up(config)
        self.c_proj = make.down(config)
        self.activation = make.activation(config)

    def forward(self, x_TE: Tensor) -> Tensor:
        out_TE: Tensor = self.c_proj(self.activation(self.c_fc(x_TE)))
        return out_TE


class GPT2Block(nn.Module):
    def __init__(self, config: ModelConfig, make: LayerFactory, layer: int) -> None:
        super().__init__()
        self.ln_1 = make.layer_norm(config)
        self.attn = GPT2Attention(config, make, layer)
        self.ln_2 = make.layer_norm(config)
        self.mlp = GPT2MLP(config, make)

    def forward(self, x_TE: Tensor, step: AttentionStep) -> Tensor:
        x_TE = x_TE + self.attn(self.ln_1(x_TE), step)
        out_TE: Tensor = x_TE + self.mlp(self.ln_2(x_TE))
        return out_TE


class GPT2Decoder(nn.Module):
    def __init__(self, config: ModelConfig, make: LayerFactory) -> None:
        super().__init__()
        self.wte = make.token_embedding(config)
        self.wpe = make.position_embedding(config)
        self.h = nn.ModuleList(GPT2Block(config, make, layer) for layer in range(config.num_layers))
        self.ln_f = make.layer_norm(config)

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        x_TE = self.wte(tokens_T) + self.wpe(positions_T)
        for block in self.h:
            x_TE = block(x_TE, step)
        hidden_TE: Tensor = self.ln_f(x_TE)
        return hidden_TE


class GPT2(CausalLM):
    shards = True
    convention = Convention(
        # The original checkpoints have no prefix, and masks among their tensors.
        renamed=((r"^(?!transformer\.|lm_head\.)", "transformer."),),
        ignored=(r"\.attn\.(masked_)?bias$",),
        transposed=r"\.c_(attn|proj|fc)\.weight$",
    )

    def __init__(self, config: ModelConfig, make: LayerFactory) -> None:
        super().__init__()
        self.transformer = GPT2Decoder(config, make)
        self.lm_head = make.head(config, self.transformer.wte)

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        hidden_TE: Tensor = self.transformer(tokens_T, positions_T, step)
        return hidden_TE

    def logits(self, hidden_NE: Tensor) -> Tensor:
        scores_NV: Tensor = self.lm_head(hidden_NE)
        return scores_NV

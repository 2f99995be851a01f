"""One block of a decoder: attention, then an MLP, and norms around them.

A block takes what the block before added (x) and the stream before that (residual), and returns the same two: the last
addition is left to the next norm, which backends fuse with it.

Legend: T packed tokens, E hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from mainspring.core.config import ModelConfig
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.factory import LayerFactory


class PreNormBlock(nn.Module):
    """A norm before each half (Llama). Where ranks share the model and norms sum over them, x is a rank's part."""

    def __init__(self, config: ModelConfig, make: LayerFactory, self_attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = make.rms_norm(config.hidden_size, config)
        self.self_attn = self_attn
        self.post_attention_layernorm = make.rms_norm(config.hidden_size, config)
        self.mlp = mlp

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor, positions_T: Tensor, step: AttentionStep
    ) -> tuple[Tensor, Tensor]:
        """(what the MLP adds, the stream it is to be added to)."""
        x_TE, residual_TE = self.input_layernorm.add(x_TE, residual_TE)
        x_TE = self.self_attn(x_TE, positions_T, step)
        x_TE, residual_TE = self.post_attention_layernorm.add(x_TE, residual_TE)
        return self.mlp(x_TE), residual_TE


class SandwichNormBlock(nn.Module):
    """A norm before and after each half (Gemma 2 and 3)."""

    def __init__(self, config: ModelConfig, make: LayerFactory, self_attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = make.rms_norm(config.hidden_size, config)
        self.self_attn = self_attn
        self.post_attention_layernorm = make.rms_norm(config.hidden_size, config)
        self.pre_feedforward_layernorm = make.rms_norm(config.hidden_size, config)
        self.mlp = mlp
        self.post_feedforward_layernorm = make.rms_norm(config.hidden_size, config)

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor, positions_T: Tensor, step: AttentionStep
    ) -> tuple[Tensor, Tensor]:
        """(what the normed MLP adds, the stream it is to be added to)."""
        x_TE, residual_TE = self.input_layernorm.add(x_TE, residual_TE)
        x_TE = self.post_attention_layernorm(self.self_attn(x_TE, positions_T, step))
        x_TE, residual_TE = self.pre_feedforward_layernorm.add(x_TE, residual_TE)
        return self.post_feedforward_layernorm(self.mlp(x_TE)), residual_TE

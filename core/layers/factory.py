"""Makes layers for one device, so that models state shapes and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from mainspring.core.backend import Device
from mainspring.core.config import ModelConfig, RopeConfig
from mainspring.core.errors import ModelError
from mainspring.core.layers.attention import PagedAttention
from mainspring.core.layers.embedding import Embedding, Head, ScaledEmbedding, TiedHead
from mainspring.core.layers.linear import Linear, MergedLinear
from mainspring.core.layers.mlp import GatedMLP
from mainspring.core.layers.norm import LayerNorm, RMSNorm
from mainspring.core.layers.rope import Rotary, rope_table
from mainspring.core.ops import Ops


@dataclass(frozen=True, slots=True)
class LayerFactory:
    """The ops and the device that layers are bound to, once; and the longest sequence served, in tokens."""

    ops: Ops
    device: Device
    max_length: int

    def linear(self, in_features: int, out_features: int, bias: bool = False) -> Linear:
        """One linear layer of the checkpoint."""
        return Linear(in_features, out_features, bias, self.device.quantized_linear)

    def merged_linear(self, in_features: int, parts: Mapping[str, int], bias: bool = False) -> MergedLinear:
        """Several of the checkpoint as one."""
        return MergedLinear(in_features, parts, bias, self.device.quantized_linear)

    def qkv(self, config: ModelConfig) -> MergedLinear:
        """Projections to queries, keys and values, from three layers of the checkpoint."""
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        return self.merged_linear(config.hidden_size, parts, config.qkv_bias)

    def attention_output(self, config: ModelConfig) -> Linear:
        """The projection from heads back to the hidden size."""
        return self.linear(config.num_heads * config.head_dim, config.hidden_size, config.output_bias)

    def attention(self, config: ModelConfig, layer: int) -> PagedAttention:
        """Attention of one layer, with its window, scale and cap."""
        return PagedAttention(config, layer, self.ops)

    def gated_mlp(self, config: ModelConfig) -> GatedMLP:
        """A gated MLP, from three layers of the checkpoint."""
        parts = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
        gate_up = self.merged_linear(config.hidden_size, parts, config.mlp_bias)
        down = self.linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
        return GatedMLP(gate_up, down, self.gated_activation(config))

    def gated_activation(self, config: ModelConfig) -> Callable[[Tensor], Tensor]:
        """The op that joins gate and up, packed side by side."""
        if config.activation == "silu":
            return self.ops.silu_mul
        return partial(self._gelu_mul, tanh=config.activation == "gelu_tanh")

    def activation(self, config: ModelConfig) -> Callable[[Tensor], Tensor]:
        """The op between the two layers of an MLP without a gate. Raises `ModelError` for one that only gates have."""
        if config.activation == "silu":
            raise ModelError(f"activation 'silu' is not supported in {config.architecture}; gelu and gelu_new are")
        return partial(self._gelu, tanh=config.activation == "gelu_tanh")

    def rms_norm(self, size: int, config: ModelConfig) -> RMSNorm:
        """RMSNorm over `size`."""
        return RMSNorm(size, config.norm_epsilon, self.ops)

    def layer_norm(self, config: ModelConfig) -> LayerNorm:
        """LayerNorm over the hidden size."""
        return LayerNorm(config.hidden_size, config.norm_epsilon, self.ops)

    def rotary(self, rope: RopeConfig | None) -> Rotary:
        """A rope table, to be shared by layers. Raises `ModelError` when the config has no rope."""
        if rope is None:
            raise ModelError("the model rotates its heads, but its config names no rope; add rope_theta")
        return Rotary(rope_table(rope, self.max_length).to(self.device.torch_device), self.ops.rope)

    def embedding(self, num_rows: int, config: ModelConfig) -> Embedding:
        """A table of `num_rows` hidden states, scaled where the model scales them."""
        if config.embedding_scale is None:
            return Embedding(num_rows, config.hidden_size, self.ops)
        return ScaledEmbedding(num_rows, config.hidden_size, self.ops, config.embedding_scale)

    def head(self, config: ModelConfig, embedding: Embedding) -> Head | TiedHead:
        """The output projection: the embedding's own table, or one apart."""
        if config.tied_embeddings:
            return TiedHead(embedding, self.device.quantized_linear)
        return Head(config.vocab_size, config.hidden_size, self.device.quantized_linear)

    def _gelu(self, x: Tensor, *, tanh: bool) -> Tensor:
        return self.ops.gelu(x, tanh)

    def _gelu_mul(self, x: Tensor, *, tanh: bool) -> Tensor:
        return self.ops.gelu_mul(x, tanh)

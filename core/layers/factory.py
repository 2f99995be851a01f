"""Makes layers for one device, so that models state shapes and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from mainspring.core.backend import Communicator, Device
from mainspring.core.config import ModelConfig, RopeConfig
from mainspring.core.errors import ModelError
from mainspring.core.layers.attention import PagedAttention
from mainspring.core.layers.decoder import Decoder
from mainspring.core.layers.embedding import Embedding, Head, ScaledEmbedding, TiedHead
from mainspring.core.layers.experts import Experts, SparseMLP
from mainspring.core.layers.linear import Linear, MergedLinear, RowLinear
from mainspring.core.layers.mlp import GatedMLP
from mainspring.core.layers.norm import LayerNorm, RMSNorm
from mainspring.core.layers.rope import Rotary, rope_table
from mainspring.core.layers.stages import Arrived, ArrivedAtTable, HeadElsewhere, Leaving
from mainspring.core.layers.vocabulary import Vocabulary
from mainspring.core.ops import Ops
from mainspring.core.parallel.shard import ALONE, Shard, Span
from mainspring.core.parallel.stages import WHOLE_MODEL, Stage

Spans = TypeVar("Spans")


@dataclass(frozen=True, slots=True)
class LayerFactory:
    """The ops and the device that layers are bound to, once; and the longest sequence served, in tokens.

    Here is also how a model is dealt out to ranks, so that models need not know: `qkv`, `merged_qkv`, `gate_up`,
    `merged_gate_up` and `up` compute a part of their output features, `attention_output` and `down` take that part in
    and add over ranks, and the rows of `token_embedding` and `head` are dealt out. Everything else is on every rank
    whole, `linear` too.

    And how it is cut into stages: `decoder` has the layers of one, and `head` is with the last.
    """

    ops: Ops
    device: Device
    max_length: int
    shard: Shard = ALONE
    group: Communicator | None = None
    """Among the ranks that share the layers; None where there is one."""
    stage: Stage = WHOLE_MODEL
    arrivals: Tensor | None = None
    """Where the stage before leaves hidden states; None on the first."""
    sums_in_norms: bool = False
    """Set by `summing_in_norms`."""

    def summing_in_norms(self) -> LayerFactory:
        """The same factory for models in which every sum over ranks is followed by the norm that adds it to the stream.

        Their embedding, `attention_output` and `down` give this rank's part, and `RMSNorm.add` sums it as well.
        """
        if self.group is None:
            return self
        add_rms_norm = self.device.summed_norm(self.group, self.ops.add_rms_norm)
        return replace(self, ops=replace(self.ops, add_rms_norm=add_rms_norm), sums_in_norms=True)

    def linear(self, in_features: int, out_features: int, bias: bool = False) -> Linear:
        """One linear layer of the checkpoint, whole."""
        return Linear(in_features, out_features, bias, self.device.quantized_linear)

    def qkv(self, config: ModelConfig) -> MergedLinear:
        """Projections to queries, keys and values, from three layers of the checkpoint."""
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        query_span, key_span = self._head_spans(config)
        spans = {"q_proj": query_span, "k_proj": key_span, "v_proj": key_span}
        return MergedLinear(
            config.hidden_size, parts, config.qkv_bias, self.device.quantized_linear, spans=self._dealt(spans)
        )

    def merged_qkv(self, config: ModelConfig) -> Linear:
        """The same where the checkpoint has them in one."""
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        query_span, key_span = self._head_spans(config)
        spans = query_span, _shifted(key_span, queries), _shifted(key_span, queries + keys)
        features = queries + 2 * keys
        return Linear(
            config.hidden_size, features, config.qkv_bias, self.device.quantized_linear, spans=self._dealt(spans) or ()
        )

    def attention_output(self, config: ModelConfig) -> Linear:
        """The projection from heads back to the hidden size."""
        return self._row_linear(config.num_heads * config.head_dim, config.hidden_size, config.output_bias)

    def attention(self, config: ModelConfig, layer: int) -> PagedAttention:
        """Attention of one layer, with its window, scale and cap."""
        first, _ = self.stage.layers(config.num_layers)
        return PagedAttention(config, layer, self.ops, self.shard, cached_from=first)

    def gated_mlp(self, config: ModelConfig) -> GatedMLP:
        """A gated MLP, from three layers of the checkpoint."""
        return GatedMLP(self.gate_up(config), self.down(config), self.gated_activation(config))

    def mlp(self, config: ModelConfig, layer: int) -> GatedMLP | SparseMLP:
        """Of a model with experts: those, or an MLP in its dense layers."""
        experts = config.experts
        if experts is None or layer in experts.dense_layers:
            return self.gated_mlp(config)
        if config.activation != "silu":
            raise ModelError(f"activation {config.activation!r} of experts is not supported; silu is")
        group = None if self.sums_in_norms else self.group
        held = Experts(experts, config.hidden_size, self.ops, shard=self.shard, group=group)
        return SparseMLP(experts, self.linear(config.hidden_size, experts.count), held, self.ops)

    def gate_up(self, config: ModelConfig) -> MergedLinear:
        """The two inputs of a gated MLP, from two layers of the checkpoint."""
        parts = dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size)
        spans = dict.fromkeys(parts, self.shard.share(config.intermediate_size))
        return MergedLinear(
            config.hidden_size, parts, config.mlp_bias, self.device.quantized_linear, spans=self._dealt(spans)
        )

    def merged_gate_up(self, config: ModelConfig) -> Linear:
        """The same where the checkpoint has them in one."""
        features, gate = config.intermediate_size, self.shard.share(config.intermediate_size)
        spans = self._dealt((gate, _shifted(gate, features))) or ()
        return Linear(config.hidden_size, 2 * features, config.mlp_bias, self.device.quantized_linear, spans=spans)

    def up(self, config: ModelConfig) -> Linear:
        """The input of an MLP without a gate."""
        spans = self._dealt((self.shard.share(config.intermediate_size),)) or ()
        return Linear(
            config.hidden_size, config.intermediate_size, config.mlp_bias, self.device.quantized_linear, spans=spans
        )

    def down(self, config: ModelConfig) -> Linear:
        """The output of an MLP."""
        return self._row_linear(config.intermediate_size, config.hidden_size, config.mlp_bias)

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

    def decoder(self, config: ModelConfig, block: Callable[[int], nn.Module]) -> Decoder:
        """The stack of blocks between embedding and final norm, or this stage's part of it."""
        return Decoder(
            self.token_embedding(config) if self.arrivals is None else self._arrived(config, self.arrivals),
            {layer: block(layer) for layer in range(*self.stage.layers(config.num_layers))},
            self.rms_norm(config.hidden_size, config) if self.stage.last else self._leaving(),
        )

    def token_embedding(self, config: ModelConfig) -> Embedding:
        """The table of tokens, scaled where the model scales it."""
        rows = self._vocabulary(config)
        if config.embedding_scale is None:
            return Embedding(rows, config.hidden_size, self.ops, self.device.rows)
        scale = config.embedding_scale
        return ScaledEmbedding(rows, config.hidden_size, self.ops, self.device.rows, scale=scale)

    def position_embedding(self, config: ModelConfig) -> Embedding:
        """The table of learned positions."""
        return Embedding(Vocabulary(config.max_position), config.hidden_size, self.ops, self.device.rows)

    def head(self, config: ModelConfig, embedding: Embedding | Arrived) -> Head | TiedHead | HeadElsewhere:
        """The output projection: the embedding's own table, or one apart."""
        if not self.stage.last:
            return HeadElsewhere()
        if config.tied_embeddings and isinstance(embedding, Embedding):
            return TiedHead(embedding, self.device.quantized_linear)
        return Head(self._vocabulary(config), config.hidden_size, self.device.quantized_linear)

    def _arrived(self, config: ModelConfig, room: Tensor) -> Arrived | ArrivedAtTable:
        if not self.stage.last or not config.tied_embeddings:
            return Arrived(room)
        return ArrivedAtTable(room, self._vocabulary(config), config.hidden_size, self.ops, self.device.rows)

    def _leaving(self) -> Leaving:
        return Leaving(self.group if self.sums_in_norms else None)

    def _vocabulary(self, config: ModelConfig) -> Vocabulary:
        return Vocabulary(config.vocab_size, self.shard, self.group, sums=not self.sums_in_norms)

    def _head_spans(self, config: ModelConfig) -> tuple[Span, Span]:
        """Features of this rank's query heads, and of its key or value heads."""
        queries, keys = self.shard.share(config.num_heads), self.shard.kv_heads(config.num_kv_heads)
        size = config.head_dim
        return (queries[0] * size, queries[1] * size), (keys[0] * size, keys[1] * size)

    def _dealt(self, spans: Spans) -> Spans | None:
        """None where this rank holds everything."""
        return None if self.group is None else spans

    def _row_linear(self, in_features: int, out_features: int, bias: bool) -> Linear:
        if self.group is None:
            return self.linear(in_features, out_features, bias)
        matmul = self.device.quantized_linear
        group = None if self.sums_in_norms else self.group
        return RowLinear(in_features, out_features, bias, matmul, shard=self.shard, group=group)

    def _gelu(self, x: Tensor, *, tanh: bool) -> Tensor:
        return self.ops.gelu(x, tanh)

    def _gelu_mul(self, x: Tensor, *, tanh: bool) -> Tensor:
        return self.ops.gelu_mul(x, tanh)


def _shifted(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by

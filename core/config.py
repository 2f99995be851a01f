"""What the operator asked for (`EngineConfig`) and what the model is (`ModelConfig`). Frozen, torch-free, no I/O.

Reading a `config.json` or GGUF metadata into a `ModelConfig` is `core/architectures/`; nobody else looks into either.
Components take the fields they need, not these objects.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Dtype = Literal["float32", "float16", "bfloat16"]
"""Dtypes that a model computes in."""

KVDtype = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"]


WEIGHTLESS_SPECULATORS = ("ngram", "none")
"""Values of `EngineConfig.speculator` that name no checkpoint."""


class RopeConfig(msgspec.Struct, frozen=True):
    """Rotary position embedding (Su et al. 2021) and its extensions to longer contexts."""

    theta: float = 10000.0
    rotary_dim: int = 0
    """Leading dimensions of each head that rotate; a model with partial rotary has fewer than `head_dim`."""
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"] = "none"
    factor: float = 1.0
    original_max_position: int = 0
    """Context length of the unscaled model (dynamic, llama3, yarn, longrope)."""
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """Yarn: round the correction range to whole dimensions."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


class StoredWeights(msgspec.Struct, frozen=True):
    """All weights that a checkpoint holds in one quantized form that may be kept."""

    packing: str
    """As in `WeightScheme.packing`."""
    num_values: int
    num_bytes: int


class ExpertsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A mixture of experts in place of a layer's MLP."""

    count: int
    chosen: int
    """Experts that a token goes through."""
    size: int
    """Features between an expert's two halves."""
    normalized: bool
    """Whether the weights of a token's experts add up to one."""
    dense_layers: tuple[int, ...] = ()
    """Layers that have an MLP of `ModelConfig.intermediate_size` all the same."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only model in the field's terms, whatever its checkpoint calls them."""

    architecture: str
    """The name in `config.json`'s `architectures`, e.g. `LlamaForCausalLM`; the key of the table of models."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    """Context length that the model was made for, scaling included."""
    norm_epsilon: float
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    experts: ExpertsConfig | None = None
    rope: RopeConfig | None = None
    local_rope: RopeConfig | None = None
    """Of sliding-window layers, where it differs (Gemma 3)."""
    windows: tuple[int | None, ...] = ()
    """Sliding window of each layer in tokens, None for full attention; empty when no layer has one."""
    attention_scale: float | None = None
    """Multiplies q.k; None means head_dim ** -0.5."""
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    embedding_scale: float | None = None
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    dtype: Dtype = "float32"
    """Of the checkpoint."""
    eos_token_ids: tuple[int, ...] = ()
    quantization: dict[str, Any] = {}
    """The checkpoint's `quantization_config`; empty when it has none. `core/prequantized` reads it."""
    stored: tuple[StoredWeights, ...] = ()
    """Weights that are quantized in the checkpoint, for the plan of memory."""

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer, in tokens; None for full attention."""
        return self.windows[layer] if self.windows else None


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the engine process is told at start; the only thing it is told. Crosses the border as msgpack."""

    model: str
    """A directory, a `.gguf` file, a hub id, or `demo`."""
    revision: str | None = None
    backend: str = "auto"
    device_index: int = 0
    num_shard: int | None = 1
    """Devices that hold a part of the model each, from `device_index` on; None takes all that there are."""
    num_stages: int = 1
    """Parts that the layers are cut into, one behind the other; each has `num_shard` devices."""
    expert_parallel: bool = False
    """Experts are dealt out whole to those devices, not by their features."""
    dtype: Dtype | Literal["auto"] = "auto"
    kv_dtype: KVDtype | Literal["auto"] = "auto"
    quantize: str | None = None
    """On-the-fly weight quantization by scheme name, e.g. `int8`; None keeps the checkpoint's; `none` has none."""
    load_format: Literal["auto", "dummy"] = "auto"
    """`dummy` fills weights from a seeded generator instead of reading them, for speed tests of true shapes."""
    max_length: int | None = None
    """Tokens of a sequence, prompt and output; None takes the model's context, less if the KV cache is smaller."""
    max_sequences: int = 256
    """Sequences that may run at once (rows of the state table)."""
    max_batch_tokens: int = 2048
    """Tokens computed in one step, decodes and prefill chunks together."""
    max_prefill_chunk: int | None = None
    """Tokens of one prompt computed in one step at most; None: the whole budget."""
    max_waiting_requests: int = 1024
    max_waiting_tokens: int = 4_000_000
    block_size: int | None = None
    """Tokens a KV block holds; None takes the backend's preferred size."""
    num_blocks: int | None = None
    """KV blocks; None takes what `memory_fraction` leaves."""
    max_cache_tokens: int | None = None
    """Tokens that all sequences together may hold in the KV cache; None: what memory leaves."""
    memory_fraction: float | None = None
    """Share of the device's memory to use in all; None takes the backend's default."""
    prefix_caching: bool = True
    speculate: int | None = None
    """Tokens that are drafted at once for each sequence; None: what the speculator was made for. 0: none."""
    speculator: str | None = None
    """`ngram`, `none`, or a directory (or `.gguf` file) with a draft model or heads for this model."""
    seed: int = 0
    """Of the engine's own draws: seeds of requests that name none, dummy weights."""
    threads: int | None = None
    """Host threads for backends that compute on the host; None: all cores."""
    compile: bool = False
    """Let backends that can (torch.compile) trade start-up time for speed."""
    backend_options: dict[str, str] = {}
    """`--backend-option key=value`: passed to the backend unread; it refuses keys it does not know."""

"""The table of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mainspring.core.architectures import readers
from mainspring.core.architectures.fields import Fields
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError, unknown

NO_PLUGINS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture. The last four fields are what a count of parameters needs beyond a `ModelConfig`."""

    read: Callable[[Fields], ModelConfig]
    model: str
    """`module:Class` of the model."""
    norms: int = 2
    """Norms of the hidden size in each layer."""
    qk_norms: bool = False
    """Each layer has norms of the head dim for q and k."""
    gated: bool = True
    """The MLP has a gate beside its up projection."""
    biased_norms_and_positions: bool = False
    """GPT-2: norms have biases, positions are learned."""


_MODELS = "mainspring.core.models"

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({
    "LlamaForCausalLM": Architecture(read=readers.read_llama, model=f"{_MODELS}.llama:Llama"),
    # These two are Llama's graph with other numbers: windows, and biases on q, k and v.
    "MistralForCausalLM": Architecture(read=readers.read_mistral, model=f"{_MODELS}.llama:Llama"),
    "Qwen2ForCausalLM": Architecture(read=readers.read_qwen2, model=f"{_MODELS}.llama:Llama"),
    "Qwen3ForCausalLM": Architecture(read=readers.read_qwen3, model=f"{_MODELS}.qwen3:Qwen3", qk_norms=True),
    "MixtralForCausalLM": Architecture(read=readers.read_mixtral, model=f"{_MODELS}.mixtral:Mixtral"),
    "Qwen3MoeForCausalLM": Architecture(
        read=readers.read_qwen3_moe, model=f"{_MODELS}.qwen3_moe:Qwen3Moe", qk_norms=True
    ),
    "Gemma2ForCausalLM": Architecture(read=readers.read_gemma2, model=f"{_MODELS}.gemma2:Gemma2", norms=4),
    "Gemma3ForCausalLM": Architecture(
        read=readers.read_gemma3, model=f"{_MODELS}.gemma3:Gemma3", norms=4, qk_norms=True
    ),
    "Gemma3ForConditionalGeneration": Architecture(
        read=readers.read_gemma3, model=f"{_MODELS}.gemma3:Gemma3", norms=4, qk_norms=True
    ),
    "Phi3ForCausalLM": Architecture(read=readers.read_phi3, model=f"{_MODELS}.phi3:Phi3"),
    "GPT2LMHeadModel": Architecture(
        read=readers.read_gpt2, model=f"{_MODELS}.gpt2:GPT2", gated=False, biased_norms_and_positions=True
    ),
})  # fmt: skip


def find(name: str, source: str, plugins: Mapping[str, str] = NO_PLUGINS) -> Architecture:
    """The row of an architecture; a plugin's is read under Llama's keys and wins over a row of that name.

    Raises `ModelError` that offers the nearest name.
    """
    if name in plugins:
        read = ARCHITECTURES[name].read if name in ARCHITECTURES else readers.read_llama
        return Architecture(read=read, model=plugins[name])
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{unknown('architecture', name, [*ARCHITECTURES, *plugins])} (in {source}). "
            "A plugin can add one: hook mainspring_models"
        )
    return ARCHITECTURES[name]


def model_class(name: str, plugins: Mapping[str, str] = NO_PLUGINS) -> str:
    """`module:Class` of the model of an architecture. Raises `ModelError`."""
    return find(name, "the model's config", plugins).model

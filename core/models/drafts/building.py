"""From what a speculator is to its modules."""

from __future__ import annotations

import torch

from mainspring.core.architectures.speculators import Eagle3Config, EagleConfig, MedusaConfig, MLPSpeculatorConfig
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models.causal import CausalLM
from mainspring.core.models.drafts.contract import Heads, Recurrent
from mainspring.core.models.drafts.eagle import Eagle
from mainspring.core.models.drafts.eagle3 import Eagle3
from mainspring.core.models.drafts.medusa import Medusa
from mainspring.core.models.drafts.mlp_speculator import MLPSpeculator
from mainspring.core.models.drafts.tapping import shared


def build_heads(
    config: MedusaConfig | MLPSpeculatorConfig, make: LayerFactory, target: CausalLM, dtype: torch.dtype
) -> Heads:
    """Heads without a memory, with weights of `dtype` on the meta device."""
    lent = shared(target, embedding=False)
    heads: Heads = Medusa(config, make, lent) if isinstance(config, MedusaConfig) else MLPSpeculator(config, make)
    _store_in(dtype, heads)
    return heads


def build_recurrent(
    config: EagleConfig | Eagle3Config, make: LayerFactory, target: CausalLM, dtype: torch.dtype
) -> Recurrent:
    """A drafter with a cache, likewise. Raises `ModelError` for a target that it cannot look into."""
    lent = shared(target, embedding=not config.own_embedding)
    drafter: Recurrent = Eagle(config, make, lent) if isinstance(config, EagleConfig) else Eagle3(config, make, lent)
    _store_in(dtype, drafter)
    return drafter


def _store_in(dtype: torch.dtype, module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)

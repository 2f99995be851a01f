"""MLP speculators (Wertheimer et al. 2024, "Accelerating Production LLMs with Combined Token/Embedding Speculators").

A chain: each link adds the embedding of the token before to a projection of the state before, and scores the sum.

Legend: R rows that draft, E hidden size of the target, I inner size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mainspring.core.architectures.speculators import MLPSpeculatorConfig
from mainspring.core.architectures.speculators.names import MLP
from mainspring.core.layers.embedding import Embedding
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.layers.vocabulary import Vocabulary
from mainspring.core.layers.weights import Packing, Read, Shape, WeightLayer, declared
from mainspring.core.models.causal import Convention
from mainspring.core.models.drafts.contract import Choose, Heads
from mainspring.core.ops import Ops

EPSILON = 1e-6

_TIED = Convention(renamed=MLP, ignored=(r"^(emb|head|ln)\.[1-9]", r"^proj\.([2-9]|1\d)"))
"""Checkpoints of tied chains may hold their weights once a link."""


class ShiftedNorm(WeightLayer):
    """RMSNorm with a shift behind it."""

    def __init__(self, size: int, ops: Ops) -> None:
        super().__init__()
        self.weight, self.bias = declared(size), declared(size)
        self._rms_norm = ops.rms_norm

    def forward(self, x_RI: Tensor) -> Tensor:
        """Over the last dimension."""
        return self._rms_norm(x_RI, self.weight, EPSILON) + self.bias

    def sources(self, path: str) -> Mapping[str, Shape]:
        return {f"{path}.{kind}": tuple(self.weight.shape) for kind in ("weight", "bias")}

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        self.weight = nn.Parameter(packing.place(read(f"{path}.weight")), requires_grad=False)
        self.bias = nn.Parameter(packing.place(read(f"{path}.bias")), requires_grad=False)


class MLPSpeculator(Heads):
    convention = Convention(renamed=MLP)

    def __init__(self, config: MLPSpeculatorConfig, make: LayerFactory) -> None:
        super().__init__()
        links = 1 if config.tied else config.num_links
        # Tied chains have two projections: from the target's size, and from their own.
        projections = min(2, config.num_links) if config.tied else links
        inner, rows = config.inner_size, Vocabulary(config.vocab_size)
        self.emb = nn.ModuleList(Embedding(rows, inner, make.ops, make.device.rows) for _ in range(links))
        self.proj = nn.ModuleList(
            make.linear(inner if link else config.hidden_size, inner) for link in range(projections)
        )
        self.head = nn.ModuleList(make.linear(inner, config.vocab_size) for _ in range(links))
        self.ln = nn.ModuleList(ShiftedNorm(inner, make.ops) for _ in range(links))
        if config.tied:
            self.convention = _TIED
        self._gelu = make.ops.gelu
        self._scales_input = config.scales_input
        # So weighted, the first state keeps half of the sum's expected magnitude up to the last link.
        self._state_weight = 0.5 ** (0.5 / config.num_links)
        self._token_weight = math.sqrt((1 - self._state_weight**2) * inner / 2)

    def drafts(self, hidden_RE: Tensor, tokens_R: Tensor, count: int, choose: Choose) -> Iterator[Tensor]:
        state_RI = _scaled(hidden_RE) if self._scales_input else hidden_RE
        for link in range(count):
            own = min(link, len(self.head) - 1)
            token_RI = self.emb[own](tokens_R) * self._token_weight
            projected_RI = self.proj[min(link, len(self.proj) - 1)](state_RI)
            state_RI = self._gelu(self.ln[own](projected_RI * self._state_weight + token_RI), False)
            tokens_R = choose(self.head[own](state_RI))
            yield tokens_R


def _scaled(hidden_RE: Tensor) -> Tensor:
    """Hidden states of length sqrt(E / 2)."""
    wide_RE = hidden_RE.float()
    scale_R1 = torch.rsqrt(wide_RE.pow(2).mean(dim=-1, keepdim=True) + EPSILON) / math.sqrt(2)
    return (wide_RE * scale_R1).to(hidden_RE.dtype)

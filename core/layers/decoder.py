"""The stream through a stack of blocks, from tokens to the final norm.

Legend: T packed tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.embedding import Embedding
from mainspring.core.layers.norm import RMSNorm
from mainspring.core.layers.stages import Arrived, Leaving


class Decoder(nn.Module):
    """Blocks around a residual stream. Each takes what the one before added and the stream before that, so that a
    backend's fused add and norm serves every norm; the first adds the embedding to a stream of zeros.

    A stage of the model has those of `layers` that are its own, by their places in the model.
    """

    def __init__(
        self, embed_tokens: Embedding | Arrived, layers: Mapping[int, nn.Module], norm: RMSNorm | Leaving
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList()
        for place, layer in layers.items():
            self.layers.add_module(str(place), layer)  # checkpoints name it so, whatever comes before it here
        self._first = min(layers, default=0)
        self.norm = norm
        self.taps: tuple[int, ...] = ()
        """Layers whose inputs come out as well, in ascending order: see `core.models.drafts.tapping`."""

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        """Hidden states after the final norm, [T, E], and beside them those of each tap."""
        x_TE, residual_TE = self.embed_tokens.begin(tokens_T)
        tapped = []
        for place, layer in enumerate(self.layers, start=self._first):
            if place in self.taps:
                tapped.append(x_TE + residual_TE)
            x_TE, residual_TE = layer(x_TE, residual_TE, positions_T, step)
        hidden_TE, _ = self.norm.add(x_TE, residual_TE)
        return torch.cat((hidden_TE, *tapped), dim=-1) if tapped else hidden_TE

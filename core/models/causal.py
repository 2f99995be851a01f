"""What every decoder-only model is to the executor."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mainspring.core.layers.attention import AttentionStep


class CausalLM(nn.Module, ABC):
    """A language model over packed tokens and a paged cache. Inference only: callers hold `torch.inference_mode`."""

    @abstractmethod
    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        """Final hidden states [T, E], normed. The step's keys and values are in the cache afterwards."""

    @abstractmethod
    def logits(self, hidden_NE: Tensor) -> Tensor:
        """Scores of the next token for the rows given: [N, V] float32."""

"""Looking into a target: its embeddings, and its hidden states at several depths.

Models need not know. What they are made of is found among their modules, and a model that is tapped is the same model
with wider hidden states, so whatever carries those carries the taps.

Legend: T packed tokens, N rows to score, E hidden size, F features of all taps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mainspring.core.errors import ModelError
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.decoder import Decoder
from mainspring.core.models.causal import CausalLM
from mainspring.core.models.drafts.contract import Shared


class Tapped(CausalLM):
    """A model whose hidden states are [T, E + F]: its final ones, and the inputs of some of its layers."""

    def __init__(self, model: CausalLM, taps: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        decoder_of(model).taps = tuple(sorted(taps))
        self.model = model
        self._hidden_size = hidden_size

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        """[T, E + F]."""
        hidden_TF: Tensor = self.model(tokens_T, positions_T, step)
        return hidden_TF

    def logits(self, hidden_NE: Tensor) -> Tensor:
        """Scores [N, V] of hidden states [N, E + F], or of final ones alone, [N, E]."""
        return self.model.logits(hidden_NE[:, : self._hidden_size].contiguous())


def decoder_of(model: CausalLM) -> Decoder:
    """The stack that the model is made of. Raises `ModelError` where it is made of something else."""
    for module in model.modules():
        if isinstance(module, Decoder):
            return module
    raise ModelError(
        f"{type(model).__name__} is not built on core.layers.decoder, so heads of EAGLE's kind cannot look into it; "
        "use a draft model, Medusa or an MLP speculator"
    )


def shared(model: CausalLM, *, embedding: bool) -> Shared:
    """What heads use of a model: how it scores, and its `embedding` where they have none of their own."""
    return Shared(decoder_of(model).embed_tokens.forward if embedding else None, model.logits)

"""What every decoder-only model is: to the executor a function of tokens, to a checkpoint a tree of names."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from mainspring.core.layers.attention import AttentionStep


@dataclass(frozen=True, slots=True)
class Convention:
    """How Hugging Face checkpoints of an architecture depart from its model's own names and values. All are regular
    expressions, searched in tensor names.
    """

    renamed: Sequence[tuple[str, str]] = ()
    """Pattern and replacement; all that match apply, in order."""
    ignored: Sequence[str] = (r"\.rotary_emb\.inv_freq$",)
    """Tensors that checkpoints hold and models do not need, by their model's name."""
    transposed: str = r"(?!)"
    """Weights stored [in, out]."""
    plus_one: str = r"(?!)"
    """Weights w stored for a factor of 1 + w."""

    def model_name(self, name: str) -> str | None:
        """The model's name for a checkpoint's tensor; None when it is of no use."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return None if any(re.search(pattern, name) for pattern in self.ignored) else name


class CausalLM(nn.Module, ABC):
    """A language model over packed tokens and a paged cache. Inference only: callers hold `torch.inference_mode`.

    A model is made by `Class(config, factory)`, a `ModelConfig` and a `core.layers.factory.LayerFactory`. Its tree of
    modules has the names of the architecture's Hugging Face checkpoints; `convention` says where it has not.
    """

    convention: ClassVar[Convention] = Convention()

    shards: ClassVar[bool] = False
    """Whether ranks can hold a part of it each: all its layers that read or write heads, or features of the MLP, are
    made by the factory's calls that deal them out."""

    stages: ClassVar[bool] = False
    """Whether ranks can hold some of its layers each: these and both its ends are made by the factory's `decoder` and
    `head`."""

    @abstractmethod
    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        """Final hidden states [T, E], normed. The step's keys and values are in the cache afterwards."""

    @abstractmethod
    def logits(self, hidden_NE: Tensor) -> Tensor:
        """Scores of the next token for the rows given: [N, V], in float32 or the model's dtype."""

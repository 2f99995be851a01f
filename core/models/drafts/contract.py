"""What an executor calls of models that draft.

Legend: T packed tokens, R rows that draft, E hidden size, F features that a drafter reads of the target at each token,
V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models.causal import Convention

Choose = Callable[[Tensor], Tensor]
"""Takes the scores of the next draft, [R, V], and gives the tokens drafted, [R]."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What heads may use of the target."""

    embed: Callable[[Tensor], Tensor] | None
    """Tokens [T] to embeddings [T, E]; None where the heads have their own."""
    logits: Callable[[Tensor], Tensor]
    """Final hidden states [N, E] to scores [N, V]."""


class Heads(nn.Module, ABC):
    """Guesses from the target's last hidden state, without a memory of its own."""

    convention: Convention
    """Of its checkpoints' names."""

    @abstractmethod
    def drafts(self, hidden_RE: Tensor, tokens_R: Tensor, count: int, choose: Choose) -> Iterator[Tensor]:
        """`count` tokens ahead, [R] each: what `choose` made of their scores, one after the other.

        `hidden_RE` are final states at the tokens before `tokens_R`, which the target has just chosen.
        """


class Recurrent(nn.Module, ABC):
    """A decoder beside the target: it reads a token and features at each place and leaves keys and values behind."""

    convention: Convention
    """Of its checkpoints' names."""

    @abstractmethod
    def features(self, hidden_TF: Tensor) -> Tensor:
        """Of the target's hidden states at each token, [T, F], taps included, what `forward` takes, [T, E]."""

    @abstractmethod
    def forward(self, tokens_T: Tensor, features_TE: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        """[T, E], from which `logits` scores the token after next, and which are the features of the next token."""

    @abstractmethod
    def logits(self, states_RE: Tensor) -> Tensor:
        """Scores over the target's vocabulary, [R, V]; -inf for tokens that are never drafted."""

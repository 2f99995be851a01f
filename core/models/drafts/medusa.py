"""Medusa (Cai et al. 2024): head i guesses the token i + 1 places behind the next one, from the same hidden state.

In version 1 each head ends in an output projection of its own; in TGI's version 2 all share the target's.

Legend: R rows that draft, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from mainspring.core.architectures.speculators import MedusaConfig
from mainspring.core.architectures.speculators.names import MEDUSA
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models.causal import Convention
from mainspring.core.models.drafts.contract import Choose, Heads, Shared


class MedusaBlock(nn.Module):
    """A residual step of a head: [R, E] to [R, E]."""

    def __init__(self, config: MedusaConfig, make: LayerFactory) -> None:
        super().__init__()
        self.linear = make.linear(config.hidden_size, config.hidden_size, config.bias)

    def forward(self, x_RE: Tensor) -> Tensor:
        return x_RE + F.silu(self.linear(x_RE))


class MedusaHead(nn.Module):
    """Blocks and what scores behind them: an output projection of its own, or the target's."""

    def __init__(self, config: MedusaConfig, make: LayerFactory, shared_logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MedusaBlock(config, make) for _ in range(config.num_layers))
        self.scores = None if config.vocab_size is None else make.linear(config.hidden_size, config.vocab_size)
        self._logits = shared_logits if self.scores is None else self.scores.forward

    def forward(self, x_RE: Tensor) -> Tensor:
        """Scores of one token, [R, V]."""
        for block in self.blocks:
            x_RE = block(x_RE)
        return self._logits(x_RE)


class Medusa(Heads):
    """All heads, each for a place further on."""

    convention = Convention(renamed=MEDUSA)

    def __init__(self, config: MedusaConfig, make: LayerFactory, target: Shared) -> None:
        super().__init__()
        self.heads = nn.ModuleList(MedusaHead(config, make, target.logits) for _ in range(config.num_heads))

    def drafts(self, hidden_RE: Tensor, tokens_R: Tensor, count: int, choose: Choose) -> Iterator[Tensor]:
        for head in self.heads[:count]:
            yield choose(head(hidden_RE))

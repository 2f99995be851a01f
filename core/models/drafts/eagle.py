"""EAGLE (Li et al. 2024): one decoder layer that continues the target's own final hidden states.

At each place it reads the state there and the token *after* it, so its state says what the target's would be one place
on, and the same output projection scores it. Its layer has no norm in front, because that state is normed already.

Legend: T packed tokens, R rows that draft, E hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mainspring.core.architectures.speculators import EagleConfig
from mainspring.core.architectures.speculators.names import EAGLE, EAGLE_IGNORED
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models.causal import Convention
from mainspring.core.models.drafts.contract import Recurrent, Shared
from mainspring.core.models.llama import LlamaAttention


class EagleLayer(nn.Module):
    """A Llama layer without the norm in front: [T, E] to [T, E]."""

    def __init__(self, config: EagleConfig, make: LayerFactory) -> None:
        super().__init__()
        model = config.model
        self.self_attn = LlamaAttention(model, make, 0, make.rotary(model.rope))
        self.post_attention_layernorm = make.rms_norm(model.hidden_size, model)
        self.mlp = make.gated_mlp(model)

    def forward(self, x_TE: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        attended_TE = self.self_attn(x_TE, positions_T, step)
        normed_TE, sum_TE = self.post_attention_layernorm.add(attended_TE, x_TE)
        out_TE: Tensor = sum_TE + self.mlp(normed_TE)
        return out_TE


class Eagle(Recurrent):
    """Embedding and output projection are the target's, but for checkpoints that bring their own."""

    convention = Convention(renamed=EAGLE, ignored=EAGLE_IGNORED)

    def __init__(self, config: EagleConfig, make: LayerFactory, target: Shared) -> None:
        super().__init__()
        model = config.model
        if target.embed is None:
            self.embed_tokens = make.token_embedding(model)
        self._embed = target.embed or self.embed_tokens.forward
        self.fc = make.linear(2 * model.hidden_size, model.hidden_size, config.bias)
        self.midlayer = EagleLayer(config, make)
        if config.own_head:
            self.lm_head = make.linear(model.hidden_size, model.vocab_size)
        self._logits = self.lm_head.forward if config.own_head else target.logits

    def features(self, hidden_TF: Tensor) -> Tensor:
        return hidden_TF

    def forward(self, tokens_T: Tensor, features_TE: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        x_TE = self.fc(torch.cat((self._embed(tokens_T), features_TE), dim=-1))
        states_TE: Tensor = self.midlayer(x_TE, positions_T, step)
        return states_TE

    def logits(self, states_RE: Tensor) -> Tensor:
        return self._logits(states_RE)

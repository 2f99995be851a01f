"""EAGLE-3 (Li et al. 2025): EAGLE over a mix of the target's states at several depths, scoring its likelier tokens.

Its own state stands in for that mix at the places that the target has not seen.

Legend: T packed tokens, R rows that draft, E hidden size, F features of all depths, V vocabulary, W tokens scored.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
from torch import Tensor, nn

from mainspring.core.architectures.speculators import Eagle3Config
from mainspring.core.architectures.speculators.names import EAGLE, EAGLE_IGNORED
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.layers.weights import Packing, Read, Shape, WeightLayer, declared
from mainspring.core.models.causal import Convention
from mainspring.core.models.drafts.contract import Recurrent, Shared
from mainspring.core.models.llama import LlamaAttention


class Eagle3Layer(nn.Module):
    """A Llama layer whose attention reads token and state side by side, each normed; the stream is the state's."""

    def __init__(self, config: Eagle3Config, make: LayerFactory) -> None:
        super().__init__()
        model = config.model
        self.input_layernorm = make.rms_norm(model.hidden_size, model)
        self.hidden_norm = make.rms_norm(model.hidden_size, model)
        self.self_attn = LlamaAttention(model, make, 0, make.rotary(model.rope))
        self.self_attn.qkv_proj = make.qkv(msgspec.structs.replace(model, hidden_size=2 * model.hidden_size))
        self.post_attention_layernorm = make.rms_norm(model.hidden_size, model)
        self.mlp = make.gated_mlp(model)
        self._norm_before_residual = config.norm_before_residual

    def forward(self, tokens_TE: Tensor, x_TE: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        normed_TE = self.hidden_norm(x_TE)
        residual_TE = normed_TE if self._norm_before_residual else x_TE
        both_T2E = torch.cat((self.input_layernorm(tokens_TE), normed_TE), dim=-1)
        attended_TE = self.self_attn(both_T2E, positions_T, step)
        normed_TE, sum_TE = self.post_attention_layernorm.add(attended_TE, residual_TE)
        out_TE: Tensor = sum_TE + self.mlp(normed_TE)
        return out_TE


class DraftVocabulary(WeightLayer):
    """Which of the target's tokens are scored: `d2t` [W] holds how far each one's id lies above its place."""

    token_ids: Tensor
    """[W] int64. Set by `fill`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = declared(size)

    def forward(self, scores_RW: Tensor, vocab_size: int) -> Tensor:
        """[R, W] -> [R, V], -inf for all other tokens."""
        scores_RV = scores_RW.new_full((scores_RW.shape[0], vocab_size), float("-inf"))
        return scores_RV.index_copy_(1, self.token_ids, scores_RW)

    def sources(self, path: str) -> Mapping[str, Shape]:
        return {path: tuple(self.weight.shape)}

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        above = read(path).to(torch.int64)
        self.token_ids = (above + torch.arange(len(above))).to(packing.device.torch_device)


class Eagle3(Recurrent):
    convention = Convention(renamed=EAGLE, ignored=EAGLE_IGNORED)

    def __init__(self, config: Eagle3Config, make: LayerFactory, target: Shared) -> None:
        super().__init__()
        model = config.model
        if target.embed is None:
            self.embed_tokens = make.token_embedding(model)
        self._embed = target.embed or self.embed_tokens.forward
        self.fc = make.linear(len(config.taps) * config.target_hidden_size, model.hidden_size)
        self.midlayer = Eagle3Layer(config, make)
        self.norm = make.rms_norm(model.hidden_size, model)
        self.lm_head = make.linear(model.hidden_size, config.draft_vocab_size)
        self.d2t = DraftVocabulary(config.draft_vocab_size) if config.maps_vocabulary else None
        self._vocab_size = model.vocab_size
        # What is tapped stands behind the target's final states.
        self._own = config.target_hidden_size

    def features(self, hidden_TF: Tensor) -> Tensor:
        mixed_TE: Tensor = self.fc(hidden_TF[:, self._own :].contiguous())
        return mixed_TE

    def forward(self, tokens_T: Tensor, features_TE: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        states_TE: Tensor = self.midlayer(self._embed(tokens_T), features_TE, positions_T, step)
        return states_TE

    def logits(self, states_RE: Tensor) -> Tensor:
        scores_RW: Tensor = self.lm_head(self.norm(states_RE))
        return scores_RW if self.d2t is None else self.d2t(scores_RW, self._vocab_size)

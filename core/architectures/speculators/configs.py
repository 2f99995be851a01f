"""The kinds of speculators, and which of them fit a target."""

from __future__ import annotations

import msgspec

from mainspring.core.config import ModelConfig

USUAL_DRAFTS = 3
"""Tokens that are drafted at once when nobody names a number and training set none."""

MOST_DRAFTS = 16
"""Tokens that may be asked for at once."""


class DraftModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole language model of the target's vocabulary (Leviathan et al. 2023)."""

    model: ModelConfig
    parameters: int
    usual_drafts: int = USUAL_DRAFTS
    most_drafts: int = MOST_DRAFTS


class MedusaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Heads that each guess one token further ahead, all from the last hidden state (Cai et al. 2024)."""

    hidden_size: int
    vocab_size: int | None
    """None: heads end in hidden states, which the target's own output projection scores (TGI's V2)."""
    num_heads: int
    num_layers: int
    """Residual blocks of each head."""
    bias: bool
    parameters: int

    @property
    def usual_drafts(self) -> int:
        """A token a head."""
        return self.num_heads

    @property
    def most_drafts(self) -> int:
        """The same."""
        return self.num_heads


class MLPSpeculatorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A chain of small MLPs over the last hidden state and each token drafted (Wertheimer et al. 2024)."""

    hidden_size: int
    inner_size: int
    vocab_size: int
    num_links: int
    """Tokens that it was trained to predict."""
    tied: bool
    """All links have the weights of the first, but for the projection behind the first."""
    scales_input: bool
    parameters: int

    @property
    def usual_drafts(self) -> int:
        """A token a link."""
        return self.num_links

    @property
    def most_drafts(self) -> int:
        """The same."""
        return self.num_links


class EagleConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One decoder layer over token embeddings and the target's hidden states (EAGLE, Li et al. 2024)."""

    model: ModelConfig
    """Its one layer, and the sizes of what it shares with the target."""
    bias: bool
    """Of the projection that joins embedding and hidden state."""
    own_embedding: bool
    own_head: bool
    parameters: int
    usual_drafts: int = USUAL_DRAFTS
    most_drafts: int = MOST_DRAFTS


class Eagle3Config(msgspec.Struct, frozen=True, kw_only=True):
    """The same over a mix of several of the target's hidden states, scoring a part of its vocabulary (EAGLE-3, Li et
    al. 2025)."""

    model: ModelConfig
    target_hidden_size: int
    taps: tuple[int, ...]
    """Layers of the target whose inputs are read."""
    draft_vocab_size: int
    """Tokens that it scores; the tensor `d2t` says which they are."""
    maps_vocabulary: bool
    """Whether that tensor is there."""
    own_embedding: bool
    norm_before_residual: bool
    parameters: int
    usual_drafts: int = USUAL_DRAFTS
    most_drafts: int = MOST_DRAFTS


SpeculatorConfig = DraftModelConfig | MedusaConfig | MLPSpeculatorConfig | EagleConfig | Eagle3Config


def cached_model(speculator: SpeculatorConfig) -> ModelConfig | None:
    """The model whose keys and values are cached beside the target's; None where there are none."""
    return None if isinstance(speculator, MedusaConfig | MLPSpeculatorConfig) else speculator.model


def taps_of(speculator: SpeculatorConfig | None) -> tuple[int, ...]:
    """Layers of the target whose inputs the speculator reads."""
    return speculator.taps if isinstance(speculator, Eagle3Config) else ()


def mismatches(speculator: SpeculatorConfig, target: ModelConfig) -> list[str]:
    """Why it is none for this target, a sentence each; empty when it is."""
    reasons = []
    known, read = _vocab_size(speculator), _hidden_size(speculator)
    if known is not None and known != target.vocab_size:
        reasons.append(f"it knows {known} tokens and the model {target.vocab_size}; use one made for this model")
    if read is not None and read != target.hidden_size:
        reasons.append(
            f"it reads hidden states of {read} features and the model's have {target.hidden_size}; "
            "use one trained on this model"
        )
    reasons += [
        f"it reads the input of layer {tap} and the model's layers end with {target.num_layers - 1}; "
        "use one trained on this model"
        for tap in taps_of(speculator)
        if not 0 <= tap < target.num_layers
    ]
    if isinstance(speculator, Eagle3Config) and not speculator.own_embedding:
        width = speculator.model.hidden_size
        if width != target.hidden_size:
            reasons.append(f"its layer has {width} features and it has no tensor embed_tokens.weight of its own")
    return reasons


def _vocab_size(speculator: SpeculatorConfig) -> int | None:
    model = cached_model(speculator)
    if model is not None:
        return model.vocab_size
    return speculator.vocab_size if isinstance(speculator, MedusaConfig | MLPSpeculatorConfig) else None


def _hidden_size(speculator: SpeculatorConfig) -> int | None:
    match speculator:
        case DraftModelConfig():
            return None
        case EagleConfig():
            return speculator.model.hidden_size
        case Eagle3Config():
            return speculator.target_hidden_size
        case _:
            return speculator.hidden_size

"""Which part of a model a rank holds: arithmetic, for the start-up plan as for the layers. No torch.

Heads and the MLP's features are dealt out whole, so that a layer adds over ranks twice: behind attention and behind the
MLP. Experts are dealt out by their features, or whole. Key and value heads that are fewer than the ranks are held more
than once. The vocabulary is dealt out in equal parts, the last one filled up.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mainspring.core.config import ModelConfig

Span = tuple[int, int]
"""First, and one past the last."""

MOST_RANKS = 64
"""How far `worlds` looks."""

_VOCABULARY_MULTIPLE = 16
"""Rows of each part of the vocabulary: what kernels like their sizes to be multiples of."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The share of one rank among `world`. Sizes are the whole model's and divide as `obstacles` demands."""

    rank: int = 0
    world: int = 1
    whole_experts: bool = False
    """Each rank holds some experts, not some features of each."""

    def share(self, size: int) -> Span:
        """Of what is dealt out evenly: query heads, features."""
        each = size // self.world
        return self.rank * each, (self.rank + 1) * each

    def kv_heads(self, count: int) -> Span:
        """Of key and value heads: those that the rank's query heads attend to."""
        if count >= self.world:
            return self.share(count)
        head = self.rank * count // self.world
        return head, head + 1

    def expert_features(self, size: int) -> Span:
        """Of the features of each expert that the rank holds."""
        return (0, size) if self.whole_experts else self.share(size)

    def experts(self, count: int) -> Span:
        """Of a layer's experts."""
        return self.share(count) if self.whole_experts else (0, count)

    def vocabulary(self, size: int) -> Span:
        """Of the vocabulary; the rows up to `part_of_vocabulary` that are missing are padding."""
        each = part_of_vocabulary(size, self.world)
        return min(self.rank * each, size), min((self.rank + 1) * each, size)


ALONE = Shard()
"""A model on one device."""


def part_of_vocabulary(size: int, world: int) -> int:
    """Rows of the embedding and of the head that each rank has memory for."""
    if world == 1:
        return size
    return -(-size // (world * _VOCABULARY_MULTIPLE)) * _VOCABULARY_MULTIPLE


def part_of(model: ModelConfig, world: int) -> ModelConfig:
    """The model that one rank's weights and cache are those of; its vocabulary counts the rows that are held.

    Experts that are dealt out whole weigh as much as parts of all of them.
    """
    if world == 1:
        return model
    experts = model.experts
    return msgspec.structs.replace(
        model,
        num_heads=model.num_heads // world,
        num_kv_heads=max(1, model.num_kv_heads // world),
        intermediate_size=model.intermediate_size // world,
        vocab_size=part_of_vocabulary(model.vocab_size, world),
        experts=experts and msgspec.structs.replace(experts, size=-(-experts.size // world)),
    )


def obstacles(model: ModelConfig, world: int, group_size: int = 1, *, whole_experts: bool = False) -> list[str]:
    """What of the model cannot be dealt out to so many ranks; empty when all of it can.

    `group_size`: input features of linear layers that share a scale and stay together.
    """
    heads, kv_heads, features = model.num_heads, model.num_kv_heads, model.intermediate_size
    found = []
    if heads % world:
        found.append(f"{heads} query heads")
    if kv_heads % world and world % kv_heads:
        found.append(f"{kv_heads} key and value heads")
    if features % world:
        found.append(f"{features} features of the MLP")
    if model.experts is not None:
        dealt, what = (
            (model.experts.count, "experts") if whole_experts else (model.experts.size, "features of each expert")
        )
        if dealt % world:
            found.append(f"{dealt} {what}")
    if not found:
        inputs = {"inputs of the attention output": heads * model.head_dim, "features of the MLP": features}
        found += [
            f"{size} {what} in groups of {group_size}" for what, size in inputs.items() if size // world % group_size
        ]
    return found


def worlds(model: ModelConfig, group_size: int = 1, *, whole_experts: bool = False) -> list[int]:
    """Numbers of ranks that the model can be dealt out to."""
    ranks = range(1, MOST_RANKS + 1)
    return [world for world in ranks if not obstacles(model, world, group_size, whole_experts=whole_experts)]

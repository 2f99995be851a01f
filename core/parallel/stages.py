"""Which layers a rank holds when they are cut into pipeline stages: arithmetic for the plan and the models. No torch.

Ranks are numbered stage by stage: those that share a layer, and meet in it twice, are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.core.config import ModelConfig
from mainspring.core.parallel.shard import Span


@dataclass(frozen=True, slots=True)
class Stage:
    """One of `count` stages. The first holds the embedding, the last the final norm and the head."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether tokens come in here."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Whether logits come out here."""
        return self.index == self.count - 1

    def layers(self, number: int) -> Span:
        """Of the model's layers. What does not divide goes to the earlier stages, for the last has the head as well."""
        each, more = divmod(number, self.count)
        start = self.index * each + min(self.index, more)
        return start, start + each + (self.index < more)

    def ranks(self, num_shard: int) -> range:
        """Of the whole server: those that hold a part of this stage."""
        return range(self.index * num_shard, (self.index + 1) * num_shard)


def stage_of(rank: int, num_shard: int, count: int) -> Stage:
    """Where a rank of the whole server is."""
    return Stage(rank // num_shard, count)


def stage_obstacles(model: ModelConfig, count: int) -> list[str]:
    """What of the model cannot be cut into so many stages; empty when all of it can."""
    found = []
    if model.num_layers < count:
        found.append(f"{model.num_layers} layers")
    if count > 1 and model.tied_embeddings:
        found.append("one table for embedding and head, which are at both ends")
    return found

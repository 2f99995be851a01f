"""Which layers a rank holds when they are cut into pipeline stages: arithmetic for the plan and the models. No torch.

Ranks are numbered stage by stage: those that share a layer, and meet in it twice, are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mainspring.core.config import ModelConfig
from mainspring.core.parallel.shard import ALONE, Shard, Span


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

    def part_of(self, model: ModelConfig) -> ModelConfig:
        """The model that the layers here are those of; it has both ends."""
        start, past = self.layers(model.num_layers)
        experts = model.experts
        if experts is not None:
            dense = tuple(layer - start for layer in experts.dense_layers if start <= layer < past)
            experts = msgspec.structs.replace(experts, dense_layers=dense)
        return msgspec.structs.replace(
            model, num_layers=past - start, windows=model.windows[start:past], experts=experts
        )


WHOLE_MODEL = Stage()
"""All layers."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands among all: in which stage, and as which of those that share it."""

    stage: Stage = WHOLE_MODEL
    shard: Shard = ALONE

    @property
    def rank(self) -> int:
        """Of the whole server, as all others here."""
        return self.stage.index * self.shard.world + self.shard.rank

    @property
    def world(self) -> int:
        """How many there are."""
        return self.stage.count * self.shard.world

    @property
    def sharing(self) -> range:
        """The ranks that hold a part of this stage."""
        first = self.stage.index * self.shard.world
        return range(first, first + self.shard.world)

    @property
    def previous(self) -> int:
        """Whose layers come before."""
        return self.rank - self.shard.world

    @property
    def next(self) -> int:
        """Whose layers come behind."""
        return self.rank + self.shard.world

    @property
    def chooser(self) -> int:
        """The first of those that choose tokens, who tells all others."""
        return (self.stage.count - 1) * self.shard.world


EVERYTHING = Place()
"""One device."""


def place_of(rank: int, num_shard: int, num_stages: int, *, whole_experts: bool = False) -> Place:
    """Of a rank of the whole server."""
    return Place(Stage(rank // num_shard, num_stages), Shard(rank % num_shard, num_shard, whole_experts))

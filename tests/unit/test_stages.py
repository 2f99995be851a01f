"""Layers in stages: each layer once and in order, fewer to the later ones, and what cannot be cut."""

from __future__ import annotations

import msgspec
import pytest

from mainspring.core.parallel.stages import Stage, stage_obstacles, stage_of
from tests.support.model_directory import TINY


@pytest.mark.parametrize(("layers", "count"), [(2, 2), (7, 2), (32, 3), (61, 8), (5, 1)])
def test_every_layer_is_in_one_stage_and_later_stages_have_fewer(layers: int, count: int) -> None:
    spans = [Stage(index, count).layers(layers) for index in range(count)]
    assert [layer for span in spans for layer in range(*span)] == list(range(layers))
    sizes = [past - start for start, past in spans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_ranks_are_numbered_stage_by_stage() -> None:
    stages = [stage_of(rank, 2, 3) for rank in range(6)]
    assert [stage.index for stage in stages] == [0, 0, 1, 1, 2, 2]
    assert all(rank in stage.ranks(2) for rank, stage in enumerate(stages))
    assert [stage.first for stage in stages] == [True, True, False, False, False, False]
    assert [stage.last for stage in stages] == [False, False, False, False, True, True]


def test_more_stages_than_layers_and_tied_ends_are_refused() -> None:
    model = msgspec.structs.replace(TINY, num_layers=2, tied_embeddings=False)
    assert stage_obstacles(model, 2) == []
    assert stage_obstacles(model, 3) == ["2 layers"]
    tied = msgspec.structs.replace(model, tied_embeddings=True)
    assert stage_obstacles(tied, 1) == []
    assert stage_obstacles(tied, 2) == ["one table for embedding and head, which are at both ends"]

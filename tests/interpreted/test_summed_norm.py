"""The sum over ranks in one kernel. What the other ranks store is made here: programs run one at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mainspring.backends.triton.summed_norm import PROGRAMS, TURNS, Inboxes, summed, summed_add_rms_norm
from mainspring.core.ops.norm import add_rms_norm

WORLD, RANK, PLACE = 3, 1, 4 * 80


class Ranks:
    """Inboxes of three ranks, of which one runs."""

    def __init__(self) -> None:
        self.rows = [torch.full((PROGRAMS, TURNS, WORLD, PLACE), float("nan")) for _ in range(WORLD)]
        self.flags = [torch.zeros(PROGRAMS, TURNS, WORLD, dtype=torch.int32) for _ in range(WORLD)]
        self.turns = torch.zeros(PROGRAMS, dtype=torch.int32)
        self.inboxes = Inboxes(
            RANK,
            torch.tensor([rows.data_ptr() for rows in self.rows]),
            torch.tensor([flags.data_ptr() for flags in self.flags]),
            self.turns,
            PLACE * 4,
        )

    def arrive(self, parts: list[Tensor], turn: int) -> None:
        """What the others write before or while this rank's kernel runs."""
        for source, part in enumerate(parts):
            if source != RANK:
                for row, values in enumerate(part):
                    program, at = row % PROGRAMS, row // PROGRAMS * part.shape[1]
                    self.rows[RANK][program, turn, source, at : at + part.shape[1]] = values
                    self.flags[RANK][program, turn, source] = 1

    def posted(self, other: int, turn: int, shape: torch.Size) -> Tensor:
        """What this rank has written there; takes its flags down, as that rank would."""
        place = self.rows[other][:, turn, RANK]
        found = [place[row % PROGRAMS, row // PROGRAMS * shape[1] :][: shape[1]].clone() for row in range(shape[0])]
        assert int(self.flags[other].sum()) == min(shape[0], PROGRAMS)
        self.flags[other].zero_()
        return torch.stack(found)


@pytest.mark.parametrize(("rows", "size"), [(1, 64), (3, 80), (PROGRAMS + 2, 72)])
def test_parts_are_exchanged_and_summed(rows: int, size: int) -> None:
    torch.manual_seed(0)
    ranks = Ranks()
    for turn in (0, 1, 0):
        parts = [torch.randn(rows, size) for _ in range(WORLD)]
        residual, weight = torch.randn(rows, size), torch.randn(size)
        ranks.arrive(parts, turn)
        found = summed_add_rms_norm(parts[RANK], (residual, weight, 1e-5), ranks.inboxes)
        wanted = add_rms_norm(parts[0] + parts[1] + parts[2], residual, weight, 1e-5)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted, strict=True))
        assert not ranks.flags[RANK].any()
        for other in (0, 2):
            assert torch.equal(ranks.posted(other, turn, residual.shape), parts[RANK])


def test_a_sum_alone() -> None:
    ranks = Ranks()
    parts = [torch.randn(5, 80) for _ in range(WORLD)]
    ranks.arrive(parts, 0)
    assert torch.allclose(summed(parts[RANK], ranks.inboxes), parts[0] + parts[1] + parts[2], atol=1e-6)


def test_what_has_no_room() -> None:
    inboxes = Ranks().inboxes
    assert inboxes.takes(torch.empty(4 * PROGRAMS, 80))
    assert not inboxes.takes(torch.empty(4 * PROGRAMS + 1, 80))

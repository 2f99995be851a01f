"""The sum over ranks in one kernel. What the other ranks store is made here: programs run one at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mainspring.backends.triton.summed_norm import TURNS, Inboxes, summed, summed_add_rms_norm
from mainspring.core.ops.norm import add_rms_norm

WORLD, RANK, PLACE, PROGRAMS = 3, 1, 80, 4


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

    def arrive(self, parts: list[Tensor], turns: Tensor) -> None:
        """What the others write before or while this rank's kernel runs, from the places of `turns` on."""
        for source, part in enumerate(parts):
            if source != RANK:
                for row, values in enumerate(part):
                    program, place = _place(row, turns)
                    self.rows[RANK][program, place, source, : len(values)] = values
                    self.flags[RANK][program, place, source] = 1

    def posted(self, other: int, turns: Tensor, shape: torch.Size) -> Tensor:
        """What this rank has written there; takes its flags down, as that rank would."""
        found = torch.empty(shape)
        for row in range(shape[0]):
            program, place = _place(row, turns)
            found[row] = self.rows[other][program, place, RANK, : shape[1]]
            assert self.flags[other][program, place, RANK] == 1
        self.flags[other].zero_()
        return found


def _place(row: int, turns: Tensor) -> tuple[int, int]:
    """(program, place) of a row."""
    program = row % PROGRAMS
    return program, (int(turns[program]) + row // PROGRAMS) % TURNS


@pytest.mark.parametrize(("rows", "size"), [(1, 64), (3, 80), (4, 72), (7, 72)])
def test_parts_are_exchanged_and_summed(rows: int, size: int) -> None:
    torch.manual_seed(0)
    ranks = Ranks()
    for _ in range(3):
        turns = ranks.turns.clone()
        parts = [torch.randn(rows, size) for _ in range(WORLD)]
        residual, weight = torch.randn(rows, size), torch.randn(size)
        ranks.arrive(parts, turns)
        found = summed_add_rms_norm(parts[RANK], (residual, weight, 1e-5), ranks.inboxes)
        wanted = add_rms_norm(parts[0] + parts[1] + parts[2], residual, weight, 1e-5)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted, strict=True))
        assert not ranks.flags[RANK].any()
        for other in (0, 2):
            assert torch.equal(ranks.posted(other, turns, residual.shape), parts[RANK])


def test_a_sum_alone() -> None:
    ranks = Ranks()
    parts = [torch.randn(5, 80) for _ in range(WORLD)]
    ranks.arrive(parts, ranks.turns)
    assert torch.allclose(summed(parts[RANK], ranks.inboxes), parts[0] + parts[1] + parts[2], atol=1e-6)


def test_what_has_no_room() -> None:
    inboxes = Ranks().inboxes
    assert inboxes.takes(torch.empty(9, PLACE))
    assert not inboxes.takes(torch.empty(9, PLACE + 1))

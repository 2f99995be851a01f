"""The sum over ranks in one kernel. What the other ranks store is made here: programs run one at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mainspring.backends.triton.summed_norm import MOST_ROWS, TURNS, Inboxes, summed, summed_add_rms_norm
from mainspring.core.ops.norm import add_rms_norm

WORLD, RANK, PLACE, PROGRAMS = 3, 1, 2 * 80, 4
"""Places hold two rows, so 8 rows are a round."""


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
        """What the others write before or while this rank's kernel runs, from the place of `turn` on."""
        for source, part in enumerate(parts):
            if source != RANK:
                for row, values in enumerate(part):
                    program, place, at = _place(row, len(values), turn)
                    self.rows[RANK][program, place, source, at : at + len(values)] = values
                    self.flags[RANK][program, place, source] = 1

    def posted(self, other: int, turn: int, shape: torch.Size) -> Tensor:
        """What this rank has written there; takes its flags down, as that rank would."""
        found = torch.empty(shape)
        for row in range(shape[0]):
            program, place, at = _place(row, shape[1], turn)
            found[row] = self.rows[other][program, place, RANK, at : at + shape[1]]
            assert self.flags[other][program, place, RANK] == 1
        self.flags[other].zero_()
        return found


def _place(row: int, size: int, turn: int) -> tuple[int, int, int]:
    """(program, place, offset) of a row."""
    held = min(MOST_ROWS, PLACE // size)
    program, at = row % PROGRAMS, row // PROGRAMS
    return program, (turn + at // held) % TURNS, at % held * size


@pytest.mark.parametrize(("rows", "size", "rounds"), [(1, 64, 1), (3, 80, 1), (8, 72, 1), (13, 72, 2), (10, 40, 1)])
def test_parts_are_exchanged_and_summed(rows: int, size: int, rounds: int) -> None:
    torch.manual_seed(0)
    ranks = Ranks()
    turn = 0
    for _ in range(3):
        parts = [torch.randn(rows, size) for _ in range(WORLD)]
        residual, weight = torch.randn(rows, size), torch.randn(size)
        ranks.arrive(parts, turn)
        found = summed_add_rms_norm(parts[RANK], (residual, weight, 1e-5), ranks.inboxes)
        wanted = add_rms_norm(parts[0] + parts[1] + parts[2], residual, weight, 1e-5)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted, strict=True))
        assert not ranks.flags[RANK].any()
        for other in (0, 2):
            assert torch.equal(ranks.posted(other, turn, residual.shape), parts[RANK])
        turn = (turn + rounds) % TURNS


def test_a_sum_alone() -> None:
    ranks = Ranks()
    parts = [torch.randn(5, 80) for _ in range(WORLD)]
    ranks.arrive(parts, 0)
    assert torch.allclose(summed(parts[RANK], ranks.inboxes), parts[0] + parts[1] + parts[2], atol=1e-6)


def test_what_has_no_room() -> None:
    inboxes = Ranks().inboxes
    assert inboxes.takes(torch.empty(9, PLACE))
    assert not inboxes.takes(torch.empty(9, PLACE + 1))

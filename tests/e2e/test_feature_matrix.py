"""Any two features of requests hold beside each other, and docs/feature-matrix.md says so and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.feature_matrix import PAIRS, Pair, served, table, try_all

PAGE = Path(__file__).parents[2] / "docs" / "feature-matrix.md"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[Pair, str | Exception]:
    with served(tmp_path_factory.mktemp("matrix")) as servers:
        found = try_all(servers)
        assert servers.guesses_taken() > 0
        assert servers.drafting.get("/info").json()["speculate"] == 3
    return found


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " and ".join(sorted(pair)))
def test_both_claims_hold(cells: dict[Pair, str | Exception], pair: Pair) -> None:
    if isinstance(cell := cells[pair], Exception):
        raise cell


def test_the_page_is_what_was_found(cells: dict[Pair, str | Exception]) -> None:
    found = {pair: str(cell) for pair, cell in cells.items()}
    assert PAGE.read_text() == table(found), "write it again: python -m tests.support.feature_matrix > docs/..."

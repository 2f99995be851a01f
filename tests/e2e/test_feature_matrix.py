"""Any two features of requests hold beside each other, and docs/feature-matrix.md says so and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.feature_matrix import PAIRS, Pair, Servers, served, speculated, table, try_all

PAGE = Path(__file__).parents[2] / "docs" / "feature-matrix.md"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with served(tmp_path_factory.mktemp("matrix")) as servers:
        yield servers


@pytest.fixture(scope="module")
def cells(servers: Servers) -> dict[Pair, str | Exception]:
    found = try_all(servers)
    assert servers.guesses_taken() > 0
    return found


def test_speculation_says_how_much_it_guesses(servers: Servers) -> None:
    said = [client.get("/info").json()["speculate"] for client in (servers.plain, servers.drafting)]
    assert said == [0, 3]


def test_guesses_change_nothing_beside_many_features(servers: Servers) -> None:
    before = servers.guesses_taken()
    assert list(speculated(servers, 24)) == []
    assert servers.guesses_taken() > before


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " and ".join(sorted(pair)))
def test_both_claims_hold(cells: dict[Pair, str | Exception], pair: Pair) -> None:
    if isinstance(cell := cells[pair], Exception):
        raise cell


def test_the_page_is_what_was_found(cells: dict[Pair, str | Exception]) -> None:
    found = {pair: str(cell) for pair, cell in cells.items()}
    assert PAGE.read_text() == table(found), "write it again: python -m tests.support.feature_matrix > docs/..."

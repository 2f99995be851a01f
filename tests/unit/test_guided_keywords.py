"""Each keyword of JSON Schema is enforced or refused by each engine, and docs/guided-keywords.md says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.core.grammar.protocol import GrammarEngine
from mainspring.core.grammar.xgrammar import unenforced
from tests.guided.keywords import TRIALS, engines, found, page

PAGE = Path(__file__).parents[2] / "docs" / "guided-keywords.md"


@pytest.fixture(scope="module")
def opened() -> dict[str, GrammarEngine]:
    return engines()


@pytest.mark.parametrize("keyword", TRIALS)
def test_what_is_not_enforced_is_refused(opened: dict[str, GrammarEngine], keyword: str) -> None:
    for name, engine in opened.items():
        assert found(engine, TRIALS[keyword]) in ("enforced", "enforced too strictly", "refused"), name


def test_the_page_is_what_is_found(opened: dict[str, GrammarEngine]) -> None:
    assert PAGE.read_text().splitlines() == list(page(opened)), "write it again: python -m tests.guided.keywords"


def test_names_and_data_are_no_keywords() -> None:
    schema = {
        "properties": {"not": {"type": "null"}, "if": {"enum": [{"contains": 1}]}},
        "default": {"uniqueItems": True},
        "$defs": {"format": {"const": {"format": "x"}}},
    }
    assert list(unenforced(schema)) == []
    assert len(list(unenforced({"items": [{"properties": {"a": {"not": {}}}}]}))) == 1

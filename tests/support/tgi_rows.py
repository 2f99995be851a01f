"""The rows of Text Generation Inference's behaviour (3.3), each named where a test covers it.

`@tgi("1.2 top_k")` on a test, or `marks=tgi(...)` on one of its cases, says which rows it holds. What each row says
stands in `tgi_rows.toml`; `tgi_table.py` puts rows and tests together in docs/tgi-compatibility.md.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from mainspring.core.errors import unknown


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that TGI does."""

    name: str
    tgi: str
    here: str = ""
    """Why this server differs; empty where it does not."""


@dataclass(frozen=True, slots=True)
class Section:
    """Rows that belong together."""

    number: str
    title: str
    rows: tuple[Row, ...]


def _read() -> tuple[Section, ...]:
    sections = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    return tuple(
        Section(number, section["title"], tuple(Row(name, **row) for name, row in section["rows"].items()))
        for number, section in sections.items()
    )


SECTIONS = _read()
ROWS: tuple[str, ...] = tuple(f"{section.number} {row.name}" for section in SECTIONS for row in section.rows)
"""Every row, in order: the section's number and the row's name."""

_KNOWN = frozenset(ROWS)


def tgi(*rows: str) -> pytest.MarkDecorator:
    """The mark `tgi` with the rows that a test covers. Raises ValueError for a row that is not in `ROWS`."""
    for row in rows:
        if row not in _KNOWN:
            raise ValueError(unknown("row", row, ROWS))
    return pytest.mark.tgi(*rows)

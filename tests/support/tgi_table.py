"""`python -m tests.support.tgi_table > docs/tgi-compatibility.md`: TGI's rows and the tests that hold them."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from mainspring.server.tgi.flags import FOREIGN_FLAGS
from tests.support.tgi_rows import SECTIONS, Row, Section

_ROOT = Path(__file__).parent.parent.parent
_TESTS = _ROOT / "tests"
_FLAGS = "3"

_HEAD = """\
# Compatibility with Text Generation Inference

What TGI 3.3 does, what this server does where that differs and why, and the tests that hold it. A row without a remark
is the same here. `python -m tests.support.tgi_table` writes this page from the tests' marks, and a test fails while it
is out of date.
"""

Coverage = Mapping[str, list[str]]


class _Marks:
    """A pytest plugin that reads which rows each collected test covers."""

    def __init__(self) -> None:
        self.coverage: dict[str, list[str]] = defaultdict(list)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            test = item.nodeid.partition("[")[0].removeprefix("tests/")
            for mark in item.iter_markers("tgi"):
                for row in mark.args:
                    if test not in self.coverage[row]:
                        self.coverage[row].append(test)


def coverage() -> Coverage:
    """Tests by the row that they hold. Raises RuntimeError when they cannot be collected."""
    marks = _Marks()
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        # Only files with marks: to collect all would import torch.
        files = [str(path) for path in sorted(_TESTS.rglob("test_*.py")) if "tgi_rows import" in path.read_text()]
        # pytest loads Mainspring's own plugin, and whoever calls this may have imported Mainspring before.
        quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
        status = pytest.main(["--collect-only", "-q", *quiet, "-p", "no:cacheprovider", *files], plugins=[marks])
    if status:
        raise RuntimeError(output.getvalue())
    return marks.coverage


def bare_rows(covered: Coverage) -> list[str]:
    """Rows that neither a test holds nor a reason excuses."""
    return [
        f"{section.number} {row.name}"
        for section in SECTIONS
        for row in section.rows
        if not covered.get(f"{section.number} {row.name}") and not _here(section, row)
    ]


def page(covered: Coverage) -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_table(section, covered) for section in SECTIONS)])


def _table(section: Section, covered: Coverage) -> str:
    lines = [f"## {section.number} {section.title}", "", "| | TGI | here | tests |", "|---|---|---|---|"]
    for row in section.rows:
        tests = "<br>".join(f"`{test}`" for test in covered.get(f"{section.number} {row.name}", []))
        cells = [f"`{row.name}`" if section.number == _FLAGS else row.name, row.tgi, _here(section, row), tests]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _here(section: Section, row: Row) -> str:
    """The reason why the row differs; that of a flag without effect is what the command line says."""
    if section.number != _FLAGS or row.here:
        return row.here
    for flag in FOREIGN_FLAGS:
        if flag.name == row.name:
            return f"{'refused' if flag.refused else 'no effect'}: {flag.text}"
    return ""


def main() -> int:
    """Prints the page; names what is bare."""
    covered = coverage()
    print(page(covered), end="")
    for row in bare_rows(covered):
        print(f"no test and no reason: {row}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

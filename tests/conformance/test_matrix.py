"""docs/backends.md is what the kept reports say, and reports of this version's kit can be read."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mainspring.core.conformance.matrix import markdown, reports, rows
from mainspring.core.conformance.report import Finding, Report, as_json, from_json
from mainspring.core.plugins import load_plugins

ROOT = Path(__file__).parents[2]


def own_reports() -> dict[str, Report | None]:
    """Of the backends in this repository, whatever else is installed."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["mainspring"]
    plugins = load_plugins([EntryPoint(name, value, "mainspring") for name, value in declared.items()])
    return reports(plugins.backends.values())


def test_the_page_is_generated() -> None:
    page = (ROOT / "docs" / "backends.md").read_text()
    assert page == markdown(own_reports()), "run `mainspring backends --matrix --markdown > docs/backends.md`"


@pytest.mark.parametrize("name", ["cpu", "gaudi", "neuron", "sim"])
def test_backends_that_run_anywhere_have_a_report_that_passes(name: str) -> None:
    report = own_reports()[name]
    assert report is not None
    assert report.ok
    assert report.backend == name
    assert report.date


@pytest.mark.parametrize("name", ["gaudi", "neuron"])
def test_a_stand_in_s_report_says_so(name: str) -> None:
    report = own_reports()[name]
    assert report is not None
    assert "stand-in" in report.device
    assert report.level == "L2"


REPORT = Report(
    backend="abacus",
    device="Abacus",
    findings=(
        Finding(subject="rope", origin="native", cases=3),
        Finding(subject="sample", origin="falls back", cases=3),
        Finding(subject="collectives", origin="default", note="one device only, by its own word"),
    ),
    level="L2",
)


def test_a_cell_says_where_a_passed_check_s_subject_comes_from() -> None:
    found = {name: cells for name, *cells in rows({"abacus": REPORT, "other": None})}
    assert found["last passed level"] == ["L2", "unverified"]
    assert found["rope"] == ["native", ""]
    assert found["sample"] == ["reference", ""]
    assert found["collectives"] == ["not tried", ""]


def test_a_failed_report_passes_no_level() -> None:
    wrong = Finding(subject="rope", origin="native", cases=3, problems=("3 tokens: error 1.0",))
    failed = Report(backend="abacus", device="Abacus", findings=(wrong,), level="L5")
    found = {name: cells for name, *cells in rows({"abacus": failed})}
    assert found["last passed level"] == ["fails"]
    assert found["rope"] == ["fails"]


def test_a_report_survives_its_file() -> None:
    assert from_json(as_json(REPORT)) == REPORT

"""What came of the checks: a table for people, JSON for machines, and whether it was good enough."""

from __future__ import annotations

from typing import Literal

import msgspec
from rich import box
from rich.console import Console
from rich.table import Column, Table

Origin = Literal["native", "falls back", "default", "declared", "unchecked"]
"""native: the backend's own; falls back: the reference in the core; default: the contract's own method; declared: a
promise of the capabilities; unchecked: the kit has no check for it."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One call at one shape."""

    shape: str
    seconds: float
    """The quickest of several."""
    roofline: float
    """Bytes that the call cannot help but move, over what a plain copy on this device moves in that time."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One op, or one promise, over all its cases."""

    subject: str
    origin: Origin
    cases: int = 0
    error: float = 0.0
    """|result - reference| / (1 + |reference|), of the case that came nearest to its tolerance or past it."""
    tolerance: float = 0.0
    """Of that case."""
    reason: str = ""
    """Why the tolerance is what it is."""
    seconds: float = 0.0
    """Spent on the check, the reference included."""
    problems: tuple[str, ...] = ()
    """A sentence a failed case."""
    note: str = ""
    timing: Timing | None = None
    """How fast it is, where that was measured."""

    @property
    def ok(self) -> bool:
        """Whether every case passed."""
        return not self.problems


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All findings about one device."""

    backend: str
    device: str
    findings: tuple[Finding, ...]
    level: str = ""
    """How far a pass verifies it: what the backend declares for this device (`Capabilities.verified`)."""
    version: str = ""
    """Mainspring's."""
    torch: str = ""
    artifacts: str = ""
    """`Device.artifact_key`: driver, compiler and arch, as far as the backend says."""
    date: str = ""
    """Of the run, UTC."""

    @property
    def ok(self) -> bool:
        """Whether the backend conforms."""
        return all(finding.ok for finding in self.findings)

    def failed(self) -> list[str]:
        """Subjects that did not pass."""
        return [finding.subject for finding in self.findings if not finding.ok]


def from_json(text: str | bytes) -> Report:
    """A report that `as_json` wrote. Raises `msgspec.ValidationError` for anything else."""
    return msgspec.json.decode(text, type=Report)


def as_json(report: Report) -> str:
    """The report with its verdicts, indented."""
    document = msgspec.to_builtins(report)
    document["ok"] = report.ok
    for entry, finding in zip(document["findings"], report.findings, strict=True):
        entry["ok"] = finding.ok
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


SHOWN_PROBLEMS = 3


def print_report(report: Report, console: Console) -> None:
    """A table, then the first problems of each subject that failed."""
    timed = any(finding.timing for finding in report.findings)
    wide = [Column(header, no_wrap=True) for header in ("by", "cases", "error", "allowed", "")]
    pace_columns = ("a call", "of a copy's speed") if timed else ()
    table = Table("check", *wide, *pace_columns, box=box.SIMPLE_HEAD)
    for finding in report.findings:
        numbers, pace = _numbers(finding), _pace(finding) if timed else ()
        table.add_row(finding.subject, finding.origin, *numbers, _verdict(finding), *pace)
    console.print(f"{report.backend}: {report.device}", highlight=False)
    console.print(table)
    for finding in report.findings:
        if finding.note:
            console.print(f"[yellow]{finding.subject}[/]: {finding.note}", highlight=False, soft_wrap=True)
    for finding in report.findings:
        for problem in finding.problems[:SHOWN_PROBLEMS]:
            console.print(f"[red]{finding.subject}[/]: {problem}", highlight=False, soft_wrap=True)
        if (more := len(finding.problems) - SHOWN_PROBLEMS) > 0:
            console.print(f"[red]{finding.subject}[/]: and {more} more", highlight=False)
    failed = report.failed()
    console.print(f"[red]does not conform: {', '.join(failed)}[/]" if failed else "[green]conforms[/]", highlight=False)


def _numbers(finding: Finding) -> tuple[str, str, str]:
    if not finding.cases:
        return "", "", ""
    return str(finding.cases), f"{finding.error:.1e}", f"{finding.tolerance:.1e}"


def _pace(finding: Finding) -> tuple[str, str]:
    timing = finding.timing
    return ("", "") if timing is None else (f"{timing.seconds * 1e6:.1f} µs", f"{timing.roofline:.0%}")


def _verdict(finding: Finding) -> str:
    if finding.problems:
        return f"[red]fails {len(finding.problems)}[/]"
    if not finding.cases:
        return "[yellow]not tried[/]"
    return "[green]passes[/]"

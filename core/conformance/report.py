"""What came of the checks: a table for people, JSON for machines, and whether it was good enough."""

from __future__ import annotations

from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table

Origin = Literal["native", "falls back", "default", "declared", "unchecked"]
"""native: the backend's own; falls back: the reference in the core; default: the contract's own method; declared: a
promise of the capabilities; unchecked: the kit has no check for it."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One op, or one promise, over all its cases."""

    subject: str
    origin: Origin
    cases: int = 0
    error: float = 0.0
    """|result - reference| / (1 + |reference|), of the case that came nearest to its tolerance or past it."""
    tolerance: float = 0.0
    """Of that case."""
    seconds: float = 0.0
    """Spent on the check, the reference included."""
    problems: tuple[str, ...] = ()
    """A sentence a failed case."""
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether every case passed."""
        return not self.problems


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All findings about one device."""

    backend: str
    device: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the backend conforms."""
        return all(finding.ok for finding in self.findings)

    def failed(self) -> list[str]:
        """Subjects that did not pass."""
        return [finding.subject for finding in self.findings if not finding.ok]


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
    table = Table("check", "by", "cases", "error", "allowed", "seconds", "")
    for finding in report.findings:
        table.add_row(finding.subject, finding.origin, *_numbers(finding), _verdict(finding))
    console.print(f"{report.backend}: {report.device}", highlight=False)
    console.print(table)
    for finding in report.findings:
        for problem in finding.problems[:SHOWN_PROBLEMS]:
            console.print(f"[red]{finding.subject}[/]: {problem}", highlight=False, soft_wrap=True)
        if (more := len(finding.problems) - SHOWN_PROBLEMS) > 0:
            console.print(f"[red]{finding.subject}[/]: and {more} more", highlight=False)
    failed = report.failed()
    console.print(f"[red]does not conform: {', '.join(failed)}[/]" if failed else "[green]conforms[/]", highlight=False)


def _numbers(finding: Finding) -> tuple[str, str, str, str]:
    if not finding.cases:
        return "", "", "", ""
    return str(finding.cases), f"{finding.error:.1e}", f"{finding.tolerance:.1e}", f"{finding.seconds:.2f}"


def _verdict(finding: Finding) -> str:
    if finding.problems:
        return f"[red]fails {len(finding.problems)}[/]"
    if not finding.cases:
        return f"[yellow]{finding.note or 'not tried'}[/]"
    return f"[green]passes[/] {finding.note}".strip()

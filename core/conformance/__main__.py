"""python -m mainspring.core.conformance BACKEND [--device INDEX] [--only CHECK]... [--time] [--json] [--save FILE]

BACKEND is a plugin's name, or `module:Class` before there is a plugin. Exits 0 when it conforms, 1 when it does not, 71
when it cannot be opened here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from mainspring.core.conformance.checks import check_backend
from mainspring.core.conformance.find import find_backend
from mainspring.core.conformance.report import as_json, print_report
from mainspring.core.errors import StartupError

WIDTH = 120
"""Of the table, where no terminal says how wide it may be."""


def main(arguments: Sequence[str]) -> int:
    """Checks one backend and prints its report."""
    parser = argparse.ArgumentParser(prog="python -m mainspring.core.conformance", description="Checks a backend.")
    parser.add_argument("backend", help="as --backend takes it, or module:Class")
    parser.add_argument("--device", type=int, default=0, help="index among the backend's devices")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--only", action="append", default=[], metavar="CHECK", help="this check; may be repeated")
    parser.add_argument("--time", action="store_true", help="also how fast ops are, and how near to what memory allows")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the report as JSON, passed or not")
    given = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        backend = find_backend(given.backend)
        with Console(stderr=True).status("") as status:
            report = check_backend(
                backend,
                given.device,
                address=given.backend,
                only=given.only,
                timed=given.time,
                progress=lambda subject, done, total: status.update(f"{done + 1} of {total}: {subject}"),
            )
    except StartupError as error:
        for reason in error.reasons:
            Console(stderr=True).print(f"[red]cannot check[/]: {escape(reason)}", soft_wrap=True, highlight=False)
        return 71
    if given.save is not None:
        given.save.write_text(as_json(report) + "\n")
    if given.json:
        sys.stdout.write(as_json(report) + "\n")
    else:
        print_report(report, console)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""python -m mainspring.core.conformance BACKEND [--device INDEX] [--json]

Exits 0 when the backend conforms, 1 when it does not, 71 when it cannot be opened here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from mainspring.core.conformance.checks import check_backend
from mainspring.core.conformance.report import as_json, print_report
from mainspring.core.errors import StartupError
from mainspring.core.plugins import load_plugins


def main(arguments: Sequence[str]) -> int:
    """Checks one backend and prints its report."""
    parser = argparse.ArgumentParser(prog="python -m mainspring.core.conformance", description="Checks a backend.")
    parser.add_argument("backend", help="as --backend takes it")
    parser.add_argument("--device", type=int, default=0, help="index among the backend's devices")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = parser.parse_args(arguments)
    console = Console()
    try:
        report = check_backend(load_plugins().get(given.backend), given.device)
    except StartupError as error:
        for reason in error.reasons:
            Console(stderr=True).print(f"[red]cannot check[/]: {escape(reason)}", soft_wrap=True, highlight=False)
        return 71
    if given.json:
        sys.stdout.write(as_json(report) + "\n")
    else:
        print_report(report, console)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

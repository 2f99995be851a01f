"""Results as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

import mainspring
from mainspring.server.bench.summary import Distribution, Summary


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What a number is worth nothing without. Of the machine that measures, which need not be the one that serves."""

    command: str
    time: str
    mainspring: str
    python: str
    system: str
    processors: int


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that was measured."""

    name: str
    url: str
    api: str
    model: str
    about: dict[str, Any]
    """What it says of itself: its answers to `/info` and `/version`, where it has them."""


class ServeRun(msgspec.Struct, frozen=True, kw_only=True):
    """One load against one peer."""

    peer: Peer
    rate: str
    """When requests came: `4/s`, `1 to 16/s`, `all at once`."""
    summary: Summary
    samples: dict[str, list[float]]
    """For plots: TTFT, TPOT, ITL and E2E in milliseconds, sorted."""

    @property
    def label(self) -> str:
        """Its name in tables and plots."""
        return f"{self.peer.name}, {self.rate}"


def environment() -> Environment:
    """Of this process."""
    return Environment(
        command=shlex.join(["mainspring", *sys.argv[1:]]),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        mainspring=mainspring.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processors=os.cpu_count() or 1,
    )


def print_runs(console: Console, runs: Sequence[ServeRun]) -> None:
    """One column a run."""
    table = Table(title="mainspring bench serve", title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(run.label, justify="right")
    for name, cell in _ROWS.items():
        table.add_row(name, *(cell(run.summary) for run in runs))
    for measure in ("ttft", "tpot", "itl", "e2e"):
        table.add_section()
        for statistic in ("mean", "p50", "p90", "p99"):
            cells = [_milliseconds(getattr(run.summary, measure), statistic) for run in runs]
            table.add_row(f"{measure.upper()} {statistic}, ms", *cells)
    console.print(table)
    for remark in _all_remarks(runs):
        console.print(remark, style="yellow", markup=False)


def markdown(runs: Sequence[ServeRun]) -> str:
    """One row a run, grouped by when its requests came, for pages."""
    lines = ["| requests | server | " + " | ".join(_COLUMNS) + " |", "|---|---|" + "--:|" * len(_COLUMNS)]
    for rate in dict.fromkeys(run.rate for run in runs):
        for run in runs:
            if run.rate == rate:
                cells = [cell(run.summary) for cell in _COLUMNS.values()]
                lines.append(f"| {rate} | {run.peer.name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {remark}" for remark in _all_remarks(runs))]).rstrip() + "\n"


def print_rows(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Names and values."""
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def _all_remarks(runs: Sequence[ServeRun]) -> list[str]:
    """What a reader of the numbers must know, each once."""
    return list(dict.fromkeys(remark for run in runs for remark in _remarks(run)))


def _remarks(run: ServeRun) -> list[str]:
    remarks = [f"{run.label}: {number} requests failed: {text}" for text, number in run.summary.errors.items()]
    if not run.summary.counted and run.summary.completed:
        remarks.append(f"{run.peer.name}: the server tells no numbers of tokens; an event counts as one")
    return remarks


def _good(summary: Summary) -> str:
    if summary.goodput is None or summary.good_share is None:
        return "-"
    return f"{summary.goodput:.2f} ({100 * summary.good_share:.0f} %)"


_ROWS: dict[str, Callable[[Summary], str]] = {
    "requests (completed)": lambda summary: f"{summary.requests} ({summary.completed})",
    "seconds": lambda summary: f"{summary.seconds:.2f}",
    "requests/s": lambda summary: f"{summary.requests_per_second:.2f}",
    "goodput, requests/s": _good,
    "output tokens/s": lambda summary: f"{summary.output_tokens_per_second:.1f}",
    "total tokens/s": lambda summary: f"{summary.total_tokens_per_second:.1f}",
    "prompt tokens (cached)": lambda summary: f"{summary.prompt_tokens} ({summary.cached_tokens})",
    "output tokens": lambda summary: str(summary.output_tokens),
    "tokens an event": lambda summary: f"{summary.tokens_per_event:.2f}",
    "latest send, ms": lambda summary: f"{summary.latest_send:.1f}",
}


def _milliseconds(found: Distribution | None, statistic: str) -> str:
    return "-" if found is None else f"{getattr(found, statistic):.1f}"


def _column(measure: str, statistic: str) -> Callable[[Summary], str]:
    return lambda summary: _milliseconds(getattr(summary, measure), statistic)


_COLUMNS: dict[str, Callable[[Summary], str]] = {
    "completed": lambda summary: f"{summary.completed} of {summary.requests}",
    "requests/s": _ROWS["requests/s"],
    "output tokens/s": _ROWS["output tokens/s"],
    "goodput, requests/s": _ROWS["goodput, requests/s"],
    **{
        f"{measure.upper()} {statistic}, ms": _column(measure, statistic)
        for measure in ("ttft", "tpot", "e2e")
        for statistic in ("p50", "p99")
    },
    "ITL p99, ms": _column("itl", "p99"),
}

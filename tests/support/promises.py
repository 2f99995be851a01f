"""A pytest plugin: which test holds which promise, and the page that says so.

`@pytest.mark.promise("P6")` names the promise; the fixture `measured` records what was found. With `--promises FILE`
the run writes the table `docs/promises.md`:

    python -m pytest tests -m promise --promises docs/promises.md
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

Measured = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Promise:
    """What is promised, and the figure that makes it a promise."""

    text: str
    figure: str


PROMISES = {
    "F1": Promise("An engine that dies is seen, and all its requests are answered", "an error each, within 1 s"),
    "F2": Promise("A server whose engine died never exits as if all were well", "exit code 70, a late SIGTERM or not"),
    "F3": Promise("An engine that lives and hangs is seen", "its announced bound + 1 s; a legal slow step is no alarm"),
    "F4": Promise("No engine outlives its server and keeps the accelerator", "gone within 3 s"),
    "F5": Promise("A stop ends, whatever hangs", "drain time + 3 s"),
    "F6": Promise("SIGTERM cuts no stream", "all finish or get an error; exit within drain time + 3 s"),
    "F7": Promise("A client that leaves stops costing", "1,000 drops leave 0 running, 0 blocks"),
    "F8": Promise("Blocks of the KV cache are not lost", "0 used when idle; books balance after every step"),
    "F13": Promise("A grammar stops nobody", "read in a process of its own; refused, or followed to its end"),
    "F14": Promise("Streamed text is the text", "deltas join to the decode for any split; linear time"),
    "F15": Promise("Tokenizing stops nobody", "event loop lag p99.9 <= 50 ms under 2 MB bodies"),
    "F16": Promise("Host memory does not grow", "<= 1 MiB in 10,000 requests"),
    "F17": Promise(
        "A client that does not read harms itself alone", "1,000 of them: memory bounded, others unaffected"
    ),
    "F18": Promise("Servers that start at once do not take each other's ports", "0 collisions"),
    "F19": Promise("A slow start is not taken for a dead server", "listens before it loads, and names the phase"),
    "F22": Promise("A hang leaves a record", "the last steps and all stacks in the log"),
    "F23": Promise("Admission is bounded", "429 with Retry-After, by requests and by tokens"),
    "F24": Promise("No request leaks into another", "0 bytes differ"),
    "P1": Promise("A dead child is seen, all its requests answered", "<= 1 s, 0 hung sockets"),
    "P2": Promise("A hung step is seen", "<= its bound + 1 s, 0 false alarms"),
    "P3": Promise("Nothing outlives the server", "0 processes, 0 sockets, 0 shared memory after 3 s"),
    "P4": Promise("The exit code tells the truth", "0 a stop that was asked for, 70 engine, 71 start-up, 72 drain"),
    "P5": Promise("Drain", "not ready <= 100 ms after SIGTERM; running ones finish; exit <= drain time + 3 s"),
    "P6": Promise("An abort frees", "<= 2 steps after the client left"),
    "P7": Promise("No block leaks", "0 used when idle after any operations"),
    "P8": Promise("Everyone advances", "<= 4 preemptions each; the oldest always runs"),
    "P9": Promise("Isolation: company changes nobody's bytes", "0 differences"),
    "P10": Promise("One bad request harms no other", "0 engine restarts, 0 answers of 5xx"),
    "P11": Promise("The event loop answers", "lag p99.9 <= 50 ms under 2 MB bodies"),
    "P12": Promise("Overload", "goodput >= 95 % of peak at 10x; 429 p99 < 50 ms"),
    "P13": Promise("Memory is flat", "<= 1 MiB in 10,000 requests; descriptors and threads flat"),
    "P14": Promise("Slow clients", "<= 256 KiB each; others' ITL p99 + <= 5 %"),
    "P16": Promise("No pickle, no eval, no torch.load", "0 uses, 0 objects unpickled"),
    "P17": Promise("Safetensors only, no code from a model", "0 bytes of it run"),
    "P18": Promise("Every route asks for the key but the probes", "401, unknown routes too"),
    "P19": Promise("Limits", "headers 16 KiB, body, depth, counts; slow senders are given up"),
    "P20": Promise("Grammars are read within bounds", "2 s, 512 MiB, 64 KiB, depth 32, 64 MiB kept"),
    "P23": Promise("Errors and logs tell nothing", "0 paths, keys, prompts, addresses"),
    "P24": Promise("CORS is off", "no access-control header unless asked for"),
    "P25": Promise("Loopback unless told otherwise", "refuses other addresses without a key"),
    "P28": Promise("Start-up", "listens <= 2 s; ready only after a forward"),
}


@dataclass(slots=True)
class _Found:
    """One test that holds promises."""

    test: str
    passed: bool = False
    figures: list[str] = field(default_factory=list)


class Record:
    """What this run has found, by promise."""

    def __init__(self) -> None:
        self.by_promise: dict[str, list[_Found]] = {name: [] for name in PROMISES}

    def write(self, page: Path) -> None:
        """The table; a promise that no test of this run holds says so."""
        rows = [_row(name, promise, self.by_promise[name]) for name, promise in PROMISES.items()]
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join([*_head(), *rows, ""]), encoding="utf-8")


_KEY = pytest.StashKey[Record]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("promises")
    group.addoption("--promises", type=Path, metavar="FILE", help="write the table of promises and what was measured")
    group.addoption("--soak-requests", type=int, default=5000, help="requests of the memory test, after its warm-up")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = Record()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Records a figure for the promises that the test is marked with."""
    figures: list[str] = []
    request.node.user_properties.append(("measured", figures))
    return figures.append


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield
    if report.when == "call":
        figures = [text for name, texts in item.user_properties if name == "measured" for text in texts]
        for mark in item.iter_markers("promise"):
            for name in mark.args:
                test = f"{item.path.relative_to(item.config.rootpath)}::{getattr(item, 'originalname', item.name)}"
                item.config.stash[_KEY].by_promise[name].append(_Found(test, report.passed, figures))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    page: Path | None = session.config.getoption("--promises")
    if page is not None:
        session.config.stash[_KEY].write(page)


def _head() -> list[str]:
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return [
        "# Promises",
        "",
        "What the server promises when things go wrong, and the test that proves it. F are failure modes, P promises.",
        "Generated by a test run, on a machine that other work shared (" + machine + "), with",
        "`python -m pytest tests -m promise --promises docs/promises.md`.",
        "Where a figure is missed the cell says `over the figure`.",
        "",
        "| | promise | figure asked | measured | tests |",
        "|---|---|---|---|---|",
    ]


def _row(name: str, promise: Promise, found: list[_Found]) -> str:
    figures = list(dict.fromkeys(figure for entry in found for figure in entry.figures))
    measured = "; ".join(figures) or ("holds" if found else "not measured in this run")
    if not all(entry.passed for entry in found):
        measured = f"**does not hold**; {measured}"
    tests = "<br>".join(f"`{test}`" for test in dict.fromkeys(entry.test for entry in found))
    return f"| {name} | {promise.text} | {promise.figure} | {measured} | {tests} |"

"""Results as a picture: for each measure, which share of requests took at most so long. Needs the extra `bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mainspring.core.errors import StartupError
from mainspring.server.bench.report import ServeRun

_PANELS = {
    "ttft": "time to first token (TTFT)",
    "tpot": "time per output token (TPOT)",
    "itl": "inter-token latency (ITL)",
    "e2e": "end to end (E2E)",
}
_LEAST = 0.1
"""Milliseconds; what is shorter is drawn here, for a logarithm has no zero."""


def require_plots() -> None:
    """Raises StartupError where plots cannot be drawn; to be called before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise StartupError("plots need matplotlib; install it with `pip install 'mainspring[bench]'`") from error


def save_plot(runs: Sequence[ServeRun], file: Path) -> None:
    """A row of panels for each load with a line a peer, or one row with a line a load where there is one peer."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = _rows(runs)
    figure = Figure(figsize=(16, 1.0 + 3.4 * len(rows)), layout="constrained")
    axes: Any = figure.subplots(len(rows), len(_PANELS), squeeze=False, sharex="col")
    for panels, (title, lines) in zip(axes, rows.items(), strict=True):
        for panel, measure in zip(panels, _PANELS, strict=True):
            _draw(panel, measure, lines)
        panels[0].set_ylabel(f"{title}\nshare of requests" if title else "share of requests")
        panels[2].set_ylabel("share of gaps")
    for panel, text in zip(axes[0], _PANELS.values(), strict=True):
        panel.set_title(text)
    for panel in axes[-1]:
        panel.set_xlabel("milliseconds, logarithmic")
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        panel.xaxis.set_major_formatter(lambda value, position: f"{value:g}" if value < 1000 else f"{value / 1000:g}k")
        panel.xaxis.set_minor_formatter(NullFormatter())
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6))
    figure.savefig(file, dpi=110)


def _rows(runs: Sequence[ServeRun]) -> dict[str, dict[str, ServeRun]]:
    """Runs by the row's title and the line's name."""
    if len({run.peer.name for run in runs}) == 1:
        return {"": {run.rate: run for run in runs}}
    rates = dict.fromkeys(run.rate for run in runs)
    return {rate: {run.peer.name: run for run in runs if run.rate == rate} for rate in rates}


def _draw(panel: Any, measure: str, lines: dict[str, ServeRun]) -> None:
    for name, run in lines.items():
        values = [max(value, _LEAST) for value in run.samples[measure]]
        # A run without values keeps its colour and its place in the legend. The first value is drawn from share 0, so
        # that a single one shows too.
        shares = [(number + 1) / len(values) for number in range(len(values))]
        panel.step([*values[:1], *values], [0.0, *shares] if values else [], where="post", label=name)
    panel.set_xscale("log")
    panel.set_ylim(0, 1.02)
    panel.grid(alpha=0.3)

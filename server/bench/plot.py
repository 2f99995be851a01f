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


def require_plots() -> None:
    """Raises StartupError where plots cannot be drawn; to be called before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise StartupError("plots need matplotlib; install it with `pip install 'mainspring[bench]'`") from error


def save_plot(runs: Sequence[ServeRun], file: Path) -> None:
    """Four panels with a line a run, as PNG or what the file's ending says."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    axes: Any = figure.subplots(2, 2)
    for panel, (measure, title) in zip(axes.flat, _PANELS.items(), strict=True):
        for run in runs:
            values = run.samples[measure]
            if values:
                # The first value is drawn from share 0, so that a single one shows too.
                shares = [(number + 1) / len(values) for number in range(len(values))]
                panel.step([values[0], *values], [0.0, *shares], where="post", label=run.label)
        panel.set_title(title)
        panel.set_xlabel("milliseconds")
        panel.set_ylabel("share of " + ("gaps" if measure == "itl" else "requests"))
        panel.set_ylim(0, 1.02)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    axes.flat[0].legend()
    figure.savefig(file, dpi=120)

"""Start-up progress for the person at the terminal: a bar a phase. Silent where nobody watches."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mainspring.core import request


class ProgressBars:
    """Draws `Progress` messages as they come."""

    def __init__(self, stream: TextIO) -> None:
        self._shows = stream.isatty()
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=Console(file=stream)
        )
        self._tasks: dict[str, TaskID] = {}

    def show(self, progress: request.Progress) -> None:
        """One step forward in a phase; the first one draws its bar."""
        if not self._shows:
            return
        self._bars.start()
        if progress.phase not in self._tasks:
            self._tasks[progress.phase] = self._bars.add_task(progress.phase, total=progress.total or None)
        self._bars.update(self._tasks[progress.phase], completed=progress.done, total=progress.total or None)

    def close(self) -> None:
        """Loading has ended, well or not: the screen belongs to others again."""
        if self._shows:
            self._bars.stop()
        self._shows = False

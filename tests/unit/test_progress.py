"""Progress bars: on a terminal only, and gone when loading ends."""

from __future__ import annotations

import io

import pytest

from mainspring.core.request import Progress
from mainspring.server.progress import ProgressBars

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_leave_the_screen_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    bars = ProgressBars(screen)
    bars.show(Progress("loading weights", 1, 3))
    bars.show(Progress("warming up", 0, 0))
    assert "loading weights" in screen.getvalue()
    assert screen.getvalue().count(HIDE) == 1
    bars.close()
    drawn = screen.getvalue()
    assert drawn.rstrip("\n").endswith(SHOW)
    bars.show(Progress("warming up", 1, 2))
    bars.close()
    assert screen.getvalue() == drawn


def test_nobody_watches() -> None:
    file = io.StringIO()
    bars = ProgressBars(file)
    bars.show(Progress("loading weights", 1, 3))
    bars.close()
    assert file.getvalue() == ""

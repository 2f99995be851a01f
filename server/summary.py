"""What the operator reads when the server is ready: a panel on a terminal, one line anywhere else."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mainspring.core.request import Ready

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Tells `stream` what is served where."""

    url: str
    model_id: str
    needs_key: bool
    notes: Sequence[str]
    """What the operator asked for and does not get, one sentence each."""
    stream: TextIO

    def show(self, ready: Ready, seconds: float) -> None:
        """Once, when the model is ready after `seconds`."""
        if self.stream.isatty():
            self._panel(ready, seconds)
        else:
            self._line(ready, seconds)

    def _line(self, ready: Ready, seconds: float) -> None:
        _log.info(
            "serving %s at %s on %s (%s, %s) after %.1f s; context %d tokens, KV cache %d tokens%s",
            *(self.model_id, self.url, ready.device, ready.backend, ready.dtype, seconds, ready.max_length),
            ready.num_blocks * ready.block_size,
            "".join(f"; {note}" for note in (*ready.notes, *self.notes)),
        )

    def _panel(self, ready: Ready, seconds: float) -> None:
        rows = {
            "model": f"{self.model_id}, {ready.dtype}",
            "backend": f"{ready.backend}: {ready.device}" + "".join(f"\n{note}" for note in ready.notes),
            "context": f"{ready.max_length:,} tokens",
            "KV cache": f"{ready.num_blocks:,} blocks of {ready.block_size}, {ready.max_sequences} sequences at once",
            "routes": f"{self.url}/docs",
            "notes": "\n".join(self.notes),
        }
        table = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            if value:
                table.add_row(Text(name, style="dim"), Text(value))
        console = Console(file=self.stream)
        console.print(Panel(table, title=f"ready after {seconds:.1f} s at {self.url}", expand=False))
        console.print(self._curl(), soft_wrap=True, highlight=False, markup=False)

    def _curl(self) -> str:
        body = json.dumps({"messages": [{"role": "user", "content": "Hello!"}], "stream": True})
        key = "-H 'Authorization: Bearer KEY' " if self.needs_key else ""
        return f"curl {self.url}/v1/chat/completions {key}-H 'Content-Type: application/json' -d '{body}'"

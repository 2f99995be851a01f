"""The snippets of docs/clients.md, as they stand but for the address of the server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "clients.md"
NODE = Path(__file__).parent / "node"
SNIPPETS: list[tuple[str, str]] = re.findall(
    rf"<!-- environment: {os.environ.get('CLIENTS_ENVIRONMENT')} -->\n```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL
)


@pytest.mark.parametrize(("language", "code"), SNIPPETS)
def test_snippet(text_server: str, language: str, code: str) -> None:
    assert "http://127.0.0.1:3000" in code
    command = [sys.executable, "-c"] if language == "python" else ["node", "--input-type=module", "-e"]
    code = code.replace("http://127.0.0.1:3000", text_server)
    ended = subprocess.run([*command, code], cwd=NODE, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "Paris" in ended.stdout

"""aiperf, a load generator: a run to its end on each OpenAI route, with nothing failed and the server's counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REQUESTS = 20
OUTPUT_TOKENS = 20


def profile(directory: Path, server: str, *options: str) -> dict[str, Any]:
    """Runs `aiperf profile` and returns what it exports."""
    load = ["--concurrency", "4", "--request-count", str(REQUESTS), "--isl", "50", "--osl", str(OUTPUT_TOKENS)]
    command = [str(Path(sys.executable).with_name("aiperf")), "profile", "--url", server, *load, *options]
    command += ["--use-server-token-count", "--ui", "none", "--artifact-dir", str(directory)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout[-3000:]
    exported: dict[str, Any] = json.loads((directory / "profile_export_aiperf.json").read_text())
    return exported


@pytest.mark.parametrize(
    "options",
    [("--endpoint-type", "chat", "--streaming"), ("--endpoint-type", "completions")],
    ids=["chat, streamed", "completions"],
)
def test_a_run_ends_well(
    tmp_path: Path, server: str, model_id: str, tokenizer_directory: Path, options: tuple[str, ...]
) -> None:
    tokenizer = ("--tokenizer", str(tokenizer_directory))
    exported = profile(tmp_path, server, "--model", model_id, *tokenizer, *options)
    assert exported["request_count"]["avg"] == REQUESTS
    assert "error_request_count" not in exported
    assert exported["output_sequence_length"]["avg"] == OUTPUT_TOKENS
    assert ("time_to_first_token" in exported) == ("--streaming" in options)


def test_it_reads_the_server_s_metrics(tmp_path: Path, server: str, model_id: str, tokenizer_directory: Path) -> None:
    profile(tmp_path, server, "--model", model_id, "--tokenizer", str(tokenizer_directory), "--endpoint-type", "chat")
    exported = (tmp_path / "server_metrics_export.json").read_text()
    assert "mainspring_generation_tokens" in exported
    assert "tgi_request_duration" in exported

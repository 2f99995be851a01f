"""guidellm, a load generator: runs to their end on each OpenAI route, with nothing failed and the server's counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REQUESTS = 20
OUTPUT_TOKENS = 20


def benchmark(directory: Path, server: str, tokenizer: Path, route: str, profile: str) -> dict[str, Any]:
    """Runs `guidellm run` and returns what it writes of its one benchmark."""
    report = directory / "report.json"
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console-interactive"]
    command += ["--backend", f"kind=openai_http,target={server},request_format={route}"]
    command += ["--profile", profile, "--constraint", f"kind=max_requests,count={REQUESTS}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={tokenizer}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens=50,output_tokens={OUTPUT_TOKENS}"]
    command += ["--output", f"kind=json,path={report}"]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
    (found,) = json.loads(report.read_text())["benchmarks"]
    run: dict[str, Any] = found
    return run


@pytest.mark.parametrize(
    ("route", "profile"),
    [
        ("/v1/chat/completions", "kind=concurrent,streams=4"),
        ("/v1/completions", "kind=poisson,rate=50"),
    ],
    ids=["chat", "completions"],
)
def test_a_run_ends_well(tmp_path: Path, server: str, tokenizer_directory: Path, route: str, profile: str) -> None:
    run = benchmark(tmp_path, server, tokenizer_directory, route, profile)
    assert run["metrics"]["request_totals"] == {
        "successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS,
    }  # fmt: skip
    output_tokens = run["metrics"]["output_token_count"]["successful"]
    assert (output_tokens["min"], output_tokens["max"]) == (OUTPUT_TOKENS, OUTPUT_TOKENS)
    assert run["metrics"]["time_to_first_token_ms"]["successful"]["mean"] > 0

"""Schemathesis over the server's own OpenAPI document: nothing that it invents makes the server fail or surprises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@pytest.mark.timeout(600)
def test_no_server_error_and_nothing_undocumented(server: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{server}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing", "--max-examples", "5", "--workers", "1"]
    # Its inputs are the same in every run. Its own warnings are about how many of them are refused.
    command += ["--seed", "1"]
    command += ["--suppress-health-check", "all", "--warnings", "off"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580)
    assert ended.returncode == 0, ended.stdout[-5000:]

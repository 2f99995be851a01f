"""Accelerators that are asked for and not there: one sentence that says what to install, at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import placeholders
from tests.support.tiny_models import CASES, build, save

pytestmark = pytest.mark.alone

COMMAND = [sys.executable, "-m", "mainspring.server.cli"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(build(CASES["llama"].config()), tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def placeholder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    placeholders.install(folder)
    return folder


def run(*arguments: str, path: Path | None = None) -> tuple[int, str, float]:
    """Exit code, all that was said on one line, and the seconds of the quickest of three."""
    paths = [str(path)] if path else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        ended = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=env)
        seconds.append(time.perf_counter() - began)
    return ended.returncode, " ".join((ended.stdout + ended.stderr).split()), min(seconds)


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize(("backend", "package"), [("gaudi", "habana-torch-plugin"), ("neuron", "torch-neuronx")])
def test_what_to_install_is_said_at_once(command: str, backend: str, package: str, model: str) -> None:
    code, said, seconds = run(command, model, "--backend", backend)
    assert code == 71
    assert f"backend '{backend}' is unavailable" in said
    assert package in said
    assert "Traceback" not in said
    assert seconds < 1.0


@pytest.mark.parametrize("command", ["check", "serve"])
def test_placeholders_are_told_from_software(command: str, model: str, placeholder_path: Path) -> None:
    code, said, seconds = run(command, model, "--backend", "neuron", path=placeholder_path)
    assert code == 71
    assert placeholders.SAYS in said
    assert "AWS's own index" in said
    assert seconds < 1.0

"""The kit as a pytest plugin, in a run of its own, as a backend's author has it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGIN = "mainspring.core.conformance.pytest_plugin"


def pytest_in(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a folder that knows nothing of this repository's own settings."""
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    # Where this version is installed its entry point loads the plugin, which may be loaded once.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:mainspring_conformance",
        "-p",
        PLUGIN,
        "-p",
        "no:cacheprovider",
    ]
    return subprocess.run(
        [*command, "-rs", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_each_check_is_a_test_and_a_failure_says_what_is_wrong(tmp_path: Path) -> None:
    backend = "tests.conformance.broken_backends:NegativeMemory"
    (tmp_path / "pyproject.toml").write_text(f'[tool.pytest.ini_options]\nmainspring_conformance = ["{backend}"]\n')
    done = pytest_in(tmp_path, "-k", "memory or rms_norm or swap_blocks or past")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert "memory and events (native) does not conform:" in done.stdout
    assert "2,147,483,648 bytes of 1,073,741,824 are free" in done.stdout
    assert "is tried where 3 times that are free" in done.stdout, "what was not tried says why"


def test_checks_stand_beside_a_project_s_own_tests(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_rope_of_mine():\n    pass\n")
    done = pytest_in(tmp_path, "--conformance", "tests.conformance.broken_backends:Sound", "-k", "rope", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "test_rope_of_mine" in done.stdout


def test_an_unknown_backend_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_it():\n    pass\n")
    done = pytest_in(tmp_path, "--conformance", "cpuu")
    assert done.returncode == 4
    assert "did you mean 'cpu'" in done.stdout + done.stderr


def test_the_entry_point_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert declared == {"mainspring_conformance": PLUGIN}
    assert callable(import_module(PLUGIN).pytest_addoption)

"""The example backend, installed into a fresh environment as a user would: found, conforming, serving."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import pytest

from tests.support.live_server import live_server

EXAMPLE = Path(__file__).parents[2] / "examples" / "backend_plugin"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's interpreter. It sees Mainspring and its dependencies as they are installed here, so that
    nothing but the plugin itself has to be installed.
    """
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    (site / "mainspring_and_its_dependencies.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    copy = shutil.copytree(EXAMPLE, home.parent / "backend_plugin")  # building leaves files beside the source
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(copy)], check=True)
    return python


def mainspring(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "mainspring.server.cli", *arguments], capture_output=True, text=True, timeout=240, check=False
    )


def test_it_is_found_by_its_entry_point(python: Path) -> None:
    listed = mainspring(python, "backends")
    assert listed.returncode == 0, listed.stderr
    assert "abacus" in listed.stdout
    assert (
        "abacus"
        not in subprocess.run(
            [sys.executable, "-m", "mainspring.server.cli", "backends"], capture_output=True, text=True, check=True
        ).stdout
    ), "the plugin must not leak into the environment that the tests run in"


def test_it_conforms(python: Path) -> None:
    checked = mainspring(python, "conformance", "abacus")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "conforms" in checked.stdout


def test_it_serves(python: Path, tmp_path: Path) -> None:
    with live_server("demo", tmp_path / "log", "--backend", "abacus", python=str(python)) as server:
        request = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 4}}
        answer = httpx.post(f"{server.url}/generate", json=request, timeout=60)
        assert "Paris" in answer.json()["generated_text"]
        assert httpx.get(f"{server.url}/info").json()["model_device_type"] == "abacus"
    assert server.process.returncode == 0

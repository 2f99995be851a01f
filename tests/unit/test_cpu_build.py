"""Compiling the CPU backend's kernels: what is cached and trusted, and what happens without a compiler."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mainspring.backends.cpu import CpuBackend
from mainspring.backends.cpu.native.build import CannotBuildError, build
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError
from mainspring.core.ops import Ops, resolve

COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo "$0 1.0" && exit 0
{work}
"""
WORKING = 'echo compiled >> "{log}"; while [ "$1" != -o ]; do shift; done; echo code > "$2"'


def compiler(monkeypatch: pytest.MonkeyPatch, directory: Path, work: str) -> None:
    """Makes the only C++ compiler in the search path one that does `work`."""
    directory.mkdir()
    program = directory / "c++"
    program.write_text(COMPILER.format(work=work))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def test_compiles_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "log"
    compiler(monkeypatch, tmp_path / "bin", WORKING.format(log=log))
    library = build("one", tmp_path / "cache")
    assert build("one", tmp_path / "cache") == library
    assert log.read_text().split() == ["compiled"]
    assert library.read_text() == "code\n"
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    assert library.parent.stat().st_mode & 0o777 == 0o700


def test_another_processor_has_other_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path / "bin", WORKING.format(log=tmp_path / "log"))
    assert build("one", tmp_path / "cache") != build("another", tmp_path / "cache")


def test_code_that_others_may_write_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path / "bin", WORKING.format(log=tmp_path / "log"))
    library = build("one", tmp_path / "cache")
    library.write_text("somebody else's\n")
    library.chmod(0o777)
    assert build("one", tmp_path / "cache").read_text() == "code\n"


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler(monkeypatch, tmp_path / "bin", "echo 'no such instruction' >&2; exit 1")
    with pytest.raises(CannotBuildError, match="no such instruction"):
        build("one", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_compiler_torch_computes_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        device = CpuBackend().open(0, 0, 1, EngineConfig(model="m", threads=1))
    assert "no C++ compiler" in caplog.text
    ops: Ops = resolve(device.ops())
    assert ops.add_rms_norm.__module__ == "mainspring.backends.cpu.elementwise"


def test_the_option_kernels_names_its_values() -> None:
    with pytest.raises(BackendError, match=r"'trch'.*'torch'"):
        CpuBackend().open(0, 0, 1, EngineConfig(model="m", backend_options={"kernels": "trch"}))

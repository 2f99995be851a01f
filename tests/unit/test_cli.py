"""The command line: quick, strict, and with TGI's flags and variables."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from mainspring.core.config import EngineConfig
from mainspring.server import cli
from mainspring.server.engine_flags import engine_config, engine_flags


@click.command()
@engine_flags
def show(**flags: Any) -> None:
    click.echo(repr(engine_config("m", flags)))


def config_of(*arguments: str, **variables: str) -> str:
    result = CliRunner().invoke(show, arguments, env=variables)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_defaults_are_those_of_the_engine() -> None:
    assert config_of() == repr(EngineConfig(model="m"))


def test_flags_and_variables_of_tgi() -> None:
    expected = EngineConfig(model="m", max_length=100, max_batch_tokens=50, quantize="int8", kv_dtype="float8_e5m2")
    flags = ("--max-total-tokens", "100", "--max-batch-prefill-tokens", "50", "--kv-cache-dtype", "fp8_e5m2")
    assert config_of(*flags, "--quantize", "int8") == repr(expected)
    variables = {"MAX_TOTAL_TOKENS": "100", "MAX_BATCH_PREFILL_TOKENS": "50", "KV_CACHE_DTYPE": "fp8_e5m2"}
    assert config_of(QUANTIZE="int8", **variables) == repr(expected)


def test_backend_options() -> None:
    assert "backend_options={'a': '1', 'b': 'x=y'}" in config_of("--backend-option", "a=1", "--backend-option", "b=x=y")
    assert "'a' is not KEY=VALUE" in CliRunner().invoke(show, ["--backend-option", "a"]).output


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["serve", "demo", "--max-total-token", "5"], "--max-total-tokens"),
        (["serv", "demo"], "did you mean 'serve'"),
        (["serve"], "name a model"),
        (["serve", "demo", "--port", "70000"], "0<=x<=65535"),
    ],
)
def test_mistakes_are_met_with_the_way_out(arguments: list[str], hint: str) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert hint in result.output


def test_version() -> None:
    assert CliRunner().invoke(cli.main, ["--version"]).output.startswith("mainspring, version ")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from mainspring.server.cli import main;"
        "CliRunner().invoke(main, ['serve', '--help']);"
        "print(sorted({'uvicorn', 'starlette', 'tokenizers', 'torch', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert ended.stdout.strip() == "[]", ended.stderr


@pytest.mark.alone
def test_help_is_quick() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mainspring.server.cli", "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5  # 0.07 s on a quiet core


def test_the_server_never_imports_torch() -> None:
    program = "import sys, mainspring.server.app, mainspring.server.offline; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "False", ended.stderr


def test_core_commands_run_in_the_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(cli.os, "execv", lambda program, arguments: ran.append(arguments[1:]))
    for arguments in (["backends"], ["check", str(tmp_path), "--backend", "sim"], ["conformance", "cpu", "--json"]):
        assert CliRunner().invoke(cli.main, arguments).exit_code == 0
    config = ran[1].pop()
    assert msgspec.json.decode(config, type=EngineConfig) == EngineConfig(model=str(tmp_path), backend="sim")
    assert ran == [
        ["-m", "mainspring.core.commands", "backends"],
        ["-m", "mainspring.core.commands", "check"],
        ["-m", "mainspring.core.conformance", "cpu", "--json"],
    ]

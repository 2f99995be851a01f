"""Formats from plugins: docs/tools.md's example as it stands there, and what is wrong with others in one sentence."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pluggy
import pytest
from click.testing import CliRunner

from mainspring.core.errors import EXIT_STARTUP, StartupError
from mainspring.core.plugins import GROUP, Hooks, hookimpl
from mainspring.server import app, cli
from mainspring.server.answer_formats import AnswerFormats, plugin_formats
from mainspring.server.app import ServerOptions
from mainspring.server.reasoning.formats import REASONING_FORMATS
from mainspring.server.reasoning.think import Think
from mainspring.server.text.machine import Arguments, CallStart, Text
from mainspring.server.tools.formats import TOOL_FORMATS
from mainspring.server.tools.structure import required_calls
from mainspring.server.tools.tool import Offer
from tests.support.model_directory import write_tiny_model
from tests.unit.test_tools import TOOLS, read

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pluggy.PluginManager]:
    """A manager that has the page's plugin."""
    source = re.search(r"<!-- file: call_end.py -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert source is not None
    (tmp_path / "call_end.py").write_text(source[1])
    monkeypatch.syspath_prepend(tmp_path)
    manager = manager_of(importlib.import_module("call_end"))
    yield manager
    del sys.modules["call_end"]


def manager_of(*plugins: object) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    for plugin in plugins:
        manager.register(plugin)
    manager.check_pending()
    return manager


def test_the_pages_plugin_reads_its_format(example: pluggy.PluginManager) -> None:
    found = plugin_formats(example)
    assert found.problems == ()
    formats = AnswerFormats("call_end", tool_plugins=found.tools)
    format_, _ = formats.choose(None)
    text = 'Let me see. CALL weather WITH {"city": "Paris"} END CALL time WITH {} END'
    calls = [CallStart("weather"), Arguments('{"city": "Paris"}'), CallStart("time"), Arguments("{}")]
    for pieces in ([text], list(text)):
        assert read(format_(TOOLS), pieces) == [Text("Let me see."), *calls]
    assert AnswerFormats(tool_plugins=found.tools).choose("CALL f WITH x")[0] is format_
    (first, _) = required_calls(format_, Offer(TOOLS, required=True))["format"]["tags"]
    assert (first["begin"], first["end"]) == ("CALL weather WITH ", " END")


def test_the_page_names_every_format() -> None:
    for name in (*TOOL_FORMATS, *REASONING_FORMATS):
        assert f"`{name}`" in PAGE


class Plugin:
    """Two hooks, and entries that cannot be used."""

    @hookimpl
    def mainspring_tool_parsers(self) -> dict[str, str]:
        return {"lost": "no_such_module:X", "other": "mainspring.server.reasoning.think:Think"}

    @hookimpl
    def mainspring_reasoning_parsers(self) -> dict[str, str]:
        return {"own": "mainspring.server.reasoning.think:Think"}


def test_what_cannot_be_used_is_said_and_left_out() -> None:
    found = plugin_formats(manager_of(Plugin()))
    assert (found.tools, found.reasoning) == ({}, {"own": Think})
    first, second = found.problems
    assert "'lost' (no_such_module:X) does not import: ModuleNotFoundError" in first
    assert "is no subclass of mainspring.server.tools.parser.ToolParser" in second


def test_names_are_known_before_anything_is_loaded() -> None:
    with pytest.raises(StartupError, match="unknown tool-call parser 'x'"):
        AnswerFormats("x").choose(None)
    with pytest.raises(StartupError, match="unknown reasoning parser 'x'"):
        AnswerFormats(None, "x").choose(None)


def test_the_flags_name_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerOptions] = []

    async def record(given: ServerOptions) -> int:
        seen.append(given)
        return 0

    monkeypatch.setattr(app, "serve", record)
    model = str(write_tiny_model(tmp_path / "tiny"))
    flags = ["--tool-call-parser", "hermes", "--reasoning-parser", "none"]
    assert CliRunner().invoke(cli.main, ["serve", model, *flags]).exit_code == 0
    variables = {"TOOL_CALL_PARSER": "hermes", "REASONING_PARSER": "none"}
    assert CliRunner().invoke(cli.main, ["serve", model], env=variables).exit_code == 0
    assert [options.formats for options in seen] == [AnswerFormats("hermes", "none")] * 2


def test_an_unknown_format_ends_the_start(tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "tiny"))
    ended = CliRunner().invoke(cli.main, ["serve", model, "--port", "0", "--tool-call-parser", "herms"])
    assert ended.exit_code == EXIT_STARTUP
    assert "did you mean 'hermes'" in ended.output

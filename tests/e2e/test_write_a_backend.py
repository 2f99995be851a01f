"""docs/write-a-backend.md, followed word for word in an empty folder and a fresh environment.

A block with a path after its language is a file (`append`: goes to its end; `diff`: changes it); a console block is
run, and what stands under a command must be in what it prints.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

from tests.support.fresh_environment import FreshEnvironment, fresh_environment
from tests.support.live_server import live_server

ROOT = Path(__file__).parents[2]
EXAMPLE, TEMPLATE = ROOT / "examples" / "backend_plugin", ROOT / "examples" / "backend_template"
BLOCK = re.compile(r"^```(\S+) ?(.*?)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
ENOUGH = 150
"""Lines that a serving backend may have."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    language: str
    target: str
    """A path, with `append` before it where it adds to the file; empty for a console."""
    text: str


def blocks() -> list[Block]:
    page = (ROOT / "docs" / "write-a-backend.md").read_text()
    return [Block(*found) for found in BLOCK.findall(page)]


def write(block: Block, folder: Path) -> None:
    path = folder / block.target.removeprefix("append ")
    path.parent.mkdir(parents=True, exist_ok=True)
    if block.language == "diff":
        lines = block.text.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line.startswith("-"))
        new = "".join(line[1:] or "\n" for line in lines if line.startswith("+"))
        before = path.read_text()
        assert before.count(old) == 1, f"{path.name} has this {before.count(old)} times: {old}"
        path.write_text(before.replace(old, new))
    elif block.target.startswith("append "):
        path.write_text(f"{path.read_text()}\n\n{block.text}")
    else:
        path.write_text(block.text)


def files(folder: Path) -> dict[str, str]:
    """What a package consists of, by path; installing and checking leave more."""
    names = ("pyproject.toml", *(str(path.relative_to(folder)) for path in folder.glob("src/*/*.py")))
    return {name: (folder / name).read_text() for name in sorted(names)}


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command with the lines expected of it."""
    for part in block.text.split("$ ")[1:]:
        command, *expected = part.replace("\\\n", " ").splitlines()
        yield command, [line for line in expected if line]


def follow(block: Block, folder: Path, environment: FreshEnvironment) -> None:
    """Runs a console block. A server lives until the block ends, on a port of its own."""
    with ExitStack() as stack:
        url = ""
        for command, expected in commands(block):
            if command.startswith("mainspring serve"):
                _, _, model, *flags = shlex.split(command)
                port = flags.index("--port")
                python = str(environment.python)
                flags = [*flags[:port], *flags[port + 2 :]]
                url = stack.enter_context(live_server(model, folder.parent / "log", *flags, python=python)).url
                continue
            said = run(command.replace("http://127.0.0.1:3000", url), folder, environment)
            assert said.returncode == int("does not conform" in "".join(expected)), said.stdout + said.stderr
            missing = [line for line in expected if line not in said.stdout]
            assert not missing, f"{command}: {missing} not in\n{said.stdout}{said.stderr}"


def run(command: str, folder: Path, environment: FreshEnvironment) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        shlex.split(command),
        cwd=folder,
        env=environment.variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    return fresh_environment(tmp_path_factory.mktemp("environment"))


def test_the_page_followed_word_for_word_gives_the_example(environment: FreshEnvironment, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for block in blocks():
        if block.language == "console":
            follow(block, folder, environment)
        else:
            write(block, folder)
    written = files(folder)
    assert written == files(EXAMPLE)
    assert sum(len(text.splitlines()) for text in written.values()) < ENOUGH


def test_the_plugin_stays_in_its_environment() -> None:
    """Where the tests run, only Mainspring's own backends are found."""
    listed = subprocess.run(
        [sys.executable, "-m", "mainspring.server.cli", "backends"], capture_output=True, text=True, check=True
    )
    assert "abacus" not in listed.stdout


def test_the_template_renders_the_page_s_first_files(tmp_path: Path) -> None:
    first = tmp_path / "first"
    for block in blocks()[:3]:
        write(block, first)
    cookiecutter(str(TEMPLATE), no_input=True, output_dir=str(tmp_path), extra_context={"name": "abacus"})
    assert files(tmp_path / "mainspring-abacus") == files(first)


def test_the_template_renders_another_name(environment: FreshEnvironment, tmp_path: Path) -> None:
    made = Path(cookiecutter(str(TEMPLATE), no_input=True, output_dir=str(tmp_path), extra_context={"name": "quipu"}))
    assert not [text for text in files(made).values() if "abacus" in text.lower() or "{{" in text]
    installed = run("pip install --no-deps --editable .", made, environment)
    assert installed.returncode == 0, installed.stderr
    checked = run("mainspring conformance quipu --only capabilities --only rope", made, environment)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Quipu (beads)" in checked.stdout

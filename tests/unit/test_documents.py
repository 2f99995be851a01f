"""Documents say what is there: links lead somewhere, ARCHITECTURE.md names each room, and rooms have pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "server", "backends")
LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:core|server|backends|tests|docs|benchmarks|examples)/[\w./*-]*)`")
HEADING = re.compile(r"^#+\s+(.*?)\s*$", re.MULTILINE)


def documents() -> list[Path]:
    """Markdown of the project, what tools leave beside it left out."""
    folders = (ROOT, *(ROOT / name for name in ("docs", "benchmarks", "examples", "tests", *ROOMS)))
    found = {file for folder in folders for file in (folder.glob if folder == ROOT else folder.rglob)("*.md")}
    return sorted(file for file in found if "node_modules" not in file.parts)


def anchors(text: str) -> set[str]:
    """What GitHub calls a document's headings: lower case, without punctuation, a dash for each space."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        found.add(next(name for name in (words, *(f"{words}-{count}" for count in range(1, 99))) if name not in found))
    return found


def broken_links(file: Path, text: str) -> Iterator[str]:
    """Of those that stay in the project."""
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (file.parent / name).resolve() if name else file
        if not there.exists() or (
            anchor and there.suffix == ".md" and anchor not in anchors(there.read_text(encoding="utf-8"))
        ):
            yield f"{file.name}: {target}"


def lost_paths(text: str) -> Iterator[str]:
    """Paths in backticks, from the root, that are nobody's; modules may go without their ending."""
    for name in PATH.findall(text):
        if not any(True for end in ("", ".py") for _ in ROOT.glob(name.rstrip("/") + end)):
            yield name


def rooms_named(table: str) -> Iterator[tuple[str, list[Path]]]:
    """Each name in the table's first column, and what it stands for: `a/b`, `c` is a/b and a/c or a/b/c."""
    for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE):
        folder = ROOT
        for name in re.findall(r"`([\w./*]+)`", row):
            near = (ROOT,) if "/" in name.rstrip("/") else (folder, folder.parent)
            found = [path for place in near for end in ("", ".py") for path in place.glob(name.rstrip("/") + end)]
            yield name, found[:1] if "*" not in name else found
            if found and "/" in name.rstrip("/"):
                folder = found[0] if found[0].is_dir() else found[0].parent


def architecture() -> str:
    """The table of rooms."""
    return (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## Rooms")[1].split("\n## ")[0]


def packages() -> list[Path]:
    """Folders of code."""
    return sorted(page.parent for room in ROOMS for page in (ROOT / room).rglob("__init__.py"))


def test_links_lead_somewhere() -> None:
    files = documents()
    assert len(files) > 25
    assert [link for file in files for link in broken_links(file, file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("link", ["nowhere.md", "../nowhere.md", "ARCHITECTURE.md#no-such-heading", "#no-such-heading"])
def test_the_rule_of_links_finds_broken_ones(link: str) -> None:
    assert list(broken_links(ROOT / "README.md", f"# Here\n[there]({link})")) == [f"README.md: {link}"]


def test_the_rule_of_links_lets_others_be() -> None:
    text = "[a](ARCHITECTURE.md#rooms) [b](https://example.org/x) [c](docs)\n```\n[d](nowhere)\n```\n"
    assert not list(broken_links(ROOT / "README.md", text))


def test_paths_lead_somewhere() -> None:
    code = [file for room in (*ROOMS, "tests", "benchmarks") for file in (ROOT / room).rglob("*.py")]
    lost = {file: list(lost_paths(file.read_text(encoding="utf-8"))) for file in (*documents(), *code)}
    assert {str(file.relative_to(ROOT)): names for file, names in lost.items() if names} == {}


def test_the_rule_of_paths_finds_lost_ones() -> None:
    lost, found = ["core/nothing.py", "core/nothing/"], ["core/plan", "core/ops/", "tests/unit/test_*.py"]
    assert list(lost_paths(" ".join(f"`{name}`" for name in lost + found))) == lost


def test_the_table_of_rooms_names_what_is_there() -> None:
    named = list(rooms_named(architecture()))
    assert len(named) > 150
    assert [name for name, found in named if not found] == []


def test_the_table_of_rooms_names_every_room() -> None:
    named = {path for _, found in rooms_named(architecture()) for path in found}
    missing = [folder for folder in packages() if folder not in named and folder.parent != ROOT]
    assert [str(folder.relative_to(ROOT)) for folder in missing] == []


def test_the_table_of_rooms_names_every_file_that_is_in_no_room() -> None:
    named = {path for _, found in rooms_named(architecture()) for path in found}
    files = [file for room in ("core", "server") for file in (ROOT / room).glob("[!_]*.py")]
    assert sorted(str(file.relative_to(ROOT)) for file in files if file not in named) == []


def test_every_room_has_a_page() -> None:
    pages = [folder / "__init__.py" for folder in packages()] + sorted((ROOT / "tests").rglob("__init__.py"))
    assert len(pages) > 50
    assert [str(page) for page in pages if not ast.get_docstring(ast.parse(page.read_text(encoding="utf-8")))] == []

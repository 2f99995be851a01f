"""Where core and backends meet, as far as import-linter does not see it: a backend derives from the contract alone and
patches nothing of core; what serves all accelerators names none of them; and the shells of vendors stay small.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mainspring

PACKAGE = Path(mainspring.__file__).parent
CONTRACT = ("mainspring.core.backend", "mainspring.core.parallel.communicator")
"""The contract, and the collectives that it gives by default, which a backend may build on."""
PATCHES = {"setattr", "delattr", "object.__setattr__"}
VENDOR = re.compile(r"(?<![a-z])(cpu|cuda|rocm|hip|gaudi|hpu|habana|neuron|sim|tpu|xla|xpu)(?![a-z])", re.IGNORECASE)
HARMLESS = {
    "cpu_count",
    "--cuda-graphs",  # two of TGI's own flags, which the server explains
    "--cuda-memory-fraction",
}
NEUTRAL = ("core/models", "core/layers", "core/scheduling", "core/execution", "server")
LIMITS = {"rocm": 400, "xpu": 500, "tpu": 1200, "gaudi": 1200, "neuron": 1200}
"""Lines of code, as `make size` counts them."""


def sources(room: str) -> Iterator[tuple[str, str]]:
    """Name and text of each file."""
    folder = (PACKAGE / room).resolve()
    for file in sorted(folder.rglob("*.py")):
        yield f"{room}/{file.relative_to(folder)}", file.read_text(encoding="utf-8")


def imported(tree: ast.AST) -> dict[str, str]:
    """What a file calls a thing of core, and the module that it is of."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {(name.asname or name.name): name.name for name in names if ".core" in name.name}
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("mainspring.core"):
                found |= {(name.asname or name.name): module for name in names}
    return found


def module_of(expression: ast.expr, names: dict[str, str]) -> str | None:
    """The module of core that an expression such as `core.plan.Plan` reaches into."""
    written = ast.unparse(expression)
    return next((module for name, module in names.items() if written == name or written.startswith(f"{name}.")), None)


def trespasses(source: str) -> Iterator[str]:
    """Classes derived from what is not the contract, and attributes of core that are set."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name, bases=bases):
                for base in bases:
                    if module_of(base, names) not in (None, *CONTRACT):
                        yield f"{name} derives from {ast.unparse(base)}"
            case ast.Assign(targets=targets) | ast.Delete(targets=targets):
                yield from (f"{ast.unparse(one)} is set" for one in targets if _of_core(one, names))
            case ast.AugAssign(target=target) | ast.AnnAssign(target=target) if _of_core(target, names):
                yield f"{ast.unparse(target)} is set"
            case ast.Call(func=function, args=[first, *_]) if ast.unparse(function) in PATCHES:
                if module_of(first, names):
                    yield ast.unparse(node)


def _of_core(target: ast.expr, names: dict[str, str]) -> bool:
    """Whether an assignment's target is an attribute of something that core defines, or an item of it."""
    while isinstance(target, ast.Subscript):
        target = target.value
        if isinstance(target, ast.Name):
            return target.id in names
    return isinstance(target, ast.Attribute) and module_of(target.value, names) is not None


def vendors_named(source: str) -> Iterator[str]:
    """Names and strings, docstrings left out, that say an accelerator's or a backend's name."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        words = [getattr(node, field, None) for field in ("id", "attr", "name", "arg", "module")]
        if isinstance(node, ast.Constant) and id(node) not in prose:
            words.append(node.value)
        yield from (word for word in words if isinstance(word, str) and word not in HARMLESS and VENDOR.search(word))


def test_backends_derive_from_the_contract_alone_and_patch_nothing() -> None:
    files = list(sources("backends"))
    assert len(files) > 60
    assert [f"{name}: {found}" for name, source in files for found in trespasses(source)] == []


@pytest.mark.parametrize(
    "lines",
    [
        "from mainspring.core.execution.runner import Runner\nclass Mine(Runner): pass",
        "from mainspring.core.scheduling import scheduler as s\nclass Mine(s.Scheduler): pass",
        "import mainspring.core.plan\nmainspring.core.plan.draft = mine",
        "from mainspring.core import ops\nops.attention = mine",
        "from mainspring.core.models import causal\nsetattr(causal.CausalLM, 'forward', mine)",
        "from mainspring.core.quantization import SCHEMES\nSCHEMES['mine'] = mine",
        "from mainspring.core.plan import Plan\ndel Plan.check",
    ],
)
def test_the_rule_of_the_contract_finds_what_it_forbids(lines: str) -> None:
    assert list(trespasses(lines))


def test_the_rule_of_the_contract_lets_backends_be() -> None:
    lines = (
        "from mainspring.core.backend import Device\n"
        "class Mine(Device):\n"
        "    def __init__(self): self.streams = {}; self.streams['copies'] = 1\n"
    )
    assert not list(trespasses(lines))


def test_what_serves_all_accelerators_names_none() -> None:
    files = [file for room in NEUTRAL for file in sources(room)]
    assert len(files) > 100
    assert [f"{name}: {word}" for name, source in files for word in vendors_named(source)] == []


@pytest.mark.parametrize(
    "line", ["if device.type == 'cuda': pass", "import torch_xla", "def on_hpu(): pass", "if is_tpu: pass"]
)
def test_the_rule_of_names_finds_what_it_forbids(line: str) -> None:
    assert list(vendors_named(line))


@pytest.mark.parametrize("room", LIMITS)
def test_the_shells_of_vendors_are_small(room: str) -> None:
    lines = [line.strip() for _, source in sources(f"backends/{room}") for line in source.splitlines()]
    assert 0 < len([line for line in lines if line and not line.startswith("#")]) < LIMITS[room]

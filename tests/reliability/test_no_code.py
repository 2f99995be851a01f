"""Nothing that comes from outside is run: no pickle, no eval, no weights that are programs (P16, P17)."""

from __future__ import annotations

import ast
import asyncio
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import mainspring
from mainspring.core.config import EngineConfig
from mainspring.core.errors import StartupError
from mainspring.server.engine.client import EngineClient
from tests.reliability.conftest import SIM
from tests.support.live_server import listening_server
from tests.support.model_directory import TINY, write_tiny_model
from tests.support.promises import Measured
from tests.support.raw_http import exchange, post
from tests.support.tiny_tokenizers import write_word_tokenizer

PACKAGE = Path(mainspring.__file__).parent
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
"""Harmful by these names and as attributes of `builtins`; `device.compile()` and `module.eval()` are others."""
CALLS = {
    "load",
    "loads",
    "send_pyobj",
    "recv_pyobj",
    "broadcast_object_list",
    "all_gather_object",
    "gather_object",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
    "from_pretrained",
}
HARMLESS = {
    "json.load",
    "json.loads",
    "point.load",  # imports an installed package by its entry point
    "tl.load",  # Triton's read of a device's memory
}
"""Calls whose last word is that of a harmful one."""


def offences(source: str) -> Iterator[str]:
    """What a file does that could run somebody else's code, or check something with an `assert`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (f"import {name.name}" for name in names if name.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
                yield f"from {module}"
            case ast.Call(func=function):
                called = ast.unparse(function)
                owner, _, name = called.rpartition(".")
                by_builtin = name in BUILTINS and owner in ("", "builtins")
                if by_builtin or (name in CALLS and called not in HARMLESS):
                    yield f"{called}()"
            case ast.keyword(arg="trust_remote_code" | "allow_pickle" | "weights_only", value=value):
                yield f"{node.arg}={ast.unparse(value)}"
            case ast.Assert():
                yield f"assert {ast.unparse(node.test)}"


@pytest.mark.promise("P16")
def test_p16_no_file_unpickles_evaluates_or_loads_programs(measured: Measured) -> None:
    files = [file for room in ("core", "server", "backends") for file in (PACKAGE / room).resolve().rglob("*.py")]
    found = [f"{file.name}: {offence}" for file in files for offence in offences(file.read_text(encoding="utf-8"))]
    assert len(files) > 80
    assert not found
    measured(f"0 uses in {len(files)} files")


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "eval(text)",
        "builtins.exec(text)",
        "torch.load(file)",
        "socket.recv_pyobj()",
        "dist.broadcast_object_list(x)",
        "np.load(f, allow_pickle=True)",
        "assert x",
    ],
)
def test_p16_the_rule_finds_what_it_forbids(line: str) -> None:
    assert list(offences(line))


@pytest.mark.promise("P16")
def test_p16_a_serving_process_unpickles_nothing(model: Path, tmp_path: Path, measured: Measured) -> None:
    """The interpreter tells of every object that is unpickled (PEP 578); both processes end at the first."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, arguments):\n"
        "    if event == 'pickle.find_class':\n"
        "        sys.stderr.write(f'AUDIT {event} {arguments}\\n')\n"
        "        os._exit(99)\n"
        "sys.addaudithook(hook)\n"
        "sys.stderr.write('AUDITED\\n')\n"
    )
    path = f"{tmp_path}:{Path(mainspring.__file__).parents[1]}"
    with listening_server(str(model), tmp_path / "log", *SIM, environment={"PYTHONPATH": path}) as server:
        server.wait_until_ready(30)
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 5, "details": True}}
        chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "logprobs": True}
        for route, content in (("/generate", body), ("/generate_stream", body), ("/v1/chat/completions", chat)):
            assert asyncio.run(exchange(server.port, post(route, content))).status == 200
    assert server.process.returncode == 0
    log = (tmp_path / "log").read_text()
    assert log.count("AUDITED") >= 2, "both processes"
    assert "AUDIT " not in log
    measured("0 objects unpickled in two audited processes")


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


def malicious_model(directory: Path, target: Path) -> Path:
    """A model whose every file tries to run: code named by its configuration, weights that are a pickle."""
    write_tiny_model(directory)
    write_word_tokenizer(directory, TINY.vocab_size)
    code = f"from pathlib import Path\nPath({str(target)!r}).touch()\nclass Model: pass\nclass Tokenizer: pass\n"
    (directory / "modeling_evil.py").write_text(code)
    (directory / "__init__.py").write_text(code)
    auto_map = {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Model", "AutoConfig": "modeling_evil.Model"}}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((directory / name).read_text())
        content |= auto_map | {"tokenizer_class": "Tokenizer", "trust_remote_code": True}
        (directory / name).write_text(json.dumps(content))
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(target)))
    return directory


@pytest.mark.promise("P17")
def test_p17_weights_that_are_programs_are_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    directory = malicious_model(tmp_path / "evil", target)

    async def start() -> None:
        client = EngineClient(EngineConfig(model=str(directory), backend="cpu", num_blocks=32))
        try:
            with pytest.raises(StartupError, match="safetensors"):
                await client.start()
        finally:
            await client.aclose()

    asyncio.run(start())
    assert not target.exists()
    pickle.loads((directory / "pytorch_model.bin").read_bytes())
    assert target.exists(), "the bomb is live"


@pytest.mark.promise("P17")
def test_p17_code_beside_a_model_is_not_run(tmp_path: Path, measured: Measured) -> None:
    target = tmp_path / "ran"
    directory = malicious_model(tmp_path / "evil", target)
    with listening_server(str(directory), tmp_path / "log", *SIM) as server:
        server.wait_until_ready(30)
        assert asyncio.run(exchange(server.port, post("/generate", {"inputs": "x"}))).status == 200
    assert not target.exists()
    measured("a model directory full of code and pickles: 0 of it run")

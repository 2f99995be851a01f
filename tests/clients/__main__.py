"""`python -m tests.clients [ENVIRONMENT ...]`: real clients, each set in an environment of its own, against servers.

Clients disagree about the versions of what they need, so each file of `requirements/` is one environment, kept under
`.clients/`; node's packages stay beside their lock file. The servers run in the interpreter that runs this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from transformers import AutoTokenizer

from mainspring.server.source import resolve
from tests.clients import log_likelihoods
from tests.clients.conftest import BUSY_KEY, QUOTE_ID
from tests.support.live_server import live_server
from tests.support.model_directory import TINY, write_tiny_model
from tests.support.tiny_tokenizers import write_word_tokenizer

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "latest": (
        "test_openai.py",
        "test_huggingface_hub.py",
        "test_node.py",
        "test_lm_eval.py",
        "test_schemathesis.py",
        "test_promtool.py",
        "test_snippets.py",
    ),
    "frameworks": ("test_litellm.py", "test_langchain.py", "test_snippets.py"),
    "text_generation": ("test_text_generation.py", "test_snippets.py"),
    "load": ("test_aiperf.py",),
    "guidellm": ("test_guidellm.py",),
}
_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent
_OPTIONS = ("vocabulary=300-1000", f"quote={QUOTE_ID}")
_SIM = (
    "--backend",
    "sim",
    *(word for option in _OPTIONS for word in ("--backend-option", option)),
    "--max-client-batch-size",
    "32",
)


def main(names: Sequence[str]) -> int:
    """Runs the tests of the named environments, or of all. Returns the worst of their exit statuses."""
    chosen = [name for name in ENVIRONMENTS if not names or name in names]
    pythons = {name: _environment(name) for name in chosen}
    if "latest" in chosen:
        _run("npm", "ci", "--no-audit", "--no-fund", "--silent", directory=_HERE / "node")
    worst = 0
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        variables = os.environ | _start_servers(stack, directory)
        variables.pop("PYTHONPATH", None)  # the clients' environments hold no mainspring
        variables.pop("HF_HUB_OFFLINE", None)  # huggingface_hub would not even talk to this machine
        for name, python in pythons.items():
            variables["CLIENTS_ENVIRONMENT"] = name
            files = [str(_HERE / file) for file in ENVIRONMENTS[name]]
            # Warnings are errors for our own code; what the clients' code warns about is theirs.
            options = ["-o", "filterwarnings=default", "-p", "no:cacheprovider"]
            ended = subprocess.run([python, "-m", "pytest", *options, *files], cwd=_ROOT, env=variables)
            worst = max(worst, ended.returncode)
    return worst


def _environment(name: str) -> Path:
    """The interpreter of an environment, which is built anew when its requirements have changed."""
    directory = _ROOT / ".clients" / name
    requirements = _HERE / "requirements" / f"{name}.txt"
    built = directory / "requirements.txt"
    python = directory / "bin" / "python"
    if not built.exists() or built.read_bytes() != requirements.read_bytes():
        _run(sys.executable, "-m", "venv", "--clear", str(directory))
        _run(str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements))
        shutil.copyfile(requirements, built)
    return python


def _start_servers(stack: ExitStack, directory: Path) -> dict[str, str]:
    """The variables that tell `conftest.py` where everything is."""
    model = write_tiny_model(directory / "tiny")
    write_word_tokenizer(model, TINY.vocab_size)
    slow = ("--backend-option", "overhead=0.02", "--max-concurrent-requests", "1", "--api-key", BUSY_KEY)
    at_once = ("--backend-option", "speed=0")
    server = stack.enter_context(live_server(str(model), directory / "server.log", *_SIM, *at_once))
    busy = stack.enter_context(live_server(str(model), directory / "busy.log", *_SIM, *slow))
    numbers = ("--backend", "cpu", "--dtype", "float32", "--quantize", "none")
    text = stack.enter_context(live_server("demo", directory / "text.log", *numbers))
    tokenizer = _write_tokenizer(directory / "tokenizer")
    return {
        "CLIENTS_SERVER": server.url,
        "CLIENTS_BUSY_SERVER": busy.url,
        "CLIENTS_TEXT_SERVER": text.url,
        "CLIENTS_TOKENIZER": str(tokenizer),
        "CLIENTS_LOG_LIKELIHOODS": str(log_likelihoods.write(tokenizer, directory / "log_likelihoods.json")),
    }


def _write_tokenizer(directory: Path) -> Path:
    """The demo model's tokenizer, as transformers reads it and writes it."""
    model = resolve("demo").path
    AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(directory)
    return directory


def _run(*command: str, directory: Path = _ROOT) -> None:
    subprocess.run(command, cwd=directory, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

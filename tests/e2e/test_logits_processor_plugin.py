"""examples/logits_processor_plugin, installed as a package beside Mainspring and named in requests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "logits_processor_plugin"
SCRIPT = """
import json
from mainspring import LLM
from mainspring.core.request import LogitsProcessing, SamplingParams

if __name__ == "__main__":
    with LLM("demo", "cpu", max_length=128) as llm:
        asked = [
            SamplingParams(max_tokens=48, ignore_eos=True, processors=processors)
            for processors in ((), (LogitsProcessing("no_echo", (12.0,)),))
        ]
        outputs = llm.generate(["a a a a a a a a a a a a a a a a"] * 2, asked)
    print(json.dumps([[form.name for form in llm.ready.processors], *(out.token_ids for out in outputs)]))
"""
WINDOW = 12


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the module path that holds the package with its entry point."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    shutil.copytree(EXAMPLE, source)  # the build writes beside its sources
    site = folder / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        site,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return site


def echoes(tokens: list[int]) -> int:
    """Tokens that stood among the `WINDOW` before them."""
    return sum(token in tokens[max(0, place - WINDOW) : place] for place, token in enumerate(tokens))


def test_the_example_s_processor_does_what_its_page_says(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    said = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    names, plain, changed = json.loads(said.stdout)
    assert names == ["no_echo", "watermark"]
    assert echoes(plain) >= 5
    assert echoes(changed) == 0


def test_the_page_shows_the_example_s_own_lines() -> None:
    page = (ROOT / "docs" / "logits-processors.md").read_text()
    package = EXAMPLE / "src" / "mainspring_no_echo"
    shown = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    assert len(shown) == 2
    for block, file in zip(shown, ("processor.py", "__init__.py"), strict=True):
        assert block in (package / file).read_text()

"""lm-evaluation-harness through local-completions: log-likelihoods are those of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TASKS = Path(__file__).parent / "lm_eval_tasks"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, text_server: str, tokenizer_directory: Path) -> list[Any]:
    """The task's documents with what the harness asked and was told, in order."""
    output = tmp_path_factory.mktemp("lm_eval")
    model = f"model=tgi,base_url={text_server}/v1/completions,tokenizer={tokenizer_directory},max_retries=1"
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "local-completions", "--model_args", model]
    command += ["--tasks", "capitals", "--include_path", str(TASKS), "--log_samples", "--output_path", str(output)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(output / "home")}
    ended = subprocess.run(command, cwd=TASKS, env=offline, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (file,) = output.rglob("samples_capitals_*.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def test_log_likelihoods_equal_those_of_transformers(samples: list[Any]) -> None:
    expected = json.loads(Path(os.environ["CLIENTS_LOG_LIKELIHOODS"]).read_text())
    told = [[(float(logprob), greedy == "True") for ((logprob, greedy),) in s["resps"]] for s in samples]
    assert [[greedy for _, greedy in choices] for choices in told] == [[g for _, g in choices] for choices in expected]
    for choices, right in zip(told, expected, strict=True):
        assert [logprob for logprob, _ in choices] == pytest.approx([logprob for logprob, _ in right], abs=5e-4)


def test_most_answers_are_right(samples: list[Any]) -> None:
    assert sum(sample["acc"] for sample in samples) >= len(samples) - 1

"""What transformers says of the tasks in `lm_eval_tasks/`: the oracle for `test_lm_eval.py`, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tests.support.smollm2 import by_transformers

DOCUMENTS = Path(__file__).parent / "lm_eval_tasks" / "capitals.jsonl"


def write(tokenizer_directory: Path, file: Path) -> Path:
    """For each document's choices: the sum of the choice's log-probabilities, and whether it is the greedy one."""
    model = by_transformers()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    documents = [json.loads(line) for line in DOCUMENTS.read_text().splitlines()]
    with torch.inference_mode():
        found = [
            [_score(model, tokenizer, document["question"], f" {choice}") for choice in document["choices"]]
            for document in documents
        ]
    file.write_text(json.dumps(found))
    return file


def _score(model: Any, tokenizer: Any, context: str, continuation: str) -> tuple[float, bool]:
    ids = tokenizer(context + continuation)["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    chosen = logprobs[start - 1 : -1]
    targets = torch.tensor(ids[start:])
    total = chosen.gather(1, targets[:, None]).sum()
    return float(total), bool((chosen.argmax(-1) == targets).all())

"""`--compile` on the CPU changes no token."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.core.batch import Admission, Batch
from mainspring.core.composition import build_executor
from mainspring.core.config import EngineConfig
from mainspring.core.plan import make_plan
from mainspring.core.request import SamplingParams
from mainspring.core.setting import settle
from tests.support.model_directory import write_tiny_model

PROMPT = [5, 6, 7, 8, 9]


def greedy(model: Path, *, compiles: bool) -> list[int]:
    """Six tokens: one prefill step and five decodes."""
    config = EngineConfig(
        model=str(model), backend="cpu", load_format="dummy", compile=compiles, max_sequences=4, num_blocks=20
    )
    setting = settle(config)
    plan = make_plan(config, setting.model, setting.choice.backend, setting.choice.device)
    executor = build_executor(setting, plan, lambda phase, done, total: None)
    admission = Admission(0, PROMPT, len(PROMPT), SamplingParams(), 0, [1])
    steps = [Batch(0, [0], [0], [len(PROMPT)], [True], num_tokens=len(PROMPT), admissions=[admission])]
    steps += [Batch(step, [0], [len(PROMPT) + step - 1], [1], [True], 1, 1) for step in range(1, 6)]
    try:
        return [executor.execute(step).result().tokens[0] for step in steps]
    finally:
        executor.close()


# torch's own compiler warns of torch's own functions.
@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning", "ignore::FutureWarning")
def test_compiled_steps_choose_the_same_tokens(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", num_layers=1)
    assert greedy(model, compiles=True) == greedy(model, compiles=False)

"""Both spellings of a config, transformers 5's and the one before, read the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mainspring.core.architectures import read_model_config
from tests.models.conftest import Pair
from tests.support.tiny_models import CASES


def older(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` and `dtype` as they were spelled before transformers 5."""
    config = dict(config, torch_dtype=config.pop("dtype"))
    parameters = config.pop("rope_parameters", None)
    if parameters is None:
        return config
    if "full_attention" in parameters:
        config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        parameters = parameters["full_attention"]
    parameters = dict(parameters)
    config["rope_theta"] = parameters.pop("rope_theta")
    if "partial_rotary_factor" in parameters:
        config["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
    kind = parameters.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **parameters}
    return config


@pytest.mark.parametrize("name", list(CASES))
def test_older_spelling(pair: Callable[[str], Pair], tmp_path: Path, name: str) -> None:
    path = pair(name).path
    config = older(json.loads((path / "config.json").read_text()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_model_config(tmp_path) == read_model_config(path)

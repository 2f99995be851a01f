"""What is asked, of which model, on which device: the questions of start-up, before any planning.

Both the engine and `mainspring check` begin here, so that they say the same things in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mainspring.core.architectures import read_model_config
from mainspring.core.config import EngineConfig, ModelConfig
from mainspring.core.errors import StartupError
from mainspring.core.plugins import Choice, Plugins, load_plugins


@dataclass(frozen=True, slots=True)
class Setting:
    """A model that can be read and a device that can be opened."""

    config: EngineConfig
    plugins: Plugins
    model: ModelConfig
    choice: Choice


def settle(config: EngineConfig) -> Setting:
    """Finds both. Raises `StartupError` with the reasons of both."""
    plugins = load_plugins()
    reasons: list[str] = []
    model, choice = None, None
    try:
        model = read_model_config(Path(config.model), plugins.models())
    except StartupError as error:
        reasons += error.reasons
    try:
        choice = plugins.choose(config.backend, config.device_index)
    except StartupError as error:
        reasons += error.reasons
    if model is None or choice is None:
        raise StartupError(reasons)
    return Setting(config, plugins, model, choice)

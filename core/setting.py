"""What is asked, of which model, on which device: the questions of start-up, before any planning.

Both the engine and `mainspring check` begin here, so that they say the same things in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from mainspring.core.architectures import read_model_config
from mainspring.core.architectures.speculators import SpeculatorConfig, read_speculator
from mainspring.core.backend import DeviceInfo, Unavailable
from mainspring.core.config import EngineConfig, ModelConfig
from mainspring.core.errors import BackendError, StartupError
from mainspring.core.plugins import Choice, Plugins, load_plugins
from mainspring.core.quantization import resolve_name
from mainspring.core.speculator_plan import speculator_path


@dataclass(frozen=True, slots=True)
class Setting:
    """A model that can be read and a device that can be opened."""

    config: EngineConfig
    plugins: Plugins
    model: ModelConfig
    choice: Choice
    devices: tuple[DeviceInfo, ...]
    """One a rank; the first is `choice.device`."""
    speculator: SpeculatorConfig | None
    """What `--speculator` names, where it names a checkpoint."""

    @property
    def smallest(self) -> DeviceInfo:
        """The device that all ranks are planned for."""
        return min(self.devices, key=lambda device: device.total_bytes)


def settle(config: EngineConfig) -> Setting:
    """Finds both. Raises `StartupError` with the reasons of both."""
    plugins = load_plugins()
    reasons: list[str] = []
    model, choice, speculator = None, None, None
    try:
        model = read_model_config(Path(config.model), plugins.models())
        config = msgspec.structs.replace(config, quantize=resolve_name(config.quantize, model))
        if (path := speculator_path(config)) is not None:
            speculator = read_speculator(path, model, plugins.models(), Path(config.model))
    except StartupError as error:
        reasons += error.reasons
    try:
        choice = plugins.choose(config.backend, config.device_index)
    except StartupError as error:
        reasons += error.reasons
    devices: tuple[DeviceInfo, ...] = ()
    if choice is not None:
        try:
            devices = devices_for(choice, config.num_shard, config.num_stages)
        except StartupError as error:
            reasons += error.reasons
    if reasons or model is None or choice is None:
        raise StartupError(reasons)
    config = msgspec.structs.replace(config, num_shard=len(devices) // config.num_stages)
    return Setting(config, plugins, model, choice, devices, speculator)


def devices_for(choice: Choice, num_shard: int | None, num_stages: int) -> tuple[DeviceInfo, ...]:
    """One for each rank, from the chosen one on. Raises `BackendError` where there are not as many."""
    wanted = (num_shard or 1) * num_stages
    if (num_shard and wanted == 1) or choice.backend.capabilities(choice.device).ranks_share_device:
        return (choice.device,) * wanted
    found = choice.backend.devices()
    all_devices = [] if isinstance(found, Unavailable) else found
    offered = tuple(device for device in all_devices if device.index >= choice.device.index)
    if num_shard is None:
        wanted = max(len(offered) // num_stages, 1) * num_stages
    if len(offered) < wanted:
        shards = len(offered) // num_stages
        fewer = f"--num-shard {shards}" if shards else f"--pipeline-parallel-size {max(len(offered), 1)}"
        raise BackendError(
            f"--num-shard {num_shard or 1} with --pipeline-parallel-size {num_stages} needs {wanted} devices, and "
            f"{choice.backend.name} has {len(offered)} from index {choice.device.index} on; use {fewer} or less"
        )
    return offered[:wanted]

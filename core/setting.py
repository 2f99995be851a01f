"""What is asked, of which model, on which device: the questions of start-up, before any planning.

Both the engine and `mainspring check` begin here, so that they say the same things in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from mainspring.core.architectures import read_model_config
from mainspring.core.backend import DeviceInfo, Unavailable
from mainspring.core.config import EngineConfig, ModelConfig
from mainspring.core.errors import BackendError, StartupError
from mainspring.core.plugins import Choice, Plugins, load_plugins
from mainspring.core.quantization import resolve_name


@dataclass(frozen=True, slots=True)
class Setting:
    """A model that can be read and a device that can be opened."""

    config: EngineConfig
    plugins: Plugins
    model: ModelConfig
    choice: Choice
    devices: tuple[DeviceInfo, ...]
    """One a rank; the first is `choice.device`."""

    @property
    def smallest(self) -> DeviceInfo:
        """The device that all ranks are planned for."""
        return min(self.devices, key=lambda device: device.total_bytes)


def settle(config: EngineConfig) -> Setting:
    """Finds both. Raises `StartupError` with the reasons of both."""
    plugins = load_plugins()
    reasons: list[str] = []
    model, choice = None, None
    try:
        model = read_model_config(Path(config.model), plugins.models())
        config = msgspec.structs.replace(config, quantize=resolve_name(config.quantize, model))
    except StartupError as error:
        reasons += error.reasons
    try:
        choice = plugins.choose(config.backend, config.device_index)
    except StartupError as error:
        reasons += error.reasons
    devices: tuple[DeviceInfo, ...] = ()
    if choice is not None:
        try:
            devices = _devices(choice, config.num_shard)
        except StartupError as error:
            reasons += error.reasons
    if model is None or choice is None or not devices:
        raise StartupError(reasons)
    return Setting(msgspec.structs.replace(config, num_shard=len(devices)), plugins, model, choice, devices)


def _devices(choice: Choice, num_shard: int | None) -> tuple[DeviceInfo, ...]:
    """One for each rank, from the chosen one on. Raises `BackendError` where there are not as many."""
    if num_shard == 1 or choice.backend.capabilities(choice.device).ranks_share_device:
        return (choice.device,) * (num_shard or 1)
    found = choice.backend.devices()
    all_devices = [] if isinstance(found, Unavailable) else found
    offered = tuple(device for device in all_devices if device.index >= choice.device.index)
    if num_shard is not None and len(offered) < num_shard:
        raise BackendError(
            f"--num-shard {num_shard} needs as many devices, and {choice.backend.name} has {len(offered)} from index "
            f"{choice.device.index} on; use --num-shard {max(len(offered), 1)} or less"
        )
    return offered[:num_shard]

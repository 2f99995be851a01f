"""One architecture a file, built from `core.layers`; the table of architectures is in `core.architectures`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import torch
from torch import Tensor

from mainspring.core.architectures import NO_PLUGINS, model_class
from mainspring.core.backend import Communicator, Device
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models.causal import CausalLM, Convention
from mainspring.core.ops import Ops
from mainspring.core.parallel.shard import ALONE, Shard
from mainspring.core.parallel.stages import WHOLE_MODEL, Stage

__all__ = ["NO_PLUGINS", "CausalLM", "Convention", "build_model"]


def build_model(
    config: ModelConfig,
    ops: Ops,
    device: Device,
    dtype: torch.dtype,
    max_length: int,
    *,
    plugins: Mapping[str, str] = NO_PLUGINS,
    shard: Shard = ALONE,
    group: Communicator | None = None,
    stage: Stage = WHOLE_MODEL,
    arrivals: Tensor | None = None,
) -> CausalLM:
    """The model's graph, with weights of `dtype` on the meta device; `core.weights` fills them.

    `max_length` is the longest sequence served, in tokens: rope tables have that many rows and live on the device at
    once. `plugins` is what the `mainspring_models` hooks returned. `shard` is the part that this rank holds, `group`
    its way to the others; `stage` says which layers, and to `arrivals` comes what those take in. Raises `ModelError`
    for an unknown architecture, a class that is no model, or one that ranks cannot share.
    """
    name = model_class(config.architecture, plugins)
    module, _, attribute = name.partition(":")
    try:
        build = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{name}, the model of {config.architecture}, cannot be imported: {error}") from error
    model = build(config, LayerFactory(ops, device, max_length, shard, group, stage, arrivals))
    if not isinstance(model, CausalLM):
        raise ModelError(f"{name}, the model of {config.architecture}, is no CausalLM; mend the plugin that names it")
    if group is not None and not model.shards:
        raise ModelError(f"{name}, the model of {config.architecture}, runs on one device only; leave --num-shard out")
    if stage.count > 1 and not model.stages:
        raise ModelError(
            f"{name}, the model of {config.architecture}, cannot be cut into stages; leave --pipeline-parallel-size out"
        )
    for parameter in model.parameters():
        # Not `model.to(dtype)`: rope tables stay float32.
        parameter.data = parameter.data.to(dtype)
    return model

"""Fills a built model with weights: from a checkpoint, or at random.

Layers ask for their tensors one layer at a time, so memory beyond the model itself holds one layer. What a file must
hold is known before the first byte is read, and everything that is wrong with it is said at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mainspring.core.backend import Device, ProgressCallback, WeightScheme, unquantized
from mainspring.core.checkpoints import GGUF, Checkpoint, Safetensors
from mainspring.core.config import Dtype, ModelConfig
from mainspring.core.errors import ModelError
from mainspring.core.keeping import Keeping
from mainspring.core.layers.weights import WHOLE, Cut, Packing, Shape, WeightLayer
from mainspring.core.models.causal import CausalLM, Convention
from mainspring.core.quantization import head_scheme

DTYPES: Mapping[torch.dtype, Dtype] = MappingProxyType({
    torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16",
})  # fmt: skip

DUMMY_PERIOD = 1_048_573
"""Random numbers that dummy weights repeat. A prime, so that rows of no matrix are alike."""


def load_weights(
    model: CausalLM,
    path: Path,
    config: ModelConfig,
    device: Device,
    dtype: torch.dtype,
    scheme: WeightScheme | None,
    progress: ProgressCallback,
    *,
    keeps_quantized: bool = True,
    whole: CausalLM | None = None,
) -> None:
    """Fills a built model from a directory of safetensors or a `.gguf` file.

    `scheme` None packs linear layers as the checkpoint stores them where the device takes that, unless not
    `keeps_quantized`, and else as `unquantized(dtype)`; the head of a scheme is `head_scheme`'s. Where `model` is a
    stage, `whole` is all of it, unfilled: the checkpoint must hold that, and what is not the stage's stays unread.
    `progress` is called with ("weights", done bytes, total bytes) after each layer. Raises `ModelError` that names all
    missing, surplus and misshaped tensors at once.
    """
    layers, every = weight_layers(model), weight_layers(whole or model)
    wanted = {name: shape for at, layer in every.items() for name, shape in layer.sources(at).items()}
    checkpoint = (
        GGUF(path, config, wanted)
        if path.suffix == ".gguf"
        else Safetensors(path, model.convention, quantization=config.quantization)
    )
    if config.tied_embeddings:
        # Some checkpoints hold the head a second time.
        checkpoint.entries.pop("lm_head.weight", None)
    _check(checkpoint, wanted)
    packing = _packing(device, dtype, scheme)
    if scheme is None and keeps_quantized:
        packing = replace(packing, stored=Keeping(checkpoint, device))
    _fill(layers, checkpoint, packing, progress)


def load_heads(
    heads: nn.Module,
    files: Sequence[Path],
    convention: Convention,
    device: Device,
    dtype: torch.dtype,
    progress: ProgressCallback,
) -> None:
    """Fills the modules of a drafter from safetensors, unquantized. As `load_weights` otherwise."""
    layers = weight_layers(heads)
    checkpoint = Safetensors(files[0].parent, convention, files)
    _check(checkpoint, {name: shape for at, layer in layers.items() for name, shape in layer.sources(at).items()})
    _fill(layers, checkpoint, _packing(device, dtype, None), progress)


def fill_dummy(model: CausalLM, seed: int, device: Device, dtype: torch.dtype, scheme: WeightScheme | None) -> None:
    """Small random weights, the same for one seed on every device; biases are small too and norms are ones.

    For speed tests of true shapes: numbers repeat after `DUMMY_PERIOD`, since drawing billions takes minutes.
    """
    generator = torch.Generator().manual_seed(seed)
    # Drawn on the host, so that every device gets the same, and repeated where they will stay.
    numbers = torch.randn(DUMMY_PERIOD, generator=generator).mul_(0.02).to(device=device.torch_device, dtype=dtype)
    packing = _packing(device, dtype, scheme)
    for at, layer in weight_layers(model).items():
        shapes = layer.sources(at)

        def draw(name: str, cut: Cut = WHOLE, *, shapes: Mapping[str, Shape] = shapes) -> Tensor:
            return cut.of(_dummy(name, shapes[name], numbers))

        layer.fill(at, draw, packing)


def _fill(
    layers: Mapping[str, WeightLayer], checkpoint: Checkpoint, packing: Packing, progress: ProgressCallback
) -> None:
    sizes = {at: sum(checkpoint.entries[name].num_bytes for name in layer.sources(at)) for at, layer in layers.items()}
    done, total = 0, sum(sizes.values())
    for at, layer in layers.items():
        layer.fill(at, checkpoint.read, packing)
        done += sizes[at]
        progress("weights", done, total)


def weight_layers(model: nn.Module) -> dict[str, WeightLayer]:
    """The layers that hold weights, by module path, in the model's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, WeightLayer)}


def _packing(device: Device, dtype: torch.dtype, scheme: WeightScheme | None) -> Packing:
    plain = unquantized(DTYPES[dtype])
    return Packing(device, dtype, linear=scheme or plain, head=head_scheme(scheme, plain) if scheme else plain)


def _dummy(name: str, shape: Shape, numbers: Tensor) -> Tensor:
    if len(shape) == 1 and name.endswith(".weight"):
        return torch.ones(shape, dtype=numbers.dtype, device=numbers.device)
    length = torch.Size(shape).numel()
    # The name decides where the tensor starts in the numbers, so tensors of one shape differ.
    start = zlib.crc32(name.encode()) % DUMMY_PERIOD
    return numbers.roll(-start).repeat(length // DUMMY_PERIOD + 1)[:length].view(shape)


def _check(checkpoint: Checkpoint, wanted: Mapping[str, Shape]) -> None:
    held = checkpoint.entries
    reasons = [f"tensor {name} {list(wanted[name])} is missing" for name in wanted if name not in held]
    reasons += [f"tensor {held[name].stored} belongs nowhere in the model" for name in held if name not in wanted]
    reasons += [
        f"tensor {held[name].stored} is {list(held[name].shape)} where the model's config makes it {list(shape)}"
        for name, shape in wanted.items()
        if name in held and held[name].shape != shape
    ]
    if reasons:
        remedy = "the checkpoint and its config do not belong together; fetch both from one place"
        raise ModelError([f"{checkpoint.source}: {reason}" for reason in reasons] + [remedy])

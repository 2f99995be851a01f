"""The whole of `mainspring quantize`: a model's directory in, a quantized one out, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mainspring.core.architectures import read_model_config
from mainspring.core.backend import WeightScheme, unquantized
from mainspring.core.checkpoints import Safetensors
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError
from mainspring.core.layers.decoder import Decoder
from mainspring.core.layers.linear import Linear
from mainspring.core.layers.norm import RMSNorm
from mainspring.core.layers.weights import Packing, Stored, WeightLayer
from mainspring.core.models import CausalLM, build_model
from mainspring.core.ops import Ops
from mainspring.core.ops.quantized import dequantize
from mainspring.core.quantizing.calibration import Fed, Recorder, Stream, fed_by
from mainspring.core.quantizing.rounding import gptq, to_nearest
from mainspring.core.quantizing.scaling import best_scales
from mainspring.core.quantizing.writing import FORMATS, Writer

Method = Literal["rtn", "gptq", "awq", "fp8"]
CALIBRATED: tuple[Method, ...] = ("gptq", "awq")
"""Methods that look at what the layers are fed."""

Progress = Callable[[int, int], None]
"""Called with (blocks done, blocks in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be made."""

    model: Path
    out: Path
    method: Method
    layout: str = "compressed-tensors"
    """A key of `FORMATS`."""
    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    sequences: Sequence[Sequence[int]] = field(default_factory=list)
    """Token ids of the calibration text; none for methods that need none."""

    @property
    def scheme(self) -> WeightScheme:
        """What linear layers become. Raises `ModelError` for what the layout does not hold."""
        if self.layout == "gptq" and (self.method == "fp8" or not self.symmetric):
            raise ModelError("the gptq layout holds symmetric integers; use --format compressed-tensors")
        if self.method == "fp8":
            return WeightScheme(
                weight="float8_e4m3fn", bits=8, activation="float8_e4m3fn", activation_granularity="token"
            )
        weight: Literal["int4", "int8"] = "int4" if self.bits == 4 else "int8"
        return WeightScheme(weight=weight, bits=self.bits, group_size=self.group_size, symmetric=self.symmetric)


def quantize(order: Order, progress: Progress) -> int:
    """Makes the checkpoint; returns the bytes of its tensors. Raises `ModelError` with all that is in the way."""
    config, scheme = read_model_config(order.model), order.scheme
    device = Recorder()
    length = max((len(tokens) for tokens in order.sequences), default=1)
    model = build_model(config, Ops(), device, torch.float32, length)
    decoder = _decoder(model, config)
    _refuse(order, config, scheme, decoder)
    checkpoint = Safetensors(order.model, model.convention)
    plain = unquantized("float32")
    packing = Packing(device, torch.float32, linear=plain, head=plain)
    # AutoGPTQ's layout has its scales in float16, whatever the model's dtype is.
    dtype = torch.float16 if order.layout == "gptq" else getattr(torch, config.dtype)
    writer = Writer(order.out)
    with torch.inference_mode():
        at = "model.embed_tokens"
        _weight_layers(decoder, "model")[at].fill(at, checkpoint.read, packing)
        stream = Stream.of(decoder.embed_tokens, order.sequences)
        for number, block in enumerate(decoder.layers):
            path = f"model.layers.{number}"
            for name, layer in _weight_layers(block, path).items():
                layer.fill(name, checkpoint.read, packing)
            worker = _Block(order, scheme, dtype, checkpoint, path=path)
            writer.add(worker.quantized(block, stream, config, device))
            for layer in _linears(block, path).values():
                layer.packed = ()
            progress(number + 1, config.num_layers)
        rest = [name for name in checkpoint.entries if not name.startswith("model.layers.")]
        writer.add({checkpoint.entries[name].stored: checkpoint.raw(name) for name in rest})
    return writer.finish(order.model, FORMATS[order.layout][1](scheme))


@dataclass(frozen=True, slots=True)
class _Block:
    """The work on one block."""

    order: Order
    scheme: WeightScheme
    dtype: torch.dtype
    checkpoint: Safetensors
    path: str = field(kw_only=True)

    def quantized(self, block: nn.Module, stream: Stream, config: ModelConfig, device: Recorder) -> dict[str, Tensor]:
        """All tensors of the block as they are written; `stream` is then behind the quantized block."""
        calibrated = self.order.method in CALIBRATED
        if calibrated:
            stream.through(block, config, device, keep=False)
        linears = _linears(block, self.path)
        changed = self._scaled(block) if self.order.method == "awq" else {}
        written = self._copied(changed, linears)
        for path, layer in linears.items():
            fed = fed_by(layer)
            stored = self._rounded(fed)
            fed.weight, fed.gram = dequantize(stored.scheme, stored.tensors), None
            written |= self._packed(path, layer, stored)
        if calibrated:
            stream.through(block, config, device, keep=True)
        return written

    def _rounded(self, fed: Fed) -> Stored:
        if self.order.method == "gptq" and fed.gram is not None:
            return gptq(fed.weight, fed.gram, self.scheme, self.dtype)
        return to_nearest(fed.weight, self.scheme, self.dtype)

    def _packed(self, path: str, layer: Linear, stored: Stored) -> dict[str, Tensor]:
        """A merged layer's rows go back to the checkpoint's layers."""
        written: dict[str, Tensor] = {}
        first = 0
        for name, shape in layer.sources(path).items():
            if not name.endswith(".weight"):
                continue
            rows = {kind: tensor[first : first + shape[0]] for kind, tensor in stored.tensors.items()}
            first += shape[0]
            module = self.checkpoint.entries[name].stored.removesuffix(".weight")
            pack = FORMATS[self.order.layout][0]
            parts = pack(Stored(stored.scheme, rows), self.dtype)
            written |= {f"{module}.{kind}": tensor for kind, tensor in parts.items()}
        return written

    def _copied(self, changed: Mapping[str, Tensor], linears: Mapping[str, Linear]) -> dict[str, Tensor]:
        """The block's other tensors: as they are in the checkpoint, or as scaling left them."""
        weights = {name for path, layer in linears.items() for name in layer.sources(path) if name.endswith(".weight")}
        names = [name for name in self.checkpoint.entries if name.startswith(f"{self.path}.") and name not in weights]
        return {self.checkpoint.entries[name].stored: changed.get(name, self.checkpoint.raw(name)) for name in names}

    def _scaled(self, block: Any) -> dict[str, Tensor]:
        """Moves scale into the layers behind each norm, and from the MLP's inputs into its output. Returns the tensors
        that are no linear weights and changed.
        """
        changed: dict[str, Tensor] = {}
        norms = [name for name in ("input_layernorm", "pre_feedforward_layernorm") if hasattr(block, name)]
        if len(norms) == 1:
            norms.append("post_attention_layernorm")
        targets = (block.self_attn.qkv_proj, block.mlp.gate_up_proj)
        for name, target in zip(norms, targets, strict=True):
            norm: RMSNorm = getattr(block, name)
            scales_K = _scale_columns(fed_by(target), self.scheme, self.dtype)
            norm.weight.data.div_(scales_K)
            key = f"{self.path}.{name}.weight"
            changed[key] = self.checkpoint.unread(key, norm.weight.data).to(self.dtype)
        up, down = block.mlp.gate_up_proj.packed[0], block.mlp.down_proj
        scales_K = _scale_columns(fed_by(down), self.scheme, self.dtype)
        up.data.weight[len(scales_K) :].div_(scales_K[:, None])
        return changed


def _scale_columns(fed: Fed, scheme: WeightScheme, dtype: torch.dtype) -> Tensor:
    """Multiplies a weight's columns by AWQ's scales, which it returns."""
    if fed.gram is None:
        raise ModelError("AWQ needs a calibration text")
    scales_K = best_scales(fed.weight, fed.gram, scheme, dtype)
    fed.weight = fed.weight * scales_K
    return scales_K


def _decoder(model: CausalLM, config: ModelConfig) -> Decoder:
    decoder = getattr(model, "model", None)
    if not isinstance(decoder, Decoder):
        raise ModelError(f"{config.architecture} is not made of a decoder's blocks; it cannot be quantized here")
    return decoder


def _refuse(order: Order, config: ModelConfig, scheme: WeightScheme, decoder: Decoder) -> None:
    reasons = []
    if config.quantization:
        reasons.append(f"{order.model} is quantized already; give the original model")
    if order.out.exists():
        reasons.append(f"{order.out} exists; give a directory that does not")
    if order.method in CALIBRATED and not order.sequences:
        reasons.append(f"--method {order.method} needs a text: give --calibration FILE, or use --method rtn")
    if config.experts is not None:
        reasons.append("models with experts are not quantized here: their experts keep the compute dtype")
    if order.method == "awq" and config.mlp_bias:
        reasons.append("AWQ moves no scale through an MLP with biases; use --method gptq")
    block = decoder.layers[0]
    for path, layer in _linears(block, "").items():
        features = layer.weight.shape[1]
        if scheme.group_size and features % scheme.group_size:
            sizes = [size for size in (128, 64, 32, 16) if features % size == 0]
            reasons.append(
                f"{path.lstrip('.')}: {features} input features do not divide into groups of {scheme.group_size}; "
                f"use --group-size {sizes[0] if sizes else -1}"
            )
    if reasons:
        raise ModelError(reasons)


def _weight_layers(block: nn.Module, path: str) -> dict[str, WeightLayer]:
    return {f"{path}.{name}": layer for name, layer in block.named_modules() if isinstance(layer, WeightLayer)}


def _linears(block: nn.Module, path: str) -> dict[str, Linear]:
    return {name: layer for name, layer in _weight_layers(block, path).items() if isinstance(layer, Linear)}

"""The `quantization_config` of compressed-tensors: groups of modules, and how the weights of each are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mainspring.core.backend import WeightScheme
from mainspring.core.prequantized.layout import Rule

Packed = Literal["words", "bytes", "no"]

FORMATS: Mapping[str, Packed] = {
    "pack-quantized": "words",
    "int-quantized": "no",
    "float-quantized": "no",
    "naive-quantized": "no",
    "nvfp4-pack-quantized": "bytes",
    "mxfp4-pack-quantized": "bytes",
}


class UnreadableRule(Exception):
    """A group that no reader takes; the message says what of it."""


def rules(config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """What the config's groups say, in order. Raises `UnreadableRule`."""
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity not in ("dense", None):
        raise UnreadableRule(f"sparsity {sparsity}")
    if config.get("transform_config"):
        raise UnreadableRule("transform_config: rotations at run time")
    groups = [group for group in (config.get("config_groups") or {}).values() if group.get("weights")]
    if not groups:
        raise UnreadableRule("no group of weights")
    return tuple(_rule(group, str(group.get("format") or config.get("format"))) for group in groups)


def _rule(group: Mapping[str, Any], layout: str) -> Rule:
    if layout not in FORMATS:
        raise UnreadableRule(f"format {layout}")
    weights = group["weights"]
    bits, kind, packed = weights.get("num_bits", 8), weights.get("type", "int"), FORMATS[layout]
    weight = _weight_type(bits, kind, layout)
    size, rows = _sizes(weights)
    activation, granularity = (None, None) if bits < 8 else _activations(group.get("input_activations"))
    return Rule(
        targets=tuple(group.get("targets") or ()),
        packed=packed,
        scheme=WeightScheme(
            weight=weight,
            bits=4 if weight in ("int4", "nvfp4", "mxfp4") else 8,
            group_size=size,
            group_rows=rows,
            symmetric=bool(weights.get("symmetric", True)),
            scattered=weights.get("actorder") == "group",
            activation=activation,
            activation_granularity=granularity,
        ),
    )


def _weight_type(bits: int, kind: str, layout: str) -> Literal["int8", "int4", "float8_e4m3fn", "nvfp4", "mxfp4"]:
    if layout == "nvfp4-pack-quantized":
        return "nvfp4"
    if layout == "mxfp4-pack-quantized":
        return "mxfp4"
    if (bits, kind) == (8, "float"):
        return "float8_e4m3fn"
    if kind == "int" and bits in (4, 8):
        return "int4" if bits == 4 else "int8"
    raise UnreadableRule(f"{bits}-bit {kind} weights as {layout}")


def _sizes(weights: Mapping[str, Any]) -> tuple[int | None, int]:
    """Input and output features that share a scale, as `WeightScheme` has them."""
    match weights.get("strategy"):
        case "tensor":
            return 0, 1
        case "block":
            rows, columns = weights["block_structure"]
            return int(columns), int(rows)
        case "group" | "tensor_group":
            return int(weights["group_size"]), 1
        case _:
            return None, 1


def _activations(
    inputs: Mapping[str, Any] | None,
) -> tuple[Literal["int8", "float8_e4m3fn"] | None, Literal["tensor", "token", "block"] | None]:
    """What activations are rounded to; nothing where no reference rounds them so, which is never less exact."""
    if inputs is None or inputs.get("num_bits") != 8 or not inputs.get("symmetric", True):
        return None, None
    kind: Literal["int8", "float8_e4m3fn"] = "float8_e4m3fn" if inputs.get("type") == "float" else "int8"
    if inputs.get("strategy") == "token":
        return kind, "token"
    return (kind, "block") if inputs.get("strategy") == "group" else (kind, "tensor")

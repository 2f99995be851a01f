"""The `quantization_config` of torchao, which names a class of its configurations and that one's fields.

It says how most weights are stored, which is what memory is planned by; each weight's own form stands in the files'
metadata. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mainspring.core.backend import WeightScheme

Granularity = Literal["tensor", "token", "block"]
Rounded = Literal["int8", "float8_e4m3fn"]

PACKINGS = ("PLAIN", "TILE_PACKED_TO_4D")
"""Of 4-bit words: two a byte, and the order of NVIDIA's matrix units."""


class UnreadableConfig(Exception):
    """A configuration that no reader takes; the message says what of it."""


def scheme_of(config: Mapping[str, Any]) -> WeightScheme:
    """How most weights are stored. Raises `UnreadableConfig`."""
    quant_type = config.get("quant_type")
    if not isinstance(quant_type, Mapping):
        raise UnreadableConfig(f"quant_type {quant_type} of older versions, whose weights are pickles; save it by 0.15")
    return _scheme(quant_type.get("default", quant_type))


def named(value: object, default: str) -> str:
    """What torchao writes as {"_type": ..., "_data": name}, or as the name alone."""
    found = value.get("_data") if isinstance(value, Mapping) else value
    return default if found is None else str(found)


def activation_of(options: object, kind: Rounded) -> tuple[Rounded | None, Granularity | None]:
    """How activations are rounded by a weight's `act_quant_kwargs`; nothing where no reference rounds them so, which is
    never less exact.
    """
    if not isinstance(options, Mapping):
        return None, None
    fields = options.get("_data") or {}
    if named(fields.get("mapping_type"), "SYMMETRIC") != "SYMMETRIC":
        return None, None
    granularity = _granularity(fields.get("granularity"))
    return (None, None) if granularity is None else (kind, granularity)


def _scheme(config: Mapping[str, Any]) -> WeightScheme:
    kind, fields = str(config.get("_type", "a configuration without _type")), config.get("_data") or {}
    match kind:
        case "FqnToConfig" | "ModuleFqnToConfig":
            by_name = fields.get("fqn_to_config") or fields.get("module_fqn_to_config") or {}
            found = [found for found in (by_name.get("_default"), *by_name.values()) if found]
            if not found:
                raise UnreadableConfig(f"{kind} names no configuration")
            return _scheme(found[0])
        case "AWQConfig" | "SmoothQuantConfig":
            return _scheme(fields.get("base_config") or {})
        case "Int4WeightOnlyConfig" | "Float8DynamicActivationInt4WeightConfig":
            packing = named(fields.get("int4_packing_format"), "PLAIN").upper()
            if packing not in PACKINGS:
                raise UnreadableConfig(f"int4_packing_format {packing.lower()}; read are plain and tile_packed_to_4d")
            return WeightScheme(weight="int4", bits=4, group_size=int(fields.get("group_size", 128)), symmetric=False)
        case "IntxWeightOnlyConfig" | "Int8DynamicActivationIntxWeightConfig":
            return _intx(fields)
        case "Int8WeightOnlyConfig" | "Int8DynamicActivationInt8WeightConfig" | "Int8StaticActivationInt8WeightConfig":
            return _eight_bits(kind, fields, "int8")
        case "Float8WeightOnlyConfig" | "Float8DynamicActivationFloat8WeightConfig":
            return _eight_bits(kind, fields, "float8_e4m3fn")
    raise UnreadableConfig(kind)


def _intx(fields: Mapping[str, Any]) -> WeightScheme:
    bits = int(named(fields.get("weight_dtype"), "int8").removeprefix("int"))
    granularity = fields.get("weight_granularity") or fields.get("granularity")
    mapping = fields.get("weight_mapping_type") or fields.get("mapping_type")
    return WeightScheme(
        weight="int4" if bits <= 4 else "int8",
        bits=4 if bits <= 4 else 8,
        group_size=_group_size(granularity),
        symmetric=named(mapping, "SYMMETRIC") != "ASYMMETRIC",
    )


def _eight_bits(kind: str, fields: Mapping[str, Any], weight: Rounded) -> WeightScheme:
    # One for both, or activations' before weights'.
    granularities = fields.get("granularity")
    both = granularities if isinstance(granularities, list) else [granularities, granularities]
    activation = None if "WeightOnly" in kind else _granularity(both[0]) or "token"
    if named(fields.get("act_mapping_type"), "SYMMETRIC") != "SYMMETRIC":
        activation = None
    return WeightScheme(
        weight=weight,
        bits=8,
        group_size=0 if _granularity(both[1]) == "tensor" else _group_size(both[1]),
        activation=None if activation is None else weight,
        activation_granularity=activation,
    )


def _group_size(granularity: object) -> int | None:
    """Of `PerGroup`; the others have one scale an output channel."""
    fields = granularity.get("_data") if isinstance(granularity, Mapping) else None
    return fields.get("group_size") if isinstance(fields, Mapping) else None


def _granularity(value: object) -> Granularity | None:
    """torchao's `PerRow` of activations is a token each."""
    kind = str(value.get("_type")) if isinstance(value, Mapping) else ""
    known: dict[str, Granularity] = {"PerRow": "token", "PerToken": "token", "PerTensor": "tensor", "PerBlock": "block"}
    return known.get(kind)

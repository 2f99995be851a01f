"""The layout that a `quantization_config` describes, or the reason why none reads it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mainspring.core.backend import WeightScheme, unquantized
from mainspring.core.errors import ModelError
from mainspring.core.prequantized import compressed_config, torchao_config
from mainspring.core.prequantized.layout import Layout

Config = Mapping[str, Any]


class Unreadable(Exception):
    """A variant of a format that no reader takes; the message says which."""


RETIRED: Mapping[str, str] = MappingProxyType(
    {
        "exl2": "EXL2 has no maintained writer and no published layout; quantize the original model, with "
        "`mainspring quantize` or any tool that writes GPTQ, AWQ or compressed-tensors",
        "eetq": "EETQ stores weights in the order of one generation of GPUs; serve the original model with "
        "--quantize eetq, which rounds it to the same int8 while loading",
        "quip": "QuIP# has no maintained writer; quantize the original model with `mainspring quantize`",
    }
)
"""Methods that are explained instead of read."""


def recognize(config: Config, source: str) -> Layout:
    """The layout that the file `source` describes. Raises `ModelError` when none reads it."""
    method = str(config.get("quant_method", "unnamed"))
    if method in RETIRED:
        raise ModelError(f"{source} describes weights quantized by {method!r}: {RETIRED[method]}")
    if method not in METHODS:
        raise _unsupported(source, repr(method))
    try:
        return METHODS[method](config)
    except (Unreadable, compressed_config.UnreadableRule, torchao_config.UnreadableConfig) as error:
        raise _unsupported(source, f"{method!r} ({error})") from None


def _gptq(config: Config) -> Layout:
    bits = config.get("bits", 4)
    if bits not in (2, 3, 4, 8):
        raise Unreadable(f"bits {bits}")
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    if config.get("is_marlin_format") or layout == "marlin":
        return _marlin(config)
    if layout not in ("gptq", "gptq_v2"):
        raise Unreadable(f"checkpoint_format {layout}; save it as gptq, from which kernels pack at load")
    if config.get("pack_dtype", "int32") != "int32":
        raise Unreadable(f"pack_dtype {config['pack_dtype']}")
    scheme = WeightScheme(
        weight="int8" if bits == 8 else "int4",
        bits=8 if bits == 8 else 4,
        group_size=_group_size(config),
        symmetric=bool(config.get("sym", True)),
        scattered=bool(config.get("desc_act", False)) and _group_size(config) is not None,
    )
    return Layout(reader="gptq", scheme=scheme, zero_offset=0 if layout == "gptq_v2" else 1)


def _marlin(config: Config) -> Layout:
    bits = config.get("bits", 4)
    if bits != 4 or config.get("is_marlin_24") or config.get("checkpoint_format") == "marlin_24":
        raise Unreadable(f"Marlin's order of {bits} bits, or of 2:4 sparsity; save it as gptq")
    return Layout(reader="marlin", scheme=WeightScheme(weight="int4", bits=4, group_size=_group_size(config)))


def _awq(config: Config) -> Layout:
    bits, version = config.get("bits", config.get("w_bit", 4)), str(config.get("version", "gemm")).lower()
    if bits != 4:
        raise Unreadable(f"bits {bits}")
    if version == "marlin":
        return _marlin(config)
    if version not in ("gemm", "gemv"):
        raise Unreadable(f"version {version}")
    size = config.get("group_size", config.get("q_group_size", 128))
    scheme = WeightScheme(weight="int4", bits=4, group_size=size if size > 0 else None, symmetric=False)
    return Layout(reader="awq" if version == "gemm" else "awq-gemv", scheme=scheme)


def _fp8(config: Config) -> Layout:
    block = config.get("weight_block_size")
    static = config.get("activation_scheme", "dynamic") == "static"
    if block:
        scheme = WeightScheme(
            weight="float8_e4m3fn", bits=8, group_size=block[1], group_rows=block[0],
            activation="float8_e4m3fn", activation_granularity="tensor" if static else "block",
        )  # fmt: skip
    else:
        scheme = WeightScheme(
            weight="float8_e4m3fn", bits=8, group_size=0,
            activation="float8_e4m3fn", activation_granularity="tensor" if static else "token",
        )  # fmt: skip
    return Layout(reader="fp8", scheme=scheme)


def _fbgemm(config: Config) -> Layout:
    scheme = WeightScheme(
        weight="float8_e4m3fn", bits=8, activation="float8_e4m3fn", activation_granularity="token"
    )  # fmt: skip
    return Layout(reader="fp8", scheme=scheme)


def _bitsandbytes(config: Config) -> Layout:
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return Layout(reader="bitsandbytes", scheme=WeightScheme(weight="int8", bits=8))
    kind = config.get("bnb_4bit_quant_type", "fp4")
    if kind not in ("nf4", "fp4"):
        raise Unreadable(f"bnb_4bit_quant_type {kind}")
    return Layout(reader="bitsandbytes", scheme=WeightScheme(weight=kind, bits=4, group_size=64))


def _torchao(config: Config) -> Layout:
    return Layout(reader="torchao", scheme=torchao_config.scheme_of(config))


def _hqq(config: Config) -> Layout:
    options: Config = config.get("quant_config") or {}
    if "weight_quant_params" not in options:  # by the layer's name, where those differ
        options = next((found for found in options.values() if found), {})
    weights = options.get("weight_quant_params") or {}
    if not weights:
        raise Unreadable("quant_config without weight_quant_params")
    if weights.get("axis") == 0:
        # Groups across outputs, which no scheme has.
        return Layout(reader="hqq", scheme=unquantized("float32"))
    eight = weights.get("nbits", 4) > 4
    scheme = WeightScheme(
        weight="int8" if eight else "int4",
        bits=8 if eight else 4,
        group_size=weights.get("group_size"),
        symmetric=False,
    )
    return Layout(reader="hqq", scheme=scheme)


def _mxfp4(config: Config) -> Layout:
    return Layout(reader="mxfp4", scheme=WeightScheme(weight="mxfp4", bits=4, group_size=32))


def _group_size(config: Config) -> int | None:
    size = int(config.get("group_size", 128))
    return size if size > 0 else None


def _compressed(config: Config) -> Layout:
    rules = compressed_config.rules(config)
    return Layout(reader="compressed", scheme=rules[0].scheme, rules=rules)


METHODS: Mapping[str, Callable[[Config], Layout]] = MappingProxyType(
    {
        "gptq": _gptq,
        "marlin": _marlin,
        "awq": _awq,
        "compressed-tensors": _compressed,
        "fp8": _fp8,
        "fbgemm_fp8": _fbgemm,
        "bitsandbytes": _bitsandbytes,
        "torchao": _torchao,
        "hqq": _hqq,
        "mxfp4": _mxfp4,
    }
)
"""By `quant_method`."""


def _unsupported(source: str, what: str) -> ModelError:
    return ModelError(
        f"{source} describes weights quantized by {what}, which is not supported; read are {', '.join(METHODS)} "
        "(docs/quantization.md says which of their variants); use one of these, the model's unquantized checkpoint "
        "or a GGUF file of it"
    )

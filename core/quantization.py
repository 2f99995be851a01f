"""What `--quantize` takes, how a quantized checkpoint is served, and whether a device can run a model that way.

Rounding to nearest is `core/ops/quantized.py`; formats of checkpoints that are already quantized are readers of
`core/prequantized`. All of them end in a `WeightScheme`, which is the only thing a backend sees.

A checkpoint's scheme that the device has no kernel for is de-quantised while it loads, with a note in
`mainspring check` and in the log, instead of being refused: who has the checkpoint wants it served, values are the
same, and where the memory that this takes is not there, the plan says so before a byte is read. `--quantize` with a
scheme is an order, though: it is refused where the device cannot follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mainspring.core.architectures import linear_shapes
from mainspring.core.backend import Capabilities, Device, WeightScheme, unquantized
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError
from mainspring.core.prequantized.layout import schemes_of
from mainspring.core.prequantized.recognize import RETIRED, recognize

SCHEMES: Mapping[str, WeightScheme] = MappingProxyType(
    {
        "int8": WeightScheme(weight="int8", bits=8),
        "int8-dynamic": WeightScheme(weight="int8", bits=8, activation="int8", activation_granularity="token"),
        "int4": WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False),
        "int4-dynamic": WeightScheme(
            weight="int4", bits=4, group_size=32, symmetric=False, activation="int8", activation_granularity="token"
        ),
        "fp8": WeightScheme(weight="float8_e4m3fn", bits=8, activation="float8_e4m3fn", activation_granularity="token"),
        "nf4": WeightScheme(weight="nf4", bits=4, group_size=64),
        "fp4": WeightScheme(weight="fp4", bits=4, group_size=64),
    }
)
"""By the name that `--quantize` takes. Activations stay in the compute dtype, but for the `-dynamic` ones, which round
them too, with a scale a token, and multiply integers: faster where the machine does that well.

Embeddings, norms and biases keep the compute dtype: together they are small. The output head is `head_scheme`'s.
"""

TGI_NAMES: Mapping[str, str] = MappingProxyType(
    {"eetq": "int8", "bitsandbytes": "int8", "bitsandbytes-nf4": "nf4", "bitsandbytes-fp4": "fp4"}
)
"""Methods that TGI applied while it loaded, by the schemes that they come to."""

CHECKPOINTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # TGI ran AWQ weights by GPTQ's kernels under this name, and either by Marlin's.
        "gptq": ("gptq", "awq"),
        "marlin": ("gptq", "awq", "marlin"),
        "awq": ("awq",),
        "compressed-tensors": ("compressed-tensors",),
        "bitsandbytes": ("bitsandbytes",),
        "bitsandbytes-nf4": ("bitsandbytes",),
        "bitsandbytes-fp4": ("bitsandbytes",),
        "fp8": ("fp8", "fbgemm_fp8", "compressed-tensors"),
        "exl2": (),
    }
)
"""Methods that TGI's `--quantize` names where the checkpoint is quantized already: the `quant_method`s that fit."""

NO_QUANTIZATION = "none"
"""What `--quantize` takes beside them: all weights become numbers, those that the checkpoint has quantized, too."""


def resolve_name(name: str | None, model: ModelConfig) -> str | None:
    """The scheme that weights are rounded to while they load, None where they stay as they are, for what `--quantize`
    said. TGI wants a quantized checkpoint's method named; here its config is enough, and a name that fits is no more
    than that. Raises `ModelError` for a method that the checkpoint is not quantized by.
    """
    method = str(model.quantization.get("quant_method", ""))
    if name is None or (method and method in CHECKPOINTS.get(name, ())):
        return None
    scheme = TGI_NAMES.get(name, name)
    if scheme in SCHEMES or name not in CHECKPOINTS:
        return scheme
    found = f"is quantized by {method!r}" if method else "is not quantized"
    if name in RETIRED:
        raise ModelError(f"--quantize {name}: {RETIRED[name]}")
    raise ModelError(
        f"--quantize {name} reads a checkpoint of that format, and this one {found}; leave the flag out to serve it "
        f"as it is, name a scheme ({', '.join(SCHEMES)}) to round it while it loads, or make one with `mainspring "
        "quantize`"
    )


def stored_scheme(model: ModelConfig, capabilities: Capabilities, plain: WeightScheme) -> tuple[WeightScheme, str]:
    """How most of a checkpoint's linear layers will lie in memory, and a note where that is not as they are stored."""
    if not model.quantization:
        return plain, ""
    schemes = schemes_of(recognize(model.quantization, "config.json").scheme)
    if schemes[0].bits >= 16:
        return plain, f"groups of this checkpoint have no scheme: weights are de-quantised to {plain} while they load"
    for scheme in schemes:
        if scheme in capabilities.weight_schemes:
            return scheme, ""
    return plain, (
        f"weights stored as {schemes[-1]} are de-quantised to {plain} while they load: this backend has kernels for "
        f"{'; '.join(map(str, capabilities.weight_schemes)) or 'unquantized weights only'}"
    )


def head_scheme(scheme: WeightScheme, plain: WeightScheme) -> WeightScheme:
    """How the output head is stored beside linear layers stored by `scheme`; `plain` is the compute dtype's.

    Rounding it costs the most quality for the least memory, so weights in fewer bits leave it alone. Who rounds
    activations is after speed, though, and the head is what a step of a small model reads most of: it becomes int8
    there, whatever the other layers are.
    """
    return SCHEMES["int8-dynamic"] if scheme.activation == "int8" else plain


def unsupported(model: ModelConfig, scheme: WeightScheme, device: Device) -> list[str]:
    """Every reason why the device cannot run the model's linear layers under the scheme; empty when it can."""
    if model.experts is not None:
        return [f"experts are kept in the compute dtype, and {model.architecture} has them; serve it without {scheme}"]
    layers = [(what, shape, scheme) for what, shape in linear_shapes(model).items()]
    if (head := head_scheme(scheme, unquantized("float32"))).bits < 16:
        layers.append(("output head", (model.hidden_size, model.vocab_size), head))
    reasons = []
    for what, (in_features, out_features), stored in layers:
        shape = f"{what} ({in_features} to {out_features} features)"
        if stored.group_size and in_features % stored.group_size:
            reasons.append(f"{shape}: {in_features} does not divide into groups of {stored.group_size}")
            continue
        verdict = device.supports(stored, in_features, out_features)
        if not verdict.ok:
            reasons.append(f"{shape}: {verdict.reason}")
    return reasons

"""Quantizing weights while they load: what `--quantize` takes, and whether a device can run a model that way.

Rounding to nearest is `core/ops/quantized.py`; formats of checkpoints that are already quantized are readers of
`core/weights.py`. All of them end in a `WeightScheme`, which is the only thing a backend sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mainspring.core.architectures import linear_shapes
from mainspring.core.backend import Device, WeightScheme, unquantized
from mainspring.core.config import ModelConfig

SCHEMES: Mapping[str, WeightScheme] = MappingProxyType(
    {
        "int8": WeightScheme(weight="int8", bits=8),
        "int8-dynamic": WeightScheme(weight="int8", bits=8, activation="int8", activation_granularity="token"),
        "int4": WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False),
        "int4-dynamic": WeightScheme(
            weight="int4", bits=4, group_size=32, symmetric=False, activation="int8", activation_granularity="token"
        ),
    }
)
"""By the name that `--quantize` takes. Activations stay in the compute dtype, but for the `-dynamic` ones, which round
them too, with a scale a token, and multiply integers: faster where the machine does that well.

Embeddings, norms and biases keep the compute dtype: together they are small. The output head is `head_scheme`'s.
"""


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

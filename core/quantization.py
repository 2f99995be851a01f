"""Quantizing weights while they load: what `--quantize` takes, and whether a device can run a model that way.

Rounding to nearest is `core/ops/quantized.py`; formats of checkpoints that are already quantized are readers of
`core/weights.py`. All of them end in a `WeightScheme`, which is the only thing a backend sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mainspring.core.architectures import linear_shapes
from mainspring.core.backend import Device, WeightScheme
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
"""By the name that `--quantize` takes. Activations stay in the compute dtype, but for `int8-dynamic`, which rounds them
too, with a scale a token, and multiplies integers: faster where the machine does that well.

Embeddings, the output head, norms and biases keep the compute dtype: together they are small, and rounding the head
costs the most quality for the least memory.
"""


def unsupported(model: ModelConfig, scheme: WeightScheme, device: Device) -> list[str]:
    """Every reason why the device cannot run the model's linear layers under the scheme; empty when it can."""
    reasons = []
    for what, (in_features, out_features) in linear_shapes(model).items():
        shape = f"{what} ({in_features} to {out_features} features)"
        if scheme.group_size and in_features % scheme.group_size:
            reasons.append(f"{shape}: {in_features} does not divide into groups of {scheme.group_size}")
            continue
        verdict = device.supports(scheme, in_features, out_features)
        if not verdict.ok:
            reasons.append(f"{shape}: {verdict.reason}")
    return reasons

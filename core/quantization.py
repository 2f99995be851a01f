"""Quantizing weights while they load: what `--quantize` takes, and whether a device can run a model that way.

Rounding to nearest is `core/ops/quantized.py`; formats of checkpoints that are already quantized are readers of
`core/weights.py`. All of them end in a `WeightScheme`, which is the only thing a backend sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mainspring.core.backend import Device, WeightScheme
from mainspring.core.config import Dtype, ModelConfig
from mainspring.core.errors import StartupError, unknown

SCHEMES: Mapping[str, WeightScheme] = MappingProxyType(
    {
        "int8": WeightScheme(weight="int8", bits=8),
        "int4": WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False),
    }
)
"""By the name that `--quantize` takes. Weights only: activations stay in the compute dtype."""


def scheme_named(name: str, dtype: Dtype) -> WeightScheme:
    """The scheme of an on-the-fly quantization; `dtype` is what activations stay in.

    Raises `StartupError` for an unknown name, with the nearest one.
    """
    if name not in SCHEMES:
        raise StartupError(unknown("quantization", name, SCHEMES))
    return SCHEMES[name]


def linear_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) features of the linear layers that quantization covers, by what they do.

    Embeddings, the output head, norms and biases keep the compute dtype: together they are small, and rounding the head
    costs the most quality for the least memory.
    """
    attention = model.num_heads * model.head_dim
    keys_and_values = 2 * model.num_kv_heads * model.head_dim
    gated = model.architecture != "GPT2LMHeadModel"
    return {
        "query, key and value projection": (model.hidden_size, attention + keys_and_values),
        "attention output projection": (attention, model.hidden_size),
        "MLP input projection": (model.hidden_size, model.intermediate_size * (2 if gated else 1)),
        "MLP output projection": (model.intermediate_size, model.hidden_size),
    }


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

"""Checks of linear layers: unquantized in each compute dtype, and every scheme that the capabilities declare.

Legend: T tokens, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.core.backend import Capabilities, Device, WeightScheme, unquantized
from mainspring.core.config import Dtype
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import TOLERANCES, Trial
from mainspring.core.ops.quantized import can_quantize, quantize_weight, quantized_linear

TOKENS = (0, 1, 3, 33)
SHAPES = ((64, 64), (128, 96), (256, 80), (576, 192))
"""(K, N): small, so that the reference takes no time; multiples of what kernels want and not of more."""

QUANTIZED_TOLERANCE = 3e-2
"""Kernels may take activations, scales and zeros in bfloat16 (8 bits) whatever the compute dtype is. A wrong rounding
of weights or a scale that is not its group's is ten times as much."""


@dataclass(frozen=True, slots=True)
class Case:
    """One layer: tensors as `Device.pack` gets them, and as the reference does."""

    scheme: WeightScheme
    dtype: Dtype
    given: Mapping[str, Tensor]
    neutral: Mapping[str, Tensor]
    bias: Tensor | None
    num_tokens: int

    def run(self, device: Device) -> tuple[Tensor, Tensor]:
        """The device's product and the reference's. Outputs are near 1, which tolerances assume."""
        dtype = getattr(torch, self.dtype)
        x_TK = _random(self.num_tokens, self.neutral["weight"].shape[1]).to(dtype)
        given = {name: x.to(device.torch_device) for name, x in self.given.items()}
        if self.bias is not None:
            given["bias"] = self.bias.to(device=device.torch_device, dtype=dtype)
        packed = device.pack(self.scheme, given)
        result = device.quantized_linear(x_TK.to(device.torch_device), packed)
        device.synchronize()
        bias = None if self.bias is None else self.bias.to(dtype)
        return result, quantized_linear(x_TK.float(), self.scheme, self.neutral, bias)


def findings(device: Device, capabilities: Capabilities) -> Iterator[Finding]:
    """One for each dtype and scheme."""
    own = type(device).quantized_linear is not Device.quantized_linear
    for dtype in capabilities.compute_dtypes:
        trial = Trial(f"linear, {dtype}", "native" if own else "default")
        for case in _plain_cases(dtype):
            _try(trial, device, case, TOLERANCES[getattr(torch, dtype)])
        yield trial.finding()
    for scheme in capabilities.weight_schemes:
        yield _scheme_finding(device, capabilities, scheme)


def _scheme_finding(device: Device, capabilities: Capabilities, scheme: WeightScheme) -> Finding:
    trial = Trial(f"linear, {scheme!s}", "native")
    if not can_quantize(scheme):
        return trial.finding("no reference makes such weights")
    refusals = []
    for in_features, out_features in SHAPES:
        if scheme.group_size and in_features % scheme.group_size:
            continue
        verdict = device.supports(scheme, in_features, out_features)
        if not verdict.ok:
            refusals.append(f"{in_features} to {out_features} features: {verdict.reason}")
            continue
        for dtype in capabilities.compute_dtypes:
            for case in _quantized_cases(scheme, dtype, in_features, out_features):
                _try(trial, device, case, QUANTIZED_TOLERANCE)
    finding = trial.finding()
    if not finding.cases:
        trial.refuse("every shape", f"declared, but refused: {'; '.join(refusals)}")
        return trial.finding()
    return finding


def _try(trial: Trial, device: Device, case: Case, tolerance: float) -> None:
    out_features, in_features = case.neutral["weight"].shape
    form = ", as a checkpoint has it" if case.given is case.neutral else ""
    bias = "" if case.bias is None else ", bias"
    name = f"{case.num_tokens} tokens, {in_features} to {out_features} features{bias}{form}; {case.dtype}"
    trial.run(name, lambda: case.run(device), tolerance)


def _plain_cases(dtype: Dtype) -> Iterator[Case]:
    for in_features, out_features in (*SHAPES, (40, 30)):
        weight = _weight(in_features, out_features).to(getattr(torch, dtype))
        neutral = {"weight": weight, "scales": torch.ones(out_features, 1)}
        for num_tokens in TOKENS:
            for bias in (None, _random(out_features)):
                yield Case(unquantized(dtype), dtype, {"weight": weight}, neutral, bias, num_tokens)


def _quantized_cases(scheme: WeightScheme, dtype: Dtype, in_features: int, out_features: int) -> Iterator[Case]:
    """From a floating-point weight, which the device rounds, and from a checkpoint's tensors."""
    weight = _weight(in_features, out_features)
    neutral = quantize_weight(weight, scheme)
    for num_tokens in TOKENS:
        for bias in (None, _random(out_features)):
            yield Case(scheme, dtype, {"weight": weight}, neutral, bias, num_tokens)
        yield Case(scheme, dtype, neutral, neutral, None, num_tokens)


def _weight(in_features: int, out_features: int) -> Tensor:
    """Rows and groups of different magnitudes and means, so that no scale or zero passes for another's."""
    weight_NK = _random(out_features, in_features) * in_features**-0.5
    rows = torch.linspace(0.5, 2, out_features)[:, None]
    columns = torch.linspace(0.5, 1.5, in_features)
    out_NK: Tensor = weight_NK * rows * columns + 0.5 * weight_NK.std() * rows
    return out_NK


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

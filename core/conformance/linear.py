"""Checks of linear layers: unquantized in each compute dtype, and every scheme that the capabilities declare.

Legend: T tokens, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mainspring.core.backend import Capabilities, Device, PackedLinear, WeightScheme, unquantized
from mainspring.core.config import Dtype
from mainspring.core.conformance.cases import token_counts
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import EXACT, TOLERANCES, Check, Tolerance, Trial
from mainspring.core.gguf_layouts import LAYOUTS
from mainspring.core.ops.quantized import can_quantize, quantize_activation, quantize_weight, quantized_linear

SHAPES = ((64, 64), (128, 96), (256, 80), (576, 192))
"""(K, N): small, so that the reference takes no time; multiples of what kernels want and not of more."""

# A wrong rounding of weights or a scale that is not its group's is ten times as much.
QUANTIZED = Tolerance(3e-2, "kernels may take activations, scales and zeros in bfloat16, 8 bits")


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


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """One for each dtype and scheme, and what the capabilities promise beside."""
    for dtype in capabilities.compute_dtypes:
        yield Check(f"linear, {dtype}", partial(_plain, dtype, capabilities))
    for scheme in capabilities.weight_schemes:
        if scheme.packing in LAYOUTS:
            continue  # blocks.py
        yield Check(f"linear, {scheme!s}", partial(_quantized, scheme, capabilities))
        if scheme.activation is not None:
            yield Check(f"quantize_activation, {scheme!s}", partial(_activations, scheme, capabilities))
    if capabilities.batch_invariant:
        yield Check("linear, batch invariance", partial(_invariance, capabilities))


def _plain(dtype: Dtype, capabilities: Capabilities, device: Device) -> Finding:
    own = type(device).quantized_linear is not Device.quantized_linear
    trial = Trial(f"linear, {dtype}", "native" if own else "default")
    for case in _plain_cases(dtype, token_counts(device, capabilities)):
        _try(trial, device, case, TOLERANCES[getattr(torch, dtype)])
    return trial.finding()


def _quantized(scheme: WeightScheme, capabilities: Capabilities, device: Device) -> Finding:
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
        weight = _weight(in_features, out_features)
        for dtype in capabilities.compute_dtypes:
            for case in _quantized_cases(scheme, dtype, weight, token_counts(device, capabilities)):
                _try(trial, device, case, QUANTIZED)
    finding = trial.finding()
    if not finding.cases:
        trial.refuse("every shape", f"declared, but refused: {'; '.join(refusals)}")
        return trial.finding()
    return finding


def _activations(scheme: WeightScheme, capabilities: Capabilities, device: Device) -> Finding:
    """What the device's rounded activations stand for is what the reference's do."""
    trial = Trial(f"quantize_activation, {scheme!s}", "native")
    for dtype in capabilities.compute_dtypes:
        for num_tokens in filter(None, token_counts(device, capabilities)):
            x_TK = (_random(num_tokens, 128) * torch.linspace(0.1, 3, num_tokens)[:, None]).to(getattr(torch, dtype))

            def work(x_TK: Tensor = x_TK) -> tuple[Tensor, Tensor]:
                values, scales = device.quantize_activation(x_TK.to(device.torch_device), scheme)
                device.synchronize()
                expected, expected_scales = quantize_activation(x_TK.float(), scheme)
                return values.cpu().float() * scales.cpu().float(), expected.float() * expected_scales

            trial.run(f"{num_tokens} tokens; {dtype}", work, QUANTIZED)
    return trial.finding()


def _invariance(capabilities: Capabilities, device: Device) -> Finding:
    """Each row's product is the same, bit for bit, whatever rows are beside it."""
    trial = Trial("linear, batch invariance", "declared")
    counts = [count for count in token_counts(device, capabilities) if count]
    few, many = counts[0], counts[-1]
    for dtype in capabilities.compute_dtypes:
        packed = device.pack(unquantized(dtype), {"weight": _on(device, _weight(576, 192), dtype)})
        x_TK = _on(device, _random(many, 576), dtype)

        def work(packed: PackedLinear = packed, x_TK: Tensor = x_TK) -> tuple[Tensor, Tensor]:
            together, alone = device.quantized_linear(x_TK, packed), device.quantized_linear(x_TK[:few], packed)
            device.synchronize()
            return alone, together[:few]

        trial.run(f"{few} of {many} tokens; {dtype}", work, EXACT)
    return trial.finding()


def _on(device: Device, x: Tensor, dtype: Dtype) -> Tensor:
    return x.to(device=device.torch_device, dtype=getattr(torch, dtype))


def _try(trial: Trial, device: Device, case: Case, tolerance: Tolerance) -> None:
    out_features, in_features = case.neutral["weight"].shape
    form = ", as a checkpoint has it" if case.given is case.neutral else ""
    bias = "" if case.bias is None else ", bias"
    name = f"{case.num_tokens} tokens, {in_features} to {out_features} features{bias}{form}; {case.dtype}"
    trial.run(name, lambda: case.run(device), tolerance)


def _plain_cases(dtype: Dtype, tokens: Sequence[int]) -> Iterator[Case]:
    for in_features, out_features in (*SHAPES, (40, 30)):
        weight = _weight(in_features, out_features).to(getattr(torch, dtype))
        neutral = {"weight": weight, "scales": torch.ones(out_features, 1)}
        for num_tokens in tokens:
            for bias in (None, _random(out_features)):
                yield Case(unquantized(dtype), dtype, {"weight": weight}, neutral, bias, num_tokens)


def _quantized_cases(scheme: WeightScheme, dtype: Dtype, weight: Tensor, tokens: Sequence[int]) -> Iterator[Case]:
    """From a floating-point weight, which the device rounds, and from a checkpoint's tensors."""
    neutral = quantize_weight(weight, scheme)
    for num_tokens in tokens:
        for bias in (None, _random(len(weight))):
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

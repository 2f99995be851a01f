"""Checks of linear layers: unquantized in each compute dtype, and what a case of any layer is. Schemes: `quantized.py`.

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
from mainspring.core.ops.quantized import quantized_linear

SHAPES = ((64, 64), (128, 96), (256, 80), (576, 192))
"""(K, N): small, so that the reference takes no time; multiples of what kernels want and not of more."""


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
        x_TK = random(self.num_tokens, self.neutral["weight"].shape[1]).to(dtype)
        given = {name: x.to(device.torch_device) for name, x in self.given.items()}
        if self.bias is not None:
            given["bias"] = self.bias.to(device=device.torch_device, dtype=dtype)
        packed = device.pack(self.scheme, given)
        result = device.quantized_linear(x_TK.to(device.torch_device), packed)
        device.synchronize()
        bias = None if self.bias is None else self.bias.to(dtype)
        return result, quantized_linear(x_TK.float(), self.scheme, self.neutral, bias)


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """One for each dtype, and what the capabilities promise beside."""
    for dtype in capabilities.compute_dtypes:
        yield Check(f"linear, {dtype}", partial(_plain, dtype, capabilities))
    if capabilities.batch_invariant:
        yield Check("linear, batch invariance", partial(_invariance, capabilities))


def _plain(dtype: Dtype, capabilities: Capabilities, device: Device) -> Finding:
    own = type(device).quantized_linear is not Device.quantized_linear
    trial = Trial(f"linear, {dtype}", "native" if own else "default")
    for case in _plain_cases(dtype, token_counts(device, capabilities)):
        attempt(trial, device, case, TOLERANCES[getattr(torch, dtype)])
    return trial.finding()


def _invariance(capabilities: Capabilities, device: Device) -> Finding:
    """Each row's product is the same, bit for bit, whatever rows are beside it."""
    trial = Trial("linear, batch invariance", "declared")
    counts = [count for count in token_counts(device, capabilities) if count]
    few, many = counts[0], counts[-1]
    for dtype in capabilities.compute_dtypes:
        packed = device.pack(unquantized(dtype), {"weight": _on(device, weight_of(576, 192), dtype)})
        x_TK = _on(device, random(many, 576), dtype)

        def work(packed: PackedLinear = packed, x_TK: Tensor = x_TK) -> tuple[Tensor, Tensor]:
            together, alone = device.quantized_linear(x_TK, packed), device.quantized_linear(x_TK[:few], packed)
            device.synchronize()
            return alone, together[:few]

        trial.run(f"{few} of {many} tokens; {dtype}", work, EXACT)
    return trial.finding()


def _on(device: Device, x: Tensor, dtype: Dtype) -> Tensor:
    return x.to(device=device.torch_device, dtype=getattr(torch, dtype))


def attempt(trial: Trial, device: Device, case: Case, tolerance: Tolerance) -> None:
    """One case of a trial, under a name that says what of it there is."""
    out_features, in_features = case.neutral["weight"].shape
    form = ", as a checkpoint has it" if case.given is case.neutral else ""
    bias = "" if case.bias is None else ", bias"
    name = f"{case.num_tokens} tokens, {in_features} to {out_features} features{bias}{form}; {case.dtype}"
    trial.run(name, lambda: case.run(device), tolerance)


def _plain_cases(dtype: Dtype, tokens: Sequence[int]) -> Iterator[Case]:
    for in_features, out_features in (*SHAPES, (40, 30)):
        weight = weight_of(in_features, out_features).to(getattr(torch, dtype))
        neutral = {"weight": weight, "scales": torch.ones(out_features, 1)}
        for num_tokens in tokens:
            for bias in (None, random(out_features)):
                yield Case(unquantized(dtype), dtype, {"weight": weight}, neutral, bias, num_tokens)


def weight_of(in_features: int, out_features: int) -> Tensor:
    """Rows and groups of different magnitudes and means, so that no scale or zero passes for another's."""
    weight_NK = random(out_features, in_features) * in_features**-0.5
    rows = torch.linspace(0.5, 2, out_features)[:, None]
    columns = torch.linspace(0.5, 1.5, in_features)
    out_NK: Tensor = weight_NK * rows * columns + 0.5 * weight_NK.std() * rows
    return out_NK


def random(*shape: int) -> Tensor:
    """The same numbers for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

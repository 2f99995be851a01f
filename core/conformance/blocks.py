"""Checks of linear layers and tables whose weights are kept in GGUF's blocks: every layout that capabilities declare.

Blocks are random bytes, so that every code, scale and step of a layout occurs. Legend: T tokens, K input features, N
output features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mainspring.core.backend import Capabilities, Device, PackedLinear, WeightScheme
from mainspring.core.conformance.cases import token_counts
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import TOLERANCES, Check, Tolerance, Trial
from mainspring.core.gguf_layouts import LAYOUTS
from mainspring.core.ops import gguf_blocks

BLOCKS_AND_OUTPUTS = ((1, 64), (2, 96), (3, 80), (18, 192), (5, 33))
"""Blocks of a row, and N: rows of one block and of an odd number; outputs that fill no tile."""

ROWS = Tolerance(5e-4, "a group's scale, of two numbers in the file, may be one of 16 bits: 11 of them count")
PRODUCT = Tolerance(3e-2, "activations and scales may be taken in bfloat16, 8 bits")
ROUNDED = Tolerance(2e-3, "a rounded activation may fall on the other side of a half, one part in 254 of its group")


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """One for each scheme of blocks."""
    for scheme in capabilities.weight_schemes:
        if scheme.packing in LAYOUTS:
            yield Check(f"linear, {scheme!s}", partial(_scheme, scheme, capabilities))


@dataclass(frozen=True, slots=True)
class Case:
    """One layer, packed, beside the numbers that it stands for."""

    scheme: WeightScheme
    raw: Tensor
    packed: PackedLinear
    bias: Tensor | None
    dtype: torch.dtype

    def product(self, device: Device, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The device's and the reference's; outputs are near 1."""
        x_TK = _random(num_tokens, self.packed.in_features).to(self.dtype)
        result = device.quantized_linear(x_TK.to(device.torch_device), self.packed)
        device.synchronize()
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return result, gguf_blocks.product(x_TK.float(), self.scheme, self.raw, bias)

    def rows(self, device: Device, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Rows of the table, some of them twice."""
        index_T = torch.arange(num_tokens, dtype=torch.int32) * 7 % len(self.raw)
        result = device.rows(index_T.to(device.torch_device), self.packed, self.dtype)
        device.synchronize()
        table = gguf_blocks.dequantize(gguf_blocks.blocks_of(self.scheme), self.raw)
        return result, table[index_T.long()].to(self.dtype)


def _scheme(scheme: WeightScheme, capabilities: Capabilities, device: Device) -> Finding:
    trial = Trial(f"linear, {scheme!s}", "native")
    counts = [count for count in token_counts(device, capabilities) if count]
    for num_blocks, out_features in BLOCKS_AND_OUTPUTS:
        packing = gguf_blocks.blocks_of(scheme)
        in_features = num_blocks * LAYOUTS[packing].inputs
        verdict = device.supports(scheme, in_features, out_features)
        trial.require(
            f"{in_features} to {out_features} features", verdict.ok, f"declared, but refused: {verdict.reason}"
        )
        if not verdict.ok:
            continue
        raw = gguf_blocks.random_weight(packing, out_features, in_features)
        for name in capabilities.compute_dtypes:
            dtype: torch.dtype = getattr(torch, name)
            for bias in (None, _random(out_features)):
                case = Case(scheme, raw, _packed(device, scheme, raw, bias, dtype), bias, dtype)
                _try(trial, device, case, counts)
    return trial.finding()


def _packed(device: Device, scheme: WeightScheme, raw: Tensor, bias: Tensor | None, dtype: torch.dtype) -> PackedLinear:
    tensors = {"weight": raw.to(device.torch_device)}
    if bias is not None:
        tensors["bias"] = bias.to(device=device.torch_device, dtype=dtype)
    return device.pack(scheme, tensors)


def _try(trial: Trial, device: Device, case: Case, counts: list[int]) -> None:
    rounds = case.scheme.activation is not None and case.dtype == torch.float32
    shape = f"{case.packed.in_features} to {case.packed.out_features} features; {case.dtype}"
    for count in counts:
        bias = "" if case.bias is None else ", bias"
        tolerance = ROUNDED if rounds else PRODUCT
        trial.run(f"{count} tokens{bias}, {shape}", partial(case.product, device, count), tolerance)
        if case.bias is None and device.reads_rows(case.scheme):
            tolerance = max(TOLERANCES[case.dtype], ROWS, key=lambda tolerance: tolerance.allowed)
            trial.run(f"{count} rows, {shape}", partial(case.rows, device, count), tolerance)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

"""Checks of quantized linear layers: every scheme that the capabilities declare, and groups of other sizes where the
device takes them; in shapes that fill tiles and in such that do not. GGUF's blocks are `blocks.py`.

Weights are rounded to nearest by the reference, and what that does not make is made of it: groups in any order get an
index, and last blocks that are short are cut. Legend: T tokens, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mainspring.core.backend import Capabilities, Device, WeightScheme
from mainspring.core.config import Dtype
from mainspring.core.conformance.cases import token_counts
from mainspring.core.conformance.linear import Case, attempt, random, weight_of
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import Check, Tolerance, Trial
from mainspring.core.gguf_layouts import LAYOUTS
from mainspring.core.ops.quantized import can_quantize, quantize_activation, quantize_weight

# A wrong rounding of weights or a scale that is not its group's is ten times as much.
QUANTIZED = Tolerance(3e-2, "kernels may take activations, scales and zeros in bfloat16, 8 bits")

GROUP_SIZES = (16, 32, 64, 128, 256)
"""What checkpoints have."""

OTHER_SIZES = "linear, groups of other sizes"


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """One for each scheme, one more for each that rounds activations, and one for all other sizes of groups."""
    schemes = [scheme for scheme in capabilities.weight_schemes if scheme.packing not in LAYOUTS]
    for scheme in schemes:
        yield Check(f"linear, {scheme!s}", partial(_scheme, scheme, capabilities))
        if scheme.activation is not None:
            yield Check(f"quantize_activation, {scheme!s}", partial(_activations, scheme, capabilities))
    others = _of_other_sizes(schemes)
    if others:
        yield Check(OTHER_SIZES, partial(_other_sizes, others, capabilities))


def shapes(scheme: WeightScheme) -> tuple[tuple[int, int], ...]:
    """(K, N) to try: one group and an odd number of them, more than a tile and no multiple of one."""
    size, rows = scheme.group_size or 0, scheme.group_rows
    if not size:
        return (64, 64), (200, 80), (96, 33), (576, 192)
    if rows > 1:
        # Activations that are rounded in blocks have whole ones.
        short = 0 if scheme.activation_granularity == "block" else size // 2
        return (size, rows), (3 * size, rows + 64), (2 * size + short, 80), (2 * size, 33)
    return (size, 64), (3 * size, 80), (2 * size, 33), (512 // size * size + size, 192)


def neutral_weight(scheme: WeightScheme, in_features: int, out_features: int) -> dict[str, Tensor]:
    """A layer as a checkpoint would have it, in the scheme's neutral form."""
    size, rows = scheme.group_size or 1, scheme.group_rows
    whole = weight_of(-(-in_features // size) * size, -(-out_features // rows) * rows)
    tensors = quantize_weight(whole, replace(scheme, scattered=False))
    tensors["weight"] = tensors["weight"][:out_features, :in_features].contiguous()
    if scheme.scattered:
        order = torch.randperm(in_features, generator=torch.Generator().manual_seed(in_features))
        tensors["group_index"] = (order // size).to(torch.int32)
    return tensors


def _scheme(scheme: WeightScheme, capabilities: Capabilities, device: Device) -> Finding:
    trial = Trial(f"linear, {scheme!s}", "native")
    if not can_quantize(replace(scheme, scattered=False)):
        return trial.finding("no reference makes such weights")
    refusals = []
    for in_features, out_features in shapes(scheme):
        verdict = device.supports(scheme, in_features, out_features)
        if not verdict.ok:
            refusals.append(f"{in_features} to {out_features} features: {verdict.reason}")
            continue
        for dtype in capabilities.compute_dtypes:
            for case in _cases(scheme, dtype, (in_features, out_features), token_counts(device, capabilities)):
                attempt(trial, device, case, QUANTIZED)
    finding = trial.finding()
    if not finding.cases:
        trial.refuse("every shape", f"declared, but refused: {'; '.join(refusals)}")
        return trial.finding()
    return finding


def _other_sizes(schemes: Sequence[WeightScheme], capabilities: Capabilities, device: Device) -> Finding:
    """Layer by layer a device may take more than it declares, and then has to be right there, too."""
    trial, taken = Trial(OTHER_SIZES, "native"), set()
    counts = token_counts(device, capabilities)
    for scheme in schemes:
        in_features, out_features = shapes(scheme)[1]
        if not device.supports(scheme, in_features, out_features).ok:
            continue
        taken.add(scheme.group_size or 0)
        neutral = neutral_weight(scheme, in_features, out_features)
        for count in sorted({counts[0], counts[-1]}):
            case = Case(scheme, capabilities.compute_dtypes[0], neutral, neutral, None, count)
            attempt(trial, device, case, QUANTIZED)
    return trial.finding(f"of {', '.join(map(str, sorted(taken)))}" if taken else "none is taken")


def _of_other_sizes(schemes: Sequence[WeightScheme]) -> list[WeightScheme]:
    """Schemes like those declared, in sizes that are not."""
    grouped = [scheme for scheme in schemes if scheme.group_size and scheme.group_rows == 1]
    others = {replace(scheme, group_size=size): None for scheme in grouped for size in GROUP_SIZES}
    return [scheme for scheme in others if scheme not in schemes and can_quantize(replace(scheme, scattered=False))]


def _cases(scheme: WeightScheme, dtype: Dtype, shape: tuple[int, int], tokens: Sequence[int]) -> Iterator[Case]:
    """From a floating-point weight, which the device rounds, and from a checkpoint's tensors."""
    in_features, out_features = shape
    neutral = neutral_weight(scheme, in_features, out_features)
    whole = not in_features % (scheme.group_size or 1) and not out_features % scheme.group_rows
    rounded = {"weight": weight_of(in_features, out_features)} if whole and can_quantize(scheme) else None
    for num_tokens in tokens:
        for given in filter(None, (rounded, neutral)):
            yield Case(scheme, dtype, given, neutral, None, num_tokens)
        yield Case(scheme, dtype, rounded or neutral, neutral, random(out_features), num_tokens)
        if scheme.activation_granularity == "tensor":
            yield _calibrated(Case(scheme, dtype, neutral, neutral, None, num_tokens))


def _calibrated(case: Case) -> Case:
    """With the scale of activations that a checkpoint brings; values past it are cut off."""
    tensors: Mapping[str, Tensor] = {**case.neutral, "input_scale": torch.full((1, 1), 0.02)}
    return replace(case, given=tensors, neutral=tensors)


def _activations(scheme: WeightScheme, capabilities: Capabilities, device: Device) -> Finding:
    """What the device's rounded activations stand for is what the reference's do."""
    trial = Trial(f"quantize_activation, {scheme!s}", "native")
    # Three groups, which a kernel's block of features divides no better than their weights'.
    features = 3 * (scheme.group_size or 0) or 128
    for dtype in capabilities.compute_dtypes:
        for num_tokens in filter(None, token_counts(device, capabilities)):
            x_TK = random(num_tokens, features) * torch.linspace(0.1, 3, num_tokens)[:, None]
            x_TK = x_TK.to(getattr(torch, dtype))

            def work(x_TK: Tensor = x_TK) -> tuple[Tensor, Tensor]:
                values, scales = device.quantize_activation(x_TK.to(device.torch_device), scheme)
                device.synchronize()
                expected, expected_scales = quantize_activation(x_TK.float(), scheme)
                return _numbers(values.cpu(), scales.cpu()), _numbers(expected, expected_scales)

            trial.run(f"{num_tokens} tokens; {dtype}", work, QUANTIZED)
    return trial.finding()


def _numbers(values_TK: Tensor, scales: Tensor) -> Tensor:
    """What rounded activations stand for."""
    spread = values_TK.shape[1] // scales.shape[1] if scales.shape[1] > 1 else 1
    return values_TK.float() * scales.float().repeat_interleave(spread, 1)

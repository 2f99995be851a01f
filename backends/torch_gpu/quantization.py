"""Quantized linear layers on a GPU: how neutral tensors are packed, and which kernel multiplies how many rows.

Weights that are read as codes (`backends/triton/words.py`) take a row of `CODES` each: a format is where its codes
begin, and nothing else. Neutral tensors are those of `core/ops/quantized.py`; `schemes.py` says whose a scheme is.

Legend: T tokens, K input features, N output features, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.backends.torch_gpu.schemes import Family, family
from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.triton.codes import PLAIN, Kind
from mainspring.backends.triton.packing import pack_high, pack_shorts, pack_steps, pack_supers, pack_words, short_type
from mainspring.backends.triton.scaled import ScaledWeight, round_rows, scaled_linear
from mainspring.backends.triton.words import ROWS, WordWeight, dequantize_words, word_linear, word_rows
from mainspring.core.backend import PackedLinear, WeightScheme
from mainspring.core.gguf_layouts import LAYOUTS
from mainspring.core.ops.codes import CODES as TABLES
from mainspring.core.ops.gguf_blocks import Blocks, blocks_of, in_features, take_apart
from mainspring.core.ops.quantized import dequantize, quantize_weight

LIBRARY_ROWS = 512
"""From here on a dequantized copy and the library's product cost less than reading codes in every tile of rows."""
LIBRARY_ALIGNMENT = 16
"""Features that torch's product of float8 takes multiples of."""
LIBRARY_BLOCK = 128
"""Rows and features of the blocks that it knows."""
MOST_TILES = 1 << 16
"""Of one product."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A format of codes."""

    kind: Kind
    bias: int = 0
    """What the code of a symmetric weight's 0 is."""


CODES: Mapping[str, Codes] = {
    "int4": Codes("int4", 8),
    "int8": Codes("int8", 128),
    "float8_e4m3fn": Codes("float8_e4m3fn"),
    "mxfp4": Codes("e2m1"),
    "nvfp4": Codes("e2m1"),
    "nf4": Codes("table"),
    "fp4": Codes("table"),
}
"""By `WeightScheme.weight`."""
BLOCK_CODES: Mapping[int, Codes] = {
    4: CODES["int4"], 5: Codes("int5", 16), 6: Codes("int6", 32), 8: CODES["int8"],
}  # fmt: skip
"""Of GGUF's blocks, by bits."""


class Weights(Protocol):
    """`PackedLinear.data` of a quantized layer."""

    def product(self, x_TK: Tensor, bias_N: Tensor | None, on: Quantized) -> Tensor:
        """[T, N] in x's dtype, bias added."""
        ...


@dataclass(frozen=True, slots=True)
class CodedWeights:
    """Read as codes, or dequantized for many rows."""

    words: WordWeight
    order: Tensor | None
    """Input features in the order of their groups, where a checkpoint's do not lie side by side; K stands for none."""
    padded: bool = False
    """Whether some are none."""

    def product(self, x_TK: Tensor, bias_N: Tensor | None, on: Quantized) -> Tensor:
        tuning = on.tuning
        reader = tuning.reader if x_TK.dtype == torch.bfloat16 else PLAIN
        if self.order is not None:
            x_TK = (F.pad(x_TK, (0, 1)) if self.padded else x_TK).index_select(1, self.order)
        if len(x_TK) >= LIBRARY_ROWS:
            weight_NK = dequantize_words(self.words, x_TK.dtype, overlap=tuning.overlap, reader=reader)
            return F.linear(x_TK, weight_NK, bias_N)
        x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
        if tuning.few_rows is not None and tuning.few_rows.takes(x_TK, self.words):
            return tuning.few_rows(x_TK, self.words, bias_N)
        tile = tuning.words(len(x_TK), self.words, tuning.processors)
        return word_linear(
            x_TK, self.words, bias_N, tile, arrived=on.arrived(x_TK.device), overlap=tuning.overlap, reader=reader
        )


@dataclass(frozen=True, slots=True)
class ScaledWeights:
    """8 bits that activations are rounded to, too."""

    weight: ScaledWeight
    scheme: WeightScheme
    input_scale: Tensor | None

    def product(self, x_TK: Tensor, bias_N: Tensor | None, on: Quantized) -> Tensor:
        rows = on.tuning.float8_library_rows
        if rows is not None and len(x_TK) >= rows and self._fits_library(x_TK.dtype):
            return self._by_library(x_TK, bias_N, on)
        rounded_TK, scales = on.round(x_TK, self.scheme, self.input_scale)
        tile = on.tuning.scaled(len(x_TK), self.weight, on.tuning.processors)
        return scaled_linear(
            rounded_TK, scales, self.weight, bias_N, tile, out_dtype=x_TK.dtype, arrived=on.arrived(x_TK.device),
            overlap=on.tuning.overlap,
        )  # fmt: skip

    def _fits_library(self, dtype: torch.dtype) -> bool:
        weight = self.weight.weight
        unit = LIBRARY_ALIGNMENT if self.weight.group_size is None else LIBRARY_BLOCK
        blocks = self.weight.group_size in (None, LIBRARY_BLOCK) and self.weight.group_rows in (1, LIBRARY_BLOCK)
        whole = blocks and (self.weight.group_size is None) == (self.weight.group_rows == 1)
        aligned = not any(size % unit for size in weight.shape)
        return aligned and whole and weight.dtype == torch.float8_e4m3fn and dtype == torch.bfloat16

    def _by_library(self, x_TK: Tensor, bias_N: Tensor | None, on: Quantized) -> Tensor:
        """torch's product takes a scale a row on either side, or blocks' with those of x by columns."""
        count, size = len(x_TK), len(self.weight.weight)
        weight_KN = self.weight.weight.t()
        if self.weight.group_size is None:
            rounded_TK, scales = on.round(x_TK, self.scheme, self.input_scale)
            scale_a, scale_b = scales.expand(count, 1).contiguous(), self.weight.scales.expand(size, 1).t().contiguous()
            return torch._scaled_mm(
                rounded_TK, weight_KN, scale_a, scale_b, bias_N, out_dtype=x_TK.dtype, use_fast_accum=True
            )
        padded_TK = F.pad(x_TK, (0, 0, 0, -count % LIBRARY_ALIGNMENT))
        rounded_TK, scales = on.round(padded_TK, self.scheme)
        by_columns, scale_b = scales.t().contiguous().t(), self.weight.scales.t()
        out_TN = torch._scaled_mm(rounded_TK, weight_KN, by_columns, scale_b, out_dtype=x_TK.dtype)[:count]
        return out_TN if bias_N is None else out_TN + bias_N


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """Dequantized: it saves no memory."""

    weight: Tensor
    """[N, K] bfloat16"""

    def product(self, x_TK: Tensor, bias_N: Tensor | None, on: Quantized) -> Tensor:
        return F.linear(x_TK, self.weight.to(x_TK.dtype), bias_N)


class Quantized:
    """The quantized layers of one device."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self._arrived: Tensor | None = None

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> PackedLinear:
        """Neutral tensors, or a floating-point weight, which is rounded. `family` must know the scheme."""
        size, depth = tensors["weight"].shape
        if scheme.packing != "plain":
            depth = in_features(blocks_of(scheme), depth)
        elif "scales" not in tensors:
            tensors = {**tensors, **quantize_weight(tensors["weight"], scheme)}
        kind = family(scheme)
        if kind == "scaled" and scheme.activation == "float8_e4m3fn" and not self.tuning.float8:
            kind = "codes"
        pack = PACKERS[kind] if kind is not None else None
        if pack is None:
            raise ValueError(f"no kernel takes {scheme}")
        return PackedLinear(scheme, depth, size, pack(scheme, tensors), tensors.get("bias"))

    def __call__(self, x_TK: Tensor, packed: PackedLinear) -> Tensor:
        """As `Device.quantized_linear`."""
        if not len(x_TK):
            return x_TK.new_empty((0, packed.out_features))
        weights: Weights = packed.data
        return weights.product(x_TK, packed.bias, self)

    def rows(self, index_T: Tensor, packed: PackedLinear, dtype: torch.dtype) -> Tensor:
        """As `Device.rows`, of GGUF's blocks."""
        weights: CodedWeights = packed.data
        return word_rows(index_T, weights.words, dtype, overlap=self.tuning.overlap)

    def round(self, x_TK: Tensor, scheme: WeightScheme, input_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `core.ops.quantized.quantize_activation`."""
        dtype = getattr(torch, str(scheme.activation))
        if scheme.activation_granularity == "tensor" and input_scale is None:
            highest = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
            input_scale = (x_TK.abs().amax().float() / highest).clamp(min=1e-12).view(1, 1)
        group = scheme.group_size if scheme.activation_granularity == "block" else None
        return round_rows(x_TK, dtype, given=input_scale, group_size=group, overlap=self.tuning.overlap)

    def arrived(self, device: torch.device) -> Tensor:
        """Zeros that kernels count in. Kept for ever: captured steps hold its address; one step runs at a time."""
        if self._arrived is None:
            self._arrived = torch.zeros(MOST_TILES, dtype=torch.int32, device=device)
        return self._arrived


def _pack_codes(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> CodedWeights:
    codes, weight_NK = CODES[scheme.weight], tensors["weight"]
    if weight_NK.dtype == torch.float8_e4m3fn:
        codes_NK = weight_NK.view(torch.uint8)
    else:
        codes_NK = weight_NK.to(torch.int16)
        if scheme.symmetric:
            codes_NK += codes.bias
    scales_NG = tensors["scales"].float()
    zeros_NG = None if scheme.symmetric else tensors["zeros"].float() - codes.bias
    order, padded = None, False
    if scheme.scattered and scheme.group_size:
        order, slots = _by_groups(tensors["group_index"], scales_NG.shape[1], scheme.group_size)
        padded = len(order) > codes_NK.shape[1]
        codes_NK = F.pad(codes_NK, (0, 1))[:, order]
        scales_NG = scales_NG[:, slots]
        zeros_NG = None if zeros_NG is None else zeros_NG[:, slots]
    if scheme.group_rows > 1:
        scales_NG = scales_NG.repeat_interleave(scheme.group_rows, 0)[: len(codes_NK)]
    group = scheme.group_size or None
    whole = zeros_NG is not None and bool((zeros_NG == zeros_NG.round()).all())
    if zeros_NG is not None and group is not None and not whole:
        zeros_NG = -zeros_NG * scales_NG
    words = _words(codes, codes_NK, (scales_NG, zeros_NG), group)
    table = torch.tensor(TABLES[scheme.weight], device=weight_NK.device) if codes.kind == "table" else None
    return CodedWeights(replace(words, table=table, whole=whole), order, padded)


def _pack_blocks(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> CodedWeights:
    """Minimums are what `WordWeight.zeros` adds, but for the codes' bias."""
    packing = blocks_of(scheme)
    layout, parts = LAYOUTS[packing], take_apart(packing, tensors["weight"])
    codes = BLOCK_CODES[layout.bits]
    if parts.steps is not None:
        return CodedWeights(_words_of_steps(codes, parts, parts.steps, layout.group), None)
    scales_NG, shifts_NG = parts.scales.float(), None
    if parts.minimums is not None:
        shifts_NG = scales_NG * codes.bias - parts.minimums.float()
    return CodedWeights(_words(codes, parts.codes, (scales_NG, shifts_NG), layout.group), None)


def _words_of_steps(codes: Codes, parts: Blocks, steps: Tensor, group: int) -> WordWeight:
    """Of K-quants. Where there are minimums codes begin at 0, so that those alone are added."""
    size, depth = parts.codes.shape
    added = zeros = None
    if parts.minimums is not None and parts.minimum_steps is not None:
        added, zeros = -parts.minimums, pack_steps(parts.minimum_steps, codes.kind, group)
    return WordWeight(
        kind=codes.kind, size=size, depth=depth, words=pack_words(parts.codes, codes.kind),
        scales=pack_steps(steps, codes.kind, group), group_size=group, zeros=zeros,
        supers=pack_supers(parts.scales, added), bias=codes.bias if zeros is None else 0,
        high=pack_high(parts.codes, codes.kind),
    )  # fmt: skip


def _words(
    codes: Codes, codes_NK: Tensor, scales_and_zeros: tuple[Tensor, Tensor | None], group: int | None
) -> WordWeight:
    size, depth = codes_NK.shape
    scales_NG, zeros_NG = scales_and_zeros
    short = short_type(scales_NG, zeros_NG)
    if group is None:
        scales = F.pad(scales_NG.expand(size, 1)[:, 0], (0, -size % ROWS)).contiguous()
    else:
        scales = pack_shorts(scales_NG, short, codes.kind, group)
    zeros = None
    if zeros_NG is not None:
        zeros = pack_shorts(zeros_NG.expand(size, -1), short, codes.kind, group or depth)
    return WordWeight(
        kind=codes.kind, size=size, depth=depth, words=pack_words(codes_NK, codes.kind), scales=scales,
        group_size=group, short=short, zeros=zeros, bias=codes.bias, high=pack_high(codes_NK, codes.kind),
    )  # fmt: skip


def _by_groups(group_index: Tensor, num_groups: int, group_size: int) -> tuple[Tensor, list[int]]:
    """Input features by group, each filled to groups' size with K, which is none; and whose scale each has then.

    A part of a layer, as a rank has, may hold any number of a group's features.
    """
    depth = len(group_index)
    members = [torch.nonzero(group_index == group).flatten() for group in range(num_groups)]
    filled = [F.pad(own, (0, -len(own) % group_size), value=depth) for own in members]
    slots = [group for group, own in enumerate(filled) for _ in range(len(own) // group_size)]
    return torch.cat(filled), slots


def _pack_scaled(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> ScaledWeights:
    scales = tensors["scales"].float().contiguous()
    weight = ScaledWeight(tensors["weight"].contiguous(), scales, scheme.group_size or None, scheme.group_rows)
    return ScaledWeights(weight, scheme, tensors.get("input_scale"))


def _pack_dense(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> DenseWeights:
    return DenseWeights(dequantize(scheme, tensors).to(torch.bfloat16))


PACKERS: Mapping[Family, Callable[[WeightScheme, Mapping[str, Tensor]], Weights]] = {
    "codes": _pack_codes,
    "scaled": _pack_scaled,
    "blocks": _pack_blocks,
    "dense": _pack_dense,
}

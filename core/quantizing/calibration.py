"""Runs one block of a model at a time over the calibration text, and sums what its linear layers are fed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mainspring.core.backend import AttentionMetadata, Device, KVSpec, PackedLinear, WeightScheme
from mainspring.core.config import ModelConfig
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.linear import Linear
from mainspring.core.ops.attention import PagedKV


@dataclass(slots=True)
class Fed:
    """A weight in float32, and the sums over what it was multiplied by."""

    weight_NK: Tensor
    gram_KK: Tensor | None = field(default=None)
    """Sum of x x^T over tokens."""


class Recorder(Device):
    """The contract's defaults, with linear layers that remember."""

    torch_device = "cpu"

    def __init__(self) -> None:
        self.records = False

    def memory(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        """One layer's, for all of them: blocks run one after the other, each over the whole text."""
        one = PagedKV.allocate(KVSpec(1, spec.heads, spec.head_dim, spec.dtype, spec.block_size), num_blocks, "cpu")
        return PagedKV(one.keys * spec.layers, one.values * spec.layers)

    def synchronize(self) -> None:
        pass

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> PackedLinear:
        weight = tensors["weight"]
        return PackedLinear(scheme, weight.shape[1], weight.shape[0], Fed(weight), tensors.get("bias"))

    def quantized_linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        fed: Fed = packed.data
        if self.records:
            gram = x.t() @ x
            fed.gram_KK = gram if fed.gram_KK is None else fed.gram_KK.add_(gram)
        return F.linear(x, fed.weight_NK, packed.bias)


@dataclass(slots=True)
class Stream:
    """What the next block is fed, for each sequence of the calibration text: its input and the stream around it."""

    inputs: list[Tensor]
    residuals: list[Tensor]

    @classmethod
    def of(cls, embedding: nn.Module, sequences: Sequence[Sequence[int]]) -> Stream:
        """Before the first block."""
        inputs = [embedding(torch.tensor(list(tokens), dtype=torch.int32)) for tokens in sequences]
        return cls(inputs, [torch.zeros_like(x_TE) for x_TE in inputs])

    def through(self, block: nn.Module, config: ModelConfig, device: Recorder, *, keep: bool) -> None:
        """Runs a block; with `keep` the stream is then behind it, else its linear layers have recorded."""
        device.records = not keep
        for place, step, positions_T in self._steps(config, device):
            after = block(self.inputs[place], self.residuals[place], positions_T, step)
            if keep:
                self.inputs[place], self.residuals[place] = after
        device.records = False

    def _steps(self, config: ModelConfig, device: Recorder) -> Iterator[tuple[int, AttentionStep, Tensor]]:
        longest = max(len(x_TE) for x_TE in self.inputs)
        spec = KVSpec(config.num_layers, config.num_kv_heads, config.head_dim, "float32", longest)
        kv = device.allocate_kv(spec, 2)
        for place, x_TE in enumerate(self.inputs):
            length = len(x_TE)
            metadata = AttentionMetadata(
                query_start=torch.tensor([0, length], dtype=torch.int32),
                kv_length=torch.tensor([length], dtype=torch.int32),
                block_table=torch.tensor([[1]], dtype=torch.int32),
                slot=torch.arange(longest, longest + length),
                max_query=length,
                max_kv=length,
                num_decodes=0,
            )
            yield place, AttentionStep(kv, metadata), torch.arange(length, dtype=torch.int32)


def fed_by(layer: Linear) -> Fed:
    """Of a layer that the recorder packed."""
    fed: Fed = layer.packed[0].data
    return fed

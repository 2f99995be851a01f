"""The agreement between layers that hold weights and whoever fills them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from mainspring.core.backend import Device, PackedLinear, WeightScheme
from mainspring.core.parallel.shard import Span

Shape = tuple[int, ...]


class Sliceable(Protocol):
    """A tensor, or one in a file."""

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a checkpoint's tensor that a layer holds, where other ranks hold the rest."""

    rows: Sequence[Span] = ()
    """Spans of dimension 0, one behind the other; empty: all."""
    columns: Span | None = None
    """Or the span of dimension 1; None: all."""

    def of(self, tensor: Sliceable) -> Tensor:
        """The part, a view where it is one piece."""
        if self.columns is not None:
            return tensor[:, slice(*self.columns)]
        parts = [tensor[slice(*span)] for span in self.rows]
        if not parts:
            return tensor[:]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def of_transposed(self, tensor: Sliceable) -> Tensor:
        """The same of a tensor whose transpose is stored."""
        if self.columns is not None:
            return tensor[slice(*self.columns)].t()
        parts = [tensor[:, slice(*span)].t() for span in self.rows]
        return torch.cat(parts) if parts else tensor[:].t()

    @property
    def num_rows(self) -> int:
        """Of the part, where `rows` says so."""
        return sum(end - start for start, end in self.rows)


WHOLE = Cut()


class Read(Protocol):
    """A checkpoint tensor by its name, or a part of it, on the host and of any float dtype.

    Its whole has the shape that `WeightLayer.sources` gave.
    """

    def __call__(self, name: str, cut: Cut = WHOLE) -> Tensor: ...


Use = Literal["product", "rows"]
"""What a weight is for: `rows` are also read one by one, as those of an embedding table are."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight in the form that a scheme names: a checkpoint's own, or one to come."""

    scheme: WeightScheme
    tensors: Mapping[str, Tensor]


class ReadStored(Protocol):
    """A weight as its checkpoint keeps it, where that is quantized and the device takes it so; None: it is to be read
    as numbers.
    """

    def __call__(self, name: str, cut: Cut, use: Use) -> Stored | None: ...


def read_nothing_stored(name: str, cut: Cut, use: Use) -> Stored | None:
    """`ReadStored` of weights that are all numbers."""
    return None


@dataclass(frozen=True, slots=True)
class Packing:
    """What becomes of weights as they arrive: where they live, their dtype, and the schemes of linear layers."""

    device: Device
    dtype: torch.dtype
    linear: WeightScheme
    head: WeightScheme
    """Of the output projection."""
    stored: ReadStored = read_nothing_stored
    """Weights that keep the scheme that they have in the checkpoint."""

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor on the device in the compute dtype."""
        return tensor.to(device=self.device.torch_device, dtype=self.dtype).contiguous()

    def takes(self, stored: Stored) -> bool:
        """Whether the device multiplies by such a weight; by one of numbers always."""
        weight = stored.tensors["weight"]
        return weight.dtype in _NUMBERS or self.device.supports(stored.scheme, weight.shape[1], len(weight)).ok

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> PackedLinear:
        """A linear layer's tensors in the backend's form; numbers among them in the compute dtype."""
        return self.device.pack(scheme, {name: self._placed(name, tensor) for name, tensor in tensors.items()})

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        if name in ("weight", "bias") and tensor.dtype in _NUMBERS:
            return self.place(tensor)
        return tensor.to(device=self.device.torch_device).contiguous()


_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class WeightLayer(nn.Module, ABC):
    """A layer with weights of its own. Its parameters are born on the meta device and declare shapes; `fill` makes them
    real. A layer whose weights the backend packs keeps its meta parameters, so that they can be counted for ever.
    """

    @abstractmethod
    def sources(self, path: str) -> Mapping[str, Shape]:
        """Checkpoint tensors that the layer at this module path is made of, and the shapes that they have there."""

    @abstractmethod
    def fill(self, path: str, read: Read, packing: Packing) -> None:
        """Reads those tensors, or this rank's parts of them, and takes them in."""


def declared(*shape: int) -> nn.Parameter:
    """A parameter that has a shape and no memory."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)

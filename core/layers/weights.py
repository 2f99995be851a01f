"""The agreement between layers that hold weights and whoever fills them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mainspring.core.backend import Device, PackedLinear, WeightScheme

Shape = tuple[int, ...]
Read = Callable[[str], Tensor]
"""A checkpoint tensor by its name, in the shape that `WeightLayer.sources` gave; on the host, of any float dtype."""


@dataclass(frozen=True, slots=True)
class Packing:
    """What becomes of weights as they arrive: where they live, their dtype, and the schemes of linear layers."""

    device: Device
    dtype: torch.dtype
    linear: WeightScheme
    head: WeightScheme
    """Of the output projection."""

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor on the device in the compute dtype."""
        return tensor.to(device=self.device.torch_device, dtype=self.dtype).contiguous()

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> PackedLinear:
        """A linear layer's tensors in the backend's form."""
        return self.device.pack(scheme, {name: self.place(tensor) for name, tensor in tensors.items()})


class WeightLayer(nn.Module, ABC):
    """A layer with weights of its own. Its parameters are born on the meta device and declare shapes; `fill` makes them
    real. A layer whose weights the backend packs keeps its meta parameters, so that they can be counted for ever.
    """

    @abstractmethod
    def sources(self, path: str) -> Mapping[str, Shape]:
        """Checkpoint tensors that the layer at this module path is made of, and their shapes."""

    @abstractmethod
    def fill(self, path: str, read: Read, packing: Packing) -> None:
        """Reads those tensors and takes them in."""


def declared(*shape: int) -> nn.Parameter:
    """A parameter that has a shape and no memory."""
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)

"""Collectives over torch.distributed: the default `Communicator`, for any backend that names a process-group backend.

The process group itself is initialised where ranks are started; a communicator is a subset of its ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


class TorchCommunicator:
    """Collectives among `ranks` of the initialised default process group, under that group's backend.

    Its ranks, and no others, make it at once; a rank of several makes them in the order that the others do.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        self._ranks = tuple(ranks)
        some = len(self._ranks) < distributed.get_world_size()
        self._group = distributed.new_group(list(ranks), use_local_synchronization=some)

    @property
    def size(self) -> int:
        """How many ranks take part."""
        return len(self._ranks)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        distributed.all_reduce(x, group=self._group)
        return x

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """The ranks' tensors side by side along `dim`, in rank order; all have one shape."""
        parts = [torch.empty_like(x) for _ in self._ranks]
        distributed.all_gather(parts, x.contiguous(), group=self._group)
        return torch.cat(parts, dim=dim)

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """This rank's share along `dim` of the sum over ranks; `dim` must divide by the number of ranks."""
        parts = [part.contiguous() for part in x.chunk(self.size, dim=dim)]
        mine = torch.empty_like(parts[0])
        distributed.reduce_scatter(mine, parts, group=self._group)
        return mine

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """The tensor of global rank `source`, in place."""
        distributed.broadcast(x, src=source, group=self._group)
        return x

    def all_to_all(self, x: Tensor) -> Tensor:
        """Chunk i of dimension 0 goes to the i-th rank; the result holds what each rank sent here, in rank order."""
        out = torch.empty_like(x)
        distributed.all_to_all_single(out, x.contiguous(), group=self._group)
        return out

    def send(self, x: Tensor, to: int) -> None:
        """Sends to global rank `to`; blocks until the buffer may be reused."""
        distributed.send(x, dst=to, group=self._group)

    def receive(self, x: Tensor, source: int) -> Tensor:
        """Fills x from global rank `source`."""
        distributed.recv(x, src=source, group=self._group)
        return x

    def close(self) -> None:
        """Gives the group back."""
        distributed.destroy_process_group(self._group)

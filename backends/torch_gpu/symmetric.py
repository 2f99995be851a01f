"""Collectives over memory that all ranks of one host can write: small sums take one kernel, the norm included.

What is too large, or is no sum, goes the library's way; so does everything where ranks cannot reach each other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from mainspring.backends.triton.launch import Overlap
from mainspring.backends.triton.summed_norm import TURNS, Inboxes, summed, summed_add_rms_norm
from mainspring.core.backend import AddRmsNorm
from mainspring.core.parallel.communicator import TorchCommunicator

_log = logging.getLogger(__name__)

PROGRAMS = 512
"""That sum: a row each of the largest decodes, and as many as a GPU of 128 processors runs at once."""
PLACE_BYTES = 16 * 1024
"""Of a row, at most: 8192 numbers of 16 bits. Two rows at a time were no faster."""
FLAG_BYTES = 4


class SymmetricCommunicator(TorchCommunicator):
    """Every rank must call its sums in the same order, on one queue, as the ranks of a model do."""

    def __init__(self, ranks: Sequence[int], device: torch.device, overlap: Overlap) -> None:
        """A collective call. `inboxes` is None on all ranks when it cannot be had on one of them."""
        super().__init__(ranks)
        self._overlap = overlap
        self._memory: Tensor | None = None
        self.inboxes: Inboxes | None = None
        try:
            inboxes = self._connect(device)
        except RuntimeError as error:
            _log.warning("ranks cannot write each other's memory, so sums go through the library: %s", error)
            inboxes = None
        ready = torch.tensor([inboxes is not None], dtype=torch.int32, device=device)
        distributed.all_reduce(ready, distributed.ReduceOp.MIN, group=self._group)
        if ready.item():
            self.inboxes = inboxes

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks; x is as it was, where it is small."""
        if self.inboxes is None or x.dim() != 2 or not self.inboxes.takes(x):
            return super().all_reduce(x)
        return summed(x, self.inboxes, overlap=self._overlap)

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """The ranks' tensors side by side along `dim`: the library's, copied once at most."""
        parts = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
        distributed.all_gather_into_tensor(parts, x.contiguous(), group=self._group)
        return parts.movedim(0, dim).flatten(dim, dim + 1)

    def summed_norm(self, add_rms_norm: AddRmsNorm) -> AddRmsNorm:
        """`Device.summed_norm`."""

        def norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
            if self.inboxes is None or not self.inboxes.takes(x_TE):
                return add_rms_norm(super(SymmetricCommunicator, self).all_reduce(x_TE), residual_TE, weight_E, epsilon)
            return summed_add_rms_norm(x_TE, (residual_TE, weight_E, epsilon), self.inboxes, overlap=self._overlap)

        return norm

    def close(self) -> None:
        """Gives group and memory back."""
        self.inboxes = self._memory = None
        super().close()

    def _connect(self, device: torch.device) -> Inboxes:
        """Raises `RuntimeError` where a rank's memory is out of reach."""
        from torch.distributed import _symmetric_memory as symmetric

        # Stores and loads are all that is used of it, and on some hosts multicast is not to be touched.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        places = PROGRAMS * TURNS * self.size
        part_bytes = places * PLACE_BYTES
        memory = symmetric.empty(part_bytes + places * FLAG_BYTES, dtype=torch.uint8, device=device)
        memory.zero_()
        handle = symmetric.rendezvous(memory, group=self._group.group_name)
        # All flags are down before anyone writes: the check of `ready` comes behind this on every rank.
        torch.accelerator.synchronize()
        begins = torch.tensor(handle.buffer_ptrs, dtype=torch.int64)
        self._memory = memory
        return Inboxes(
            rank=handle.rank,
            parts=begins.to(device),
            flags=(begins + part_bytes).to(device),
            turns=torch.zeros(PROGRAMS, dtype=torch.int32, device=device),
            place_bytes=PLACE_BYTES,
        )

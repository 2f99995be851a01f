"""The TPU backend's vendor played by torch on the host: the backend's own tensors and shapes, without XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mainspring.backends.tpu.vendor import Vendor
from mainspring.core.backend import Program


class HostVendor(Vendor):
    """Counts what it was asked to do. With `traces` a bucket's program must be one graph to torch.compile."""

    package = "torch"
    lazy = False

    def __init__(self, *, traces: bool = False) -> None:
        self.traces = traces
        self.flushes = 0
        self.compiled = 0

    def device(self, index: int) -> str:
        return "cpu"

    def flush(self) -> None:
        self.flushes += 1

    def synchronize(self) -> None:
        pass

    def used_bytes(self, device: str) -> tuple[int, int] | None:
        return 1 << 30, 4 << 30

    def exact_products(self) -> None:
        pass

    def compile(self, program: Program) -> Program:
        self.compiled += 1
        return torch.compile(program, backend="eager", fullgraph=True, dynamic=False) if self.traces else program

    def from_jax(self, name: str, function: Callable[..., Any], result: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError("the host runs no kernel")

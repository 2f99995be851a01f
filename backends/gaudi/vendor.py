"""The vendor's software: Habana's bridge, which makes torch speak to the device `hpu`.

The one file that names it. Nothing of it is imported before a device is opened; `find` looks at what is installed and
at the PCI bus. The bridge has two ways to run, chosen by its own PT_HPU_LAZY_MODE: ops as they come, and a bucket's
program through torch.compile (its default since 1.22); or lazy graphs that `mark_step` ends.

APIs: github.com/HabanaAI/gaudi-pytorch-bridge (`python_packages/habana_frameworks/torch`: `core`, `hpu`,
`hpex/kernels`, `hpu/metrics`; schemas of `torch.ops.hpu`) and docs.habana.ai (PyTorch, "Python packages").
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mainspring.backends.gaudi.cards import Card

if TYPE_CHECKING:
    import torch

    from mainspring.backends.bucketed.attention import FusedAttention
    from mainspring.backends.gaudi.attention import BlockSoftmax
    from mainspring.core.backend import Program

PACKAGE = "habana_frameworks"
REMEDY = (
    "use the container or the installer of Intel Gaudi software (docs.habana.ai), which bring habana-torch-plugin and "
    "its torch, then pip install 'mainspring[gaudi]' there"
)


class VendorMissing(Exception):
    """There is no such software, or nothing that it could run on; the message is one sentence."""


class Habana:
    """What this backend asks of the bridge. Importing it, when this is made, starts the runtime."""

    def __init__(self) -> None:
        from habana_frameworks.torch import core, hpu
        from habana_frameworks.torch.hpu.metrics import metric_global
        from habana_frameworks.torch.utils.internal import is_lazy

        self._core, self._hpu, self._metric = core, hpu, metric_global
        self.lazy: bool = is_lazy()
        """Whether ops gather in a graph until `flush`. Otherwise a bucket's program goes through torch.compile."""

    def flush(self) -> None:
        """Ends a lazy graph and enqueues it."""
        if self.lazy:
            self._core.mark_step()

    def synchronize(self) -> None:
        """Waits for all that was enqueued."""
        self.flush()
        self._hpu.synchronize()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        free, total = self._hpu.mem_get_info()
        return free, total

    def peak_bytes(self) -> int:
        """Most bytes in use since the last call."""
        peak: int = self._hpu.max_memory_allocated()
        self._hpu.reset_peak_memory_stats()
        return peak

    def event(self) -> Any:
        """A point in the device's queue."""
        return self._hpu.Event()

    def compile(self, program: Program) -> Program:
        """The program of one bucket."""
        import torch

        return program if self.lazy else torch.compile(program, backend="hpu_backend", dynamic=False)

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What replays the ops that `run` enqueues, on the memory that it used, and what it returned. Lazy mode only.

        Capturing does not run them.
        """
        graph, stream = self._hpu.HPUGraph(), self._hpu.Stream()
        with self._hpu.stream(stream):
            graph.capture_begin()
            returned = run()
            graph.capture_end()
        return graph.replay, returned

    def compilations(self) -> int:
        """Graphs compiled in this process."""
        return int(dict(self._metric("graph_compilation").stats())["TotalNumber"])

    def fused_attention(self) -> FusedAttention | None:
        """The bridge's FusedSDPA, where this release has it."""
        try:
            from habana_frameworks.torch.hpex.kernels import FusedSDPA
        except ImportError:
            return None

        def attend(
            q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
        ) -> torch.Tensor:
            softmax_mode, recompute = "None", True
            out: torch.Tensor = FusedSDPA.apply(q, keys, values, mask, 0.0, False, scale, softmax_mode, recompute)
            return out

        return attend

    def block_softmax(self) -> BlockSoftmax | None:
        """The softmax inside blocks, where this release has it."""
        softmax: BlockSoftmax | None = _op("block_softmax")
        return softmax

    def fp8_ops(self) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
        """cast_to_fp8_v2 and fp8_gemm_v2, where this release has both."""
        cast, product = _op("cast_to_fp8_v2"), _op("fp8_gemm_v2")
        return None if cast is None or product is None else (cast, product)

    def version(self) -> str:
        """Of the plugin."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"habana-torch-plugin-{version('habana-torch-plugin')}"
        except PackageNotFoundError:
            return PACKAGE


def _op(name: str) -> Any:
    """An op that the bridge registered, or None: releases differ."""
    import torch

    try:
        return getattr(torch.ops.hpu, name)
    except AttributeError:
        return None


def check(found: Sequence[Card], installed: Callable[[str], object] = importlib.util.find_spec) -> None:
    """Raises `VendorMissing` where no Gaudi can be used, without importing anything."""
    if not installed("torch"):
        raise VendorMissing("torch is not installed")
    if not installed(PACKAGE):
        there = "and the machine shows no Gaudi" if not found else "though the machine has a Gaudi"
        raise VendorMissing(f"{PACKAGE} is not installed, {there}")
    if not found:
        raise VendorMissing(f"{PACKAGE} is installed, but the machine shows no Gaudi")

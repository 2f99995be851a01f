"""CUDA graphs: which decodes are captured, and how.

A captured program is everything from input ids to logits. Its inputs are the bucket's own buffer, so a replay finds
each step's integers where the capture found them; padding is inert. Sampling runs behind it, eagerly: which of its
stages a step needs changes with the requests.
"""

from __future__ import annotations

from typing import Any

import torch

from mainspring.core.backend import AttentionPlan, Program, ShapeLimits
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.execution.inputs import StepTensors

FINE, COARSE, COARSE_FROM = 8, 16, 256
"""Rows between two buckets, below and from so many rows on: padding costs a few per cent at most."""
SHORT_BLOCKS = 256
"""Width of the narrower of two block tables, where sequences may be longer: what is copied to the device at each step
is rows times width."""


def ladder(limits: ShapeLimits) -> Buckets:
    """Decode buckets up to the limits; steps with prefill have none and run in their own shape."""
    rows = [1, 2, 4, *range(FINE, COARSE_FROM, FINE), *range(COARSE_FROM, limits.sequences + COARSE, COARSE)]
    rows = [*(count for count in rows if count < limits.sequences), limits.sequences]
    widths = [*([SHORT_BLOCKS] if limits.blocks > SHORT_BLOCKS else []), limits.blocks]
    return Buckets(decode=tuple(Bucket(count, count, width) for width in widths for count in rows), prefill=())


class Capturer:
    """Captures programs that run one at a time, so they share one pool of memory: the largest should come first."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def program(self, program: Program) -> Program:
        """The program, captured when it is first called. It must always get the same inputs."""
        captured: list[_Captured] = []

        def run(inputs: StepTensors, plan: AttentionPlan) -> Any:
            if not captured:
                captured.append(self._capture(program, inputs, plan))
            return captured[0].replay()

        return run

    def _capture(self, program: Program, inputs: StepTensors, plan: AttentionPlan) -> _Captured:
        """Runs it once, since kernels may not be loaded inside a capture, then captures it."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            program(inputs, plan)
            self._stream.synchronize()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = program(inputs, plan)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return _Captured(graph, result)


class _Captured:
    """A graph and where it leaves its result."""

    def __init__(self, graph: torch.cuda.CUDAGraph, result: Any) -> None:
        self._graph = graph
        self._result = result

    def replay(self) -> Any:
        self._graph.replay()
        return self._result

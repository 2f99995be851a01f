"""Captured graphs: which steps are captured, and how.

A captured program is everything from input ids to sampled ids. Its inputs are the bucket's own buffer, so a replay
finds each step's integers where the capture found them; padding is inert.

Decodes are captured before anyone is served, and so are small steps in which guesses are verified. Shapes of steps with
prefill are many and most of them rare: each is captured when it is first met, behind its first, eager, run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from mainspring.backends.torch_gpu.runtime import Runtime
from mainspring.core.backend import AttentionPlan, Program, ShapeLimits
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.errors import BackendError
from mainspring.core.execution.inputs import StepTensors

_log = logging.getLogger(__name__)

FINE, COARSE, COARSE_FROM = 8, 16, 256
"""Rows between two buckets, below and from so many rows on: padding costs a few per cent at most."""
SHORT_BLOCKS = 256
"""Width of the narrower of two block tables, where sequences may be longer: what is copied to the device at each step
is rows times width. Steps with prefill that span more have no bucket: their device time hides their launches."""
FEW_ROWS = 16
"""Rows of the steps of a few prompts; others have as many as there can be, and logits for all of them."""
GUESSED_TOKENS = 256
"""Tokens up to which there are buckets that choose behind each of them: guesses are verified in those."""
OCTAVE = 4
"""Buckets of a step with prefill between one number of tokens and its double."""


def ladder(limits: ShapeLimits) -> Buckets:
    """Buckets of decodes up to the limits, and of such other steps as are worth one."""
    rows = [1, 2, 4, *range(FINE, COARSE_FROM, FINE), *range(COARSE_FROM, limits.sequences + COARSE, COARSE)]
    rows = [*(count for count in rows if count < limits.sequences), limits.sequences]
    widths = [*([SHORT_BLOCKS] if limits.blocks > SHORT_BLOCKS else []), limits.blocks]
    decode = tuple(Bucket(count, count, width) for width in widths for count in rows)
    prefill = tuple(
        Bucket(tokens, sequences, widths[0])
        for tokens in _prefill_tokens(limits.tokens)
        for sequences in sorted({min(tokens, most) for most in _most_rows(tokens, limits)})
    )
    return Buckets(decode, prefill, any_shape=True)


def _most_rows(tokens: int, limits: ShapeLimits) -> Iterator[int]:
    """Of steps of so many tokens that are no decodes. Rows are choices, too: more of them where tokens are guessed."""
    yield min(FEW_ROWS, limits.sequences)
    yield limits.sequences
    if tokens <= GUESSED_TOKENS and limits.choices:
        yield limits.choices


def _prefill_tokens(most: int) -> list[int]:
    ladder, tokens = [], FEW_ROWS
    while tokens < most:
        ladder.append(tokens)
        tokens += max(FEW_ROWS, (1 << tokens.bit_length() - 1) // OCTAVE)
    return [*ladder, most]


class Capturer:
    """Captures programs that run one at a time, so they share one pool of memory: the largest should come first."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pool = runtime.module.graph_pool_handle()
        self._stream = runtime.module.Stream()
        self._alive: WeakSet[_Captured] = WeakSet()
        self._used = False

    def program(self, program: Program) -> Program:
        """The program, captured behind its first run. It must always get the same inputs."""
        captured: list[_Captured | None] = []

        def run(inputs: StepTensors, plan: AttentionPlan) -> Any:
            if captured and captured[0] is not None:
                return captured[0].replay()
            # Kernels may not be loaded inside a capture.
            result = program(inputs, plan)
            if not captured:
                captured.append(self._try_to_capture(program, inputs, plan))
            return result

        return run

    def _try_to_capture(self, program: Program, inputs: StepTensors, plan: AttentionPlan) -> _Captured | None:
        """None where memory does not suffice: the step that was met ran all the same, and others like it will."""
        try:
            return self._capture(program, inputs, plan)
        except torch.OutOfMemoryError as error:
            _log.warning("steps of %d tokens stay eager: %s", len(inputs.positions), error)
            return None

    def _capture(self, program: Program, inputs: StepTensors, plan: AttentionPlan) -> _Captured:
        """Nothing runs, so the host does this while the device runs what was enqueued."""
        if self._runtime.graph is None:
            raise BackendError(f"torch {torch.__version__} captures no graphs on {self._runtime.kind}")
        if not self._alive:
            # A pool that has lost its last graph is torch's to take apart, and takes no new one.
            self._pool = self._runtime.module.graph_pool_handle()
        graph, outside = self._runtime.graph(), self._runtime.module.current_stream()
        with self._runtime.module.stream(self._stream):
            if not self._used:
                # What libraries allocate once a stream must not come of the graphs' pool.
                self._stream.wait_stream(outside)
                program(inputs, plan)
                self._stream.synchronize()
                self._used = True
            graph.capture_begin(pool=self._pool, **self._runtime.capture)
            try:
                result = program(inputs, plan)
            finally:
                graph.capture_end()
        lend = _borrowed if self._runtime.lends else _kept
        captured = _Captured(graph, tuple(None if part is None else lend(part) for part in result))
        self._alive.add(captured)
        return captured


class _Captured:
    """A graph and where it leaves its result."""

    def __init__(self, graph: Any, result: tuple[Tensor | None, ...]) -> None:
        self._graph = graph
        self._result = result

    def replay(self) -> tuple[Tensor | None, ...]:
        self._graph.replay()
        return self._result


class _Memory:
    """Bytes of the device by their address (CUDA Array Interface, version 3)."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.__cuda_array_interface__ = {
            "data": (storage.data_ptr(), False), "shape": (storage.nbytes(),), "typestr": "|u1", "version": 3,
        }  # fmt: skip


def _borrowed(tensor: Tensor) -> Tensor:
    """The tensor without a claim to its memory, which goes back to the pool for the next capture.

    Logits of all buckets together would take gigabytes. A program's results are used before the next one runs.
    """
    alias = torch.as_tensor(_Memory(tensor.untyped_storage()), device=tensor.device)
    return alias.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _kept(tensor: Tensor) -> Tensor:
    """Where addresses do not become tensors: the graph's result stays its own."""
    return tensor

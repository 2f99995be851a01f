"""Decode steps played from a tape: their calls are taken down once, and then one team of threads plays them.

Each of an eager step's 300 calls costs a Python frame and the waking of a thread, together a quarter of a small model's
step. The calls of two decode steps with as many rows differ in what their inputs hold and in nothing else, so a tape
keeps the inputs in a place of its own and plays the same calls again, as a captured graph does on other machines. What
torch computed between the kernels is played by torch. A step that asks a tensor for a number cannot be taken down, and
stays eager for ever.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import Structure
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mainspring.backends.cpu.native.attention import NativePlan
from mainspring.backends.cpu.native.library import Attention, Call, Kernel, Kernels, Step
from mainspring.core.backend import Program
from mainspring.core.execution.inputs import StepTensors

MOST_TAPES = 512
_ALLOCATIONS = frozenset({"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"})
_UNPREDICTABLE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded)

Inputs = tuple[Tensor, ...]


class CannotRecordError(Exception):
    """A step did what cannot be played again."""


@dataclass(slots=True)
class Arena:
    """Memory of results, which the tapes of one device share: they play one after another, and keep nothing.

    That holds for what a step returns, too, which may be overwritten when any program runs next.
    """

    _rooms: list[Tensor] = field(default_factory=list)
    _lent: list[Tensor] = field(default_factory=list)
    """The same memory, in tensors that only the latest recording has taken parts of."""

    def begin(self) -> None:
        """A recording begins, to which all rooms are free."""
        self._lent = [_again(room) for room in self._rooms]

    def take(self, shape: Sequence[int]) -> Tensor:
        """The smallest room that the recording does not use. Sizes are powers of two, so that tapes of many lengths fit
        the same.
        """
        size = max(1, prod(shape))
        free = [room for room in self._lent if len(room) >= size and _users(room) == 1]
        if not free:
            self._rooms.append(torch.empty(1 << (size - 1).bit_length()))
            free = [_again(self._rooms[-1])]
            self._lent += free
        return min(free, key=len)[: prod(shape)].view(tuple(shape))

    @property
    def num_bytes(self) -> int:
        """Of all rooms."""
        return sum(room.nbytes for room in self._rooms)


def _again(room: Tensor) -> Tensor:
    """Another tensor over the same memory, whose users are counted apart."""
    return torch.from_numpy(room.numpy())


def _users(room: Tensor) -> int:
    storage = room.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Kernelled:
    """Kernels that follow each other."""

    calls: ctypes.Array[Call]
    kept: tuple[Structure, ...]


@dataclass(frozen=True, slots=True)
class Torched:
    """One of torch's ops, and the tensors that its results must come to lie in."""

    op: Callable[..., Any]
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    results: tuple[Tensor, ...]

    def play(self) -> None:
        found = self.op(*self.args, **self.named)
        for result, value in zip(self.results, found if isinstance(found, (tuple, list)) else (found,), strict=False):
            result.copy_(value)


@dataclass(frozen=True, slots=True)
class Tape:
    """A step that can be played again."""

    inputs: StepTensors
    step: Step
    parts: tuple[Kernelled | Torched, ...]
    results: Any

    def play(self, inputs: StepTensors, plan: NativePlan, kernels: Kernels) -> Any:
        """The program's results for other inputs of the same sizes, in the same memory at every call."""
        for mine, theirs in zip(_tensors(self.inputs), _tensors(inputs), strict=True):
            mine.copy_(theirs)
        ctypes.pointer(self.step)[0] = plan.step
        for part in self.parts:
            if isinstance(part, Kernelled):
                kernels.play(part.calls, len(part.calls), kernels.threads)
            else:
                part.play()
        return self.results


class Recording(TorchDispatchMode):
    """Takes down what a step calls while it runs."""

    def __init__(self, plan: NativePlan, arena: Arena) -> None:
        super().__init__()
        self.step = Step.from_buffer_copy(plan.step)
        self._step_of_plan = ctypes.addressof(plan.step)
        self._arena = arena
        self._parts: list[Kernelled | Torched] = []
        self._calls: list[tuple[Kernel, Structure]] = []

    def call(self, kernel: Kernel, record: Structure) -> None:
        """For `Kernels`: one call of a kernel."""
        copy = type(record).from_buffer_copy(record)
        if isinstance(copy, Attention):
            if copy.step != self._step_of_plan:
                raise CannotRecordError("keys are written to slots that are not the step's")
            copy.step = ctypes.addressof(self.step)
        self._calls.append((kernel, copy))

    def empty(self, shape: Sequence[int]) -> Tensor:
        """For `Kernels`: memory that stays where it is."""
        return self._arena.take(shape)

    def __torch_dispatch__(
        self, op: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named, schema = kwargs or {}, op._schema
        found = op(*args, **named)
        results = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        if schema.name in _ALLOCATIONS or (not schema.is_mutable and _are_views(results, (*args, *named.values()))):
            return found
        if _unpredictable(op, args) or not all(isinstance(each, Tensor) for each in results):
            raise CannotRecordError(f"{schema.name} asks a tensor for what Python must know")
        self._end_of_kernels()
        self._parts.append(Torched(op, args, named, () if schema.is_mutable else results))
        return found

    def parts(self) -> tuple[Kernelled | Torched, ...]:
        """What was taken down, in order."""
        self._end_of_kernels()
        return tuple(self._parts)

    def _end_of_kernels(self) -> None:
        if self._calls:
            records = tuple(record for _, record in self._calls)
            calls = (Call * len(records))(*((kernel, ctypes.addressof(record)) for kernel, record in self._calls))
            self._parts.append(Kernelled(calls, records))
            self._calls = []


class TapedProgram:
    """A program that plays its decode steps from tapes, one for each number of rows that comes more than once."""

    def __init__(self, program: Program, kernels: Kernels, arena: Arena) -> None:
        self._program = program
        self._kernels = kernels
        self.arena = arena
        self._tapes: dict[tuple[int, int], Tape | None] = {}
        self._eager = False

    def __call__(self, inputs: StepTensors, plan: Any) -> Any:
        if self._eager or inputs.metadata.max_query != 1 or not isinstance(plan, NativePlan) or plan.padded:
            return self._program(inputs, plan)
        key = (len(inputs.positions), len(inputs.sample_index))
        if (tape := self._tapes.get(key)) is not None:
            return tape.play(inputs, plan, self._kernels)
        if key in self._tapes:
            return self._record(key, inputs, plan)
        if len(self._tapes) < MOST_TAPES:
            self._tapes[key] = None
        return self._program(inputs, plan)

    def _record(self, key: tuple[int, int], inputs: StepTensors, plan: NativePlan) -> Any:
        fixed = _fixed(inputs)
        self.arena.begin()
        recording = Recording(plan, self.arena)
        self._kernels.recorder = recording
        try:
            with recording:
                results = self._program(fixed, plan)
        except CannotRecordError:
            self._eager = True
        finally:
            self._kernels.recorder = None
        if self._eager:
            return self._program(inputs, plan)
        self._tapes[key] = Tape(fixed, recording.step, recording.parts(), results)
        return results


def _are_views(results: Sequence[Any], args: Sequence[Any]) -> bool:
    """Whether an op only looked at its arguments' memory. Its schema does not tell: `to` and `reshape` may copy."""
    # oneDNN's own order of a weight has no storage, and nothing looks at it.
    plain = [each for each in args if isinstance(each, Tensor) and not each.is_mkldnn]
    places = {each.untyped_storage().data_ptr() for each in plain}
    return all(isinstance(each, Tensor) and each.untyped_storage().data_ptr() in places for each in results)


def _unpredictable(op: Any, args: tuple[Any, ...]) -> bool:
    """Whether another run with inputs of the same sizes may give results of others, or ask for a number."""
    if op._schema.name == "aten::index":
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return any(tag in op.tags for tag in _UNPREDICTABLE)


def _tensors(inputs: StepTensors) -> Inputs:
    """What a program reads besides its plan."""
    return (
        inputs.positions, inputs.token_rows, inputs.sample_index, inputs.sample_rows, inputs.sample_positions,
    )  # fmt: skip


def _fixed(inputs: StepTensors) -> StepTensors:
    """The same in memory that stays."""
    positions, token_rows, index, rows, places = (each.clone() for each in _tensors(inputs))
    return replace(
        inputs, positions=positions, token_rows=token_rows, sample_index=index, sample_rows=rows,
        sample_positions=places,
    )  # fmt: skip

"""One variant, compiled in a process of its own: where a dtype is not supported LLVM ends its process.

A driver that only names a target stands where Triton looks for a device, and launches end when the code is there.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import triton
from triton.runtime.jit import JITFunction

from tests.compiled.kernels import Variant
from tests.compiled.targets import Target

MOST_SECONDS = 120
BINARIES = {"hip": "hsaco", "cuda": "cubin", "xpu": "spv"}
TEXTS = {"hip": "amdgcn", "cuda": "ptx", "xpu": "ttgir"}


@dataclass(frozen=True, slots=True)
class Code:
    """What one kernel became."""

    kernel: str
    binary: bytes
    registers: int
    spilled: int
    shared: int
    matrix: str
    """The first matrix instruction; empty without any."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one variant on one target."""

    target: str
    variant: Variant
    seconds: float
    codes: tuple[Code, ...]
    error: str = ""


class _Named:
    """Triton's driver of a device that is not there."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def compile_all(work: list[tuple[str, Target, Variant]], jobs: int) -> Iterator[Outcome]:
    """In the order given."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda one: _in_a_process(*one), work)


def _in_a_process(name: str, target: Target, variant: Variant) -> Outcome:
    # Forked, so that torch and Triton are imported once; neither has a thread or an LLVM context yet.
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_compile, args=(target, variant, theirs))
    began = time.monotonic()
    process.start()
    theirs.close()
    answer: Any = None
    try:
        answer = ours.recv() if ours.poll(MOST_SECONDS) else f"took more than {MOST_SECONDS} s"
    except EOFError:
        process.join()
        answer = f"the compiler ended its process ({process.exitcode})"
    process.kill()
    process.join()
    outcome = Outcome(name, variant, time.monotonic() - began, ())
    return replace(outcome, error=answer) if isinstance(answer, str) else replace(outcome, codes=answer)


def _compile(target: Target, variant: Variant, answer: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    triton.runtime.driver.set_active(_Named(target.gpu))
    codes: list[Code] = []
    launch = JITFunction.run

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        built = launch(self, *args, grid=grid, warmup=True, **options)
        codes.append(_code(built, target))
        return built

    JITFunction.run = compiled
    try:
        variant.launch(target)
    except Exception:
        answer.send(traceback.format_exc(limit=-1))
        raise
    answer.send(tuple(codes))


def _code(built: Any, target: Target) -> Code:
    backend = target.gpu.backend
    text = built.asm[TEXTS[backend]]
    found = re.search(rf"\S*(?:{target.matrix})\S*", text)
    return Code(
        kernel=built.metadata.name,
        binary=built.asm[BINARIES[backend]],
        registers=_number(r"\.vgpr_count:\s+(\d+)", text),
        spilled=_number(r"\.vgpr_spill_count:\s+(\d+)", text),
        shared=built.metadata.shared,
        matrix=found.group() if found else "",
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0

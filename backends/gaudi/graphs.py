"""Captured HPU graphs, in lazy mode: a bucket's ops are enqueued once and replayed on memory that stays.

A program takes new tensors at every step, so they are first copied into those that it was captured with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from mainspring.core.backend import Program

Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""`Habana.capture`."""


def captured(program: Program, capture: Capture) -> Program:
    """A bucket's program that runs once as it is, is captured when it runs again, and is replayed from then on."""
    held: list[tuple[list[Tensor], Callable[[], None], Any]] = []
    runs = 0

    def run(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 1:
            return program(*arguments)
        if not held:
            replay, returned = capture(lambda: program(*arguments))
            held.append((list(tensors(arguments)), replay, returned))
        mine, replay, returned = held[0]
        for old, new in zip(mine, tensors(arguments), strict=True):
            if old is not new:
                old.copy_(new)
        replay()
        return returned

    return run


def tensors(value: Any) -> Iterator[Tensor]:
    """Those in a step's inputs and plan, in an order that does not change."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))

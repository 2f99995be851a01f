"""One subject under test: runs cases, compares tensors, keeps what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from mainspring.core.conformance.report import Finding, Origin

TOLERANCES: Mapping[torch.dtype, float] = MappingProxyType(
    {
        # 24 bits; sums of some thousand terms in another order, and another library's exp, tanh and rsqrt.
        torch.float32: 3e-5,
        # 11 bits in the result and in one intermediate (softmax weights, normed activations).
        torch.float16: 4e-3,
        # 8 bits likewise.
        torch.bfloat16: 3e-2,
        # 4 and 3 bits of what the cache holds: the reference holds the same, so this is for products made in 8 bits.
        torch.float8_e4m3fn: 8e-2,
        torch.float8_e5m2: 0.15,
    }
)
"""Largest |result - reference| / (1 + |reference|) by the coarsest dtype that a case passes through."""


class Trial:
    """Cases of one subject. `finding` is what came of them."""

    def __init__(self, subject: str, origin: Origin) -> None:
        self.subject = subject
        self.origin: Origin = origin
        self._cases = 0
        self._worst = (0.0, 0.0)
        self._seconds = 0.0
        self._problems: list[str] = []

    def run(self, case: str, work: Callable[[], tuple[Tensor, Tensor]], tolerance: float) -> None:
        """One case: `work` returns the backend's result and the reference's, of one shape."""
        self._cases += 1
        begun = time.perf_counter()
        try:
            result, expected = (x.detach().cpu() for x in work())
        except Exception as error:  # noqa: BLE001  whatever a backend under test raises is a finding about it
            self.refuse(case, f"raised {type(error).__name__}: {error}")
            return
        finally:
            self._seconds += time.perf_counter() - begun
        self._compare(case, result, expected, tolerance)

    def refuse(self, case: str, reason: str) -> None:
        """Books a failure."""
        self._problems.append(f"{case}: {reason}")

    def finding(self, note: str = "") -> Finding:
        """All cases so far."""
        error, tolerance = self._worst
        return Finding(
            subject=self.subject,
            origin=self.origin,
            cases=self._cases,
            error=error,
            tolerance=tolerance,
            seconds=self._seconds,
            problems=tuple(self._problems),
            note=note,
        )

    def _compare(self, case: str, result: Tensor, expected: Tensor, tolerance: float) -> None:
        if result.shape != expected.shape:
            self._problems.append(f"{case}: shape {tuple(result.shape)} instead of {tuple(expected.shape)}")
            return
        if not result.numel():
            return
        result, expected = result.float(), expected.float()
        errors = (result - expected).abs() / (1 + expected.abs())
        bad = int((~torch.isfinite(result)).sum())
        if bad:
            self._problems.append(f"{case}: {bad} of {result.numel()} values are not finite")
            return
        error = float(errors.max())
        if error * self._worst[1] >= self._worst[0] * tolerance:
            self._worst = (error, tolerance)
        if error > tolerance:
            where = tuple(int(i) for i in torch.unravel_index(errors.argmax(), errors.shape))
            self._problems.append(
                f"{case}: error {error:.1e} at {where}, allowed {tolerance:.1e}: "
                f"{float(result[where]):.6g} instead of {float(expected[where]):.6g}"
            )

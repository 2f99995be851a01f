"""One subject under test: what a check is, how its cases are run and compared, and how far results may be off."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from mainspring.core.backend import Device
from mainspring.core.conformance.report import Finding, Origin


@dataclass(frozen=True, slots=True)
class Check:
    """A subject by name, known from capabilities alone, and how an open device is checked for it."""

    subject: str
    run: Callable[[Device], Finding]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest |result - reference| / (1 + |reference|), and why it is not less."""

    allowed: float
    reason: str


EXACT = Tolerance(0.0, "the same numbers, bit for bit")

TOLERANCES: Mapping[torch.dtype, Tolerance] = MappingProxyType(
    {
        torch.float32: Tolerance(3e-5, "24 bits; sums in another order, another library's exp, tanh and rsqrt"),
        torch.float16: Tolerance(4e-3, "11 bits, in the result and in one intermediate"),
        torch.bfloat16: Tolerance(3e-2, "8 bits, in the result and in one intermediate"),
        # The reference's cache holds the same rounded numbers.
        torch.float8_e4m3fn: Tolerance(8e-2, "4 bits, for products made of what the cache holds"),
        torch.float8_e5m2: Tolerance(0.15, "3 bits, for products made of what the cache holds"),
    }
)
"""By the coarsest dtype that a case passes through."""


def coarsest(*dtypes: str) -> Tolerance:
    """The largest tolerance among those of the dtypes by name."""
    return max((TOLERANCES[getattr(torch, dtype)] for dtype in dtypes), key=lambda tolerance: tolerance.allowed)


class Trial:
    """Cases of one subject. `finding` is what came of them."""

    def __init__(self, subject: str, origin: Origin) -> None:
        self.subject = subject
        self.origin: Origin = origin
        self._cases = 0
        self._error, self._tolerance = 0.0, EXACT
        self._seconds = 0.0
        self._problems: list[str] = []

    def run(self, case: str, work: Callable[[], tuple[Tensor, Tensor]], tolerance: Tolerance) -> None:
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

    def require(self, case: str, holds: bool, reason: str) -> None:
        """One case that is true or not."""
        self._cases += 1
        if not holds:
            self.refuse(case, reason)

    def refuse(self, case: str, reason: str) -> None:
        """Books a failure."""
        self._problems.append(f"{case}: {reason}")

    def finding(self, note: str = "") -> Finding:
        """All cases so far."""
        return Finding(
            subject=self.subject,
            origin=self.origin,
            cases=self._cases,
            error=self._error,
            tolerance=self._tolerance.allowed,
            reason=self._tolerance.reason if self._cases else "",
            seconds=self._seconds,
            problems=tuple(self._problems),
            note=note,
        )

    def _compare(self, case: str, result: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
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
        if error * self._tolerance.allowed >= self._error * tolerance.allowed:
            self._error, self._tolerance = error, tolerance
        if error > tolerance.allowed:
            where = tuple(int(i) for i in torch.unravel_index(errors.argmax(), errors.shape))
            self._problems.append(
                f"{case}: error {error:.1e} at {where}, allowed {tolerance.allowed:.1e}: "
                f"{float(result[where]):.6g} instead of {float(expected[where]):.6g}"
            )

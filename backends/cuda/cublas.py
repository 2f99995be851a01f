"""Products by cuBLASLt with an algorithm of the caller's choice; torch's own always take its first guess.

The calls and constants are those of cublasLt.h (docs.nvidia.com/cuda/cublas, "Using the cuBLASLt API"). Its matrices
are stored by columns, so y = x W^T is asked for as y^T = W x^T, and nothing is moved.

Legend: M rows of x, N output features, K input features.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

WORKSPACE_BYTES = 32 << 20
TYPES = {torch.float16: 2, torch.bfloat16: 14}
"""cudaDataType of what is multiplied."""
CUDA_R_32F, COMPUTE_32F = 0, 68
TRANSPOSED = 1
DESC_TRANSA, DESC_EPILOGUE, DESC_BIAS = 3, 7, 8
EPILOGUE_BIAS = 4
PREFERENCE_WORKSPACE = 1


class CublasError(RuntimeError):
    """cuBLASLt refused a call."""


class _Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One that the library proposed, in its own words, which hold for one version of it."""

    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Problem:
    """Descriptors of one shape, kept for ever: there are as many as shapes."""

    operation: c_void_p
    weight: c_void_p
    x: c_void_p
    out: c_void_p


class Cublas:
    """The library, on the device that is current when it is made. One product runs at a time."""

    def __init__(self) -> None:
        major = str(torch.version.cuda).partition(".")[0]
        try:
            self._library = ctypes.CDLL(f"libcublasLt.so.{major}")
        except OSError as error:
            raise CublasError(str(error)) from error
        self._library.cublasLtGetVersion.restype = c_size_t
        self._handle = c_void_p()
        self._call("cublasLtCreate", byref(self._handle))
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
        self._problems: dict[tuple[int, int, int, int, torch.dtype, bool], _Problem] = {}

    @property
    def version(self) -> int:
        """Algorithms of another version mean nothing to this one."""
        return int(self._library.cublasLtGetVersion())

    def algorithms(self, x_MK: Tensor, weight_NK: Tensor, biased: bool, most: int) -> list[Algorithm]:
        """What the library thinks is fastest, best first, `most` at most."""
        problem = self._problem(x_MK, weight_NK, biased)
        preference, found = c_void_p(), c_int()
        self._call("cublasLtMatmulPreferenceCreate", byref(preference))
        space = c_uint64(WORKSPACE_BYTES)
        self._call("cublasLtMatmulPreferenceSetAttribute", preference, PREFERENCE_WORKSPACE, byref(space), c_size_t(8))
        results = (_Result * most)()
        self._call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, problem.operation, problem.weight, problem.x, problem.out,
            problem.out, preference, most, results, byref(found),
        )  # fmt: skip
        self._call("cublasLtMatmulPreferenceDestroy", preference)
        return [Algorithm(tuple(result.algorithm)) for result in results[: found.value] if not result.state]

    def product(self, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, algorithm: Algorithm) -> Tensor:
        """[M, N]. Raises `CublasError` where the algorithm was not made for such a shape."""
        problem = self._problem(x_MK, weight_NK, bias_N is not None)
        out = torch.empty((x_MK.shape[0], weight_NK.shape[0]), dtype=x_MK.dtype, device=x_MK.device)
        if bias_N is not None:
            self._set(problem.operation, DESC_BIAS, c_uint64(bias_N.data_ptr()))
        one, nothing, target = c_float(1), c_float(0), c_void_p(out.data_ptr())
        self._call(
            "cublasLtMatmul", self._handle, problem.operation, byref(one), c_void_p(weight_NK.data_ptr()),
            problem.weight, c_void_p(x_MK.data_ptr()), problem.x, byref(nothing), target, problem.out, target,
            problem.out, byref((c_uint64 * 8)(*algorithm.words)), c_void_p(self._workspace.data_ptr()),
            c_size_t(WORKSPACE_BYTES), c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip
        return out

    def _problem(self, x_MK: Tensor, weight_NK: Tensor, biased: bool) -> _Problem:
        (rows, depth), size, stride = x_MK.shape, weight_NK.shape[0], x_MK.stride(0)
        key = (rows, stride, size, depth, x_MK.dtype, biased)
        if key not in self._problems:
            operation = c_void_p()
            self._call("cublasLtMatmulDescCreate", byref(operation), COMPUTE_32F, CUDA_R_32F)
            self._set(operation, DESC_TRANSA, c_int(TRANSPOSED))
            if biased:
                self._set(operation, DESC_EPILOGUE, c_int(EPILOGUE_BIAS))
            kind = TYPES[x_MK.dtype]
            self._problems[key] = _Problem(
                operation,
                self._layout(kind, depth, size, depth),
                self._layout(kind, depth, rows, stride),
                self._layout(kind, size, rows, size),
            )
        return self._problems[key]

    def _layout(self, kind: int, rows: int, columns: int, stride: int) -> c_void_p:
        layout = c_void_p()
        self._call(
            "cublasLtMatrixLayoutCreate", byref(layout), kind, c_uint64(rows), c_uint64(columns), c_int64(stride)
        )
        return layout

    def _set(self, operation: c_void_p, attribute: int, value: c_int | c_uint64) -> None:
        self._call("cublasLtMatmulDescSetAttribute", operation, attribute, byref(value), c_size_t(ctypes.sizeof(value)))

    def _call(self, name: str, *arguments: object) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise CublasError(f"{name} answered {status} (cublasStatus_t)")

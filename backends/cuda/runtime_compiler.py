"""CUDA C++ compiled when it is needed, and launched on torch's streams.

The calls and constants are those of NVRTC (docs.nvidia.com/cuda/nvrtc), which torch brings along, and of the CUDA
driver API (docs.nvidia.com/cuda/cuda-driver-api: module management, execution control).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_uint, c_void_p

from mainspring.backends.cuda import driver

Argument = c_void_p | c_int | c_int64
PROGRAMMATIC_STREAM_SERIALIZATION = 6
"""CU_LAUNCH_ATTRIBUTE_...: the kernel may start while the one before it drains, and waits where it says so."""


class CompileError(RuntimeError):
    """NVRTC is missing, or refuses a program; the message holds its log."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute; its value is a union of 64 bytes."""

    _fields_ = (("id", c_int), ("pad", c_int), ("value", c_int), ("rest", c_int * 15))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", c_uint),
    )


class Compiler:
    """NVRTC of one major version."""

    def __init__(self, major: str) -> None:
        """Raises `CompileError` when the library cannot be loaded."""
        try:
            self._library = ctypes.CDLL(f"libnvrtc.so.{major}")
        except OSError as error:
            raise CompileError(str(error)) from error
        self._library.nvrtcGetErrorString.restype = c_char_p

    def cubin(self, source: str, capability: tuple[int, int], macros: Mapping[str, int]) -> bytes:
        """Machine code for one compute capability. Raises `CompileError`."""
        options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", "--std=c++17"]
        options += [f"-D{name}={value}" for name, value in macros.items()]
        program = c_void_p()
        self._call("nvrtcCreateProgram", byref(program), source.encode(), None, 0, None, None)
        try:
            given = (c_char_p * len(options))(*(option.encode() for option in options))
            if self._library.nvrtcCompileProgram(program, len(options), given):
                raise CompileError(f"{' '.join(options)}: {self._log(program)}")
            size = c_size_t()
            self._call("nvrtcGetCUBINSize", program, byref(size))
            code = ctypes.create_string_buffer(size.value)
            self._call("nvrtcGetCUBIN", program, code)
            return code.raw
        finally:
            self._call("nvrtcDestroyProgram", byref(program))

    def _log(self, program: c_void_p) -> str:
        size = c_size_t()
        self._call("nvrtcGetProgramLogSize", program, byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._call("nvrtcGetProgramLog", program, log)
        return log.value.decode(errors="replace")

    def _call(self, function: str, *arguments: object) -> None:
        if status := getattr(self._library, function)(*arguments):
            raise CompileError(f"{function} failed: {self._library.nvrtcGetErrorString(status).decode()}")


class Kernel:
    """One function of a loaded module, in the context that is current when it is made. It is never unloaded."""

    def __init__(self, code: bytes, name: str) -> None:
        """Raises `driver.DriverError`."""
        self._library = driver.opened()
        self._module, self._function = c_void_p(), c_void_p()
        driver.call(self._library, "cuModuleLoadData", byref(self._module), code)
        driver.call(self._library, "cuModuleGetFunction", byref(self._function), self._module, name.encode())
        self._early = _Attribute(id=PROGRAMMATIC_STREAM_SERIALIZATION, value=1)

    def __call__(self, blocks: int, threads: int, stream: int, arguments: Sequence[Argument]) -> None:
        """Queues it: `blocks` along x, of so many threads, begun before the kernel in front has finished."""
        one = (c_uint * 3)(1, 1, 1)
        config = _Config(one, one, 0, stream, ctypes.pointer(self._early), 1)
        config.grid[0], config.block[0] = blocks, threads
        places = (c_void_p * len(arguments))(*(ctypes.cast(byref(value), c_void_p) for value in arguments))
        driver.call(self._library, "cuLaunchKernelEx", byref(config), self._function, places, None)

"""What GPUs there are, asked of NVIDIA's driver library itself, so that listing them loads no torch.

The calls are those of the CUDA driver API (docs.nvidia.com/cuda/cuda-driver-api): device management. The driver honours
CUDA_VISIBLE_DEVICES, so indices are those that torch will use.
"""

from __future__ import annotations

import ctypes
import uuid
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


class DriverError(Exception):
    """The driver is missing or refuses; the message says which."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that the driver shows."""

    index: int
    name: str
    capability: tuple[int, int]
    """Compute capability, e.g. (9, 0)."""
    total_bytes: int
    uuid: str


def gpus() -> list[Gpu]:
    """All visible GPUs. Raises `DriverError` when there is no driver or it does not start."""
    library = opened()
    call(library, "cuInit", 0)
    count = ctypes.c_int()
    call(library, "cuDeviceGetCount", ctypes.byref(count))
    return [_gpu(library, index) for index in range(count.value)]


def opened() -> ctypes.CDLL:
    """The library. Raises `DriverError`."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DriverError(f"the NVIDIA driver's {LIBRARY} cannot be loaded ({error})") from error


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device, size = ctypes.c_int(), ctypes.c_size_t()
    call(library, "cuDeviceGet", ctypes.byref(device), index)
    name, identity = ctypes.create_string_buffer(256), ctypes.create_string_buffer(16)
    call(library, "cuDeviceGetName", name, len(name), device)
    call(library, "cuDeviceTotalMem_v2", ctypes.byref(size), device)
    call(library, "cuDeviceGetUuid", identity, device)
    major, minor = (_attribute(library, attribute, device) for attribute in (MAJOR, MINOR))
    return Gpu(index, name.value.decode(), (major, minor), size.value, f"GPU-{uuid.UUID(bytes=identity.raw)}")


def _attribute(library: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    call(library, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return value.value


def call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    """One of the library's functions that give a CUresult. Raises `DriverError` for any but success."""
    status = getattr(library, function)(*arguments)
    if status:
        message = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(message))
        raise DriverError(f"{function} failed: {(message.value or b'unknown error').decode()} ({status})")

"""Small arrays on their way to the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mainspring.core.backend import Device

Upload = Callable[[npt.NDArray[np.generic]], Tensor]
"""Takes an array to the device without waiting for it."""


def uploading(device: Device) -> Upload:
    """The `Upload` of a device: through its pinned memory."""
    return partial(_upload, device)


def _upload(device: Device, array: npt.NDArray[np.generic]) -> Tensor:
    host = torch.from_numpy(np.ascontiguousarray(array))
    pinned = device.pinned(host.shape, host.dtype)
    # Not `copy_`, which deals out what is large among threads: one that another process holds up holds up the step.
    np.copyto(pinned.numpy(), host.numpy())
    return pinned.to(device.torch_device, non_blocking=True)

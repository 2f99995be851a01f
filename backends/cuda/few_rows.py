"""Products of at most four rows with weights of codes: `few_rows.cu`, a program a form of weight.

Beside `backends/triton/words.py`, whose storage it reads: there programs that share a tile wait for each other's sums,
five microseconds a product, which is what a decode of one row spends half its time on.

Legend: M rows of x, N output features, K input features.
"""

from __future__ import annotations

from ctypes import c_int, c_void_p
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

from mainspring.backends.cuda.runtime_compiler import Argument, Compiler, Kernel
from mainspring.backends.triton.codes import PLANES, Kind, offset
from mainspring.backends.triton.words import FEATURES, ROWS, WordWeight

MOST_ROWS = 4
"""A block of threads reads all of x for sixteen output features: of more rows, tiles of 64 features read less."""
FEATURES_EACH = 16
"""Output features of a block of threads."""
KINDS: dict[Kind, int] = {"int4": 0, "int8": 1, "float8_e4m3fn": 2, "e2m1": 3}
"""Those that the kernel reads, as it numbers them."""


@dataclass(frozen=True, slots=True)
class FewTile:
    """Sizes of a block of threads."""

    warps: int
    """Among which K is cut."""
    depth: int
    """Blocks of codes that a warp has under way."""
    ahead: bool = False
    """Whether the rest is fetched to the second-level cache before the kernel in front has finished."""


class FewRows:
    """The kernels of one device, compiled when a form of weight first comes; `tuning.FewRows` says what it is for."""

    def __init__(self, compiler: Compiler, capability: tuple[int, int], processors: int) -> None:
        self._compiler = compiler
        self._capability = capability
        self._processors = processors
        self._source = files(__package__).joinpath("few_rows.cu").read_text()
        self._kernels: dict[tuple[int, ...], Kernel] = {}

    def takes(self, x_MK: Tensor, weight: WordWeight) -> bool:
        """Rows of bfloat16 whose features lie in pairs, weights whose groups are no smaller than planes, scales of one
        level."""
        paired = x_MK.dtype == torch.bfloat16 and not x_MK.stride(0) % 2 and not weight.depth % 2
        whole = weight.group_size is None or weight.group_size >= FEATURES
        return paired and whole and weight.supers is None and len(x_MK) <= MOST_ROWS and weight.kind in KINDS

    def __call__(self, x_MK: Tensor, weight: WordWeight, bias_N: Tensor | None, tile: FewTile | None = None) -> Tensor:
        """[M, N] bfloat16. Features of a row lie side by side."""
        (num_rows, depth), size = x_MK.shape, weight.size
        strips, blocks = weight.words.shape[:2]
        tile = tile or tile_of(weight, self._processors)
        kernel = self._kernel(weight, tile, biased=bias_N is not None)
        out = torch.empty((num_rows, size), dtype=x_MK.dtype, device=x_MK.device)
        tensors = (x_MK, weight.words, weight.scales, weight.zeros, bias_N, out)
        numbers = (num_rows, size, depth, x_MK.stride(0), blocks, strips * ROWS)
        arguments: list[Argument] = [c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
        arguments += [c_int(number) for number in numbers]
        stream = torch.cuda.current_stream().cuda_stream
        kernel(-(-size // FEATURES_EACH), 32 * tile.warps, stream, arguments)
        return out

    def _kernel(self, weight: WordWeight, tile: FewTile, *, biased: bool) -> Kernel:
        macros = macros_of(weight, tile, biased=biased)
        key = tuple(macros.values())
        if key not in self._kernels:
            self._kernels[key] = Kernel(self._compiler.cubin(self._source, self._capability, macros), "few_rows")
        return self._kernels[key]


def macros_of(weight: WordWeight, tile: FewTile, *, biased: bool) -> dict[str, int]:
    """What `few_rows.cu` is compiled with for a weight."""
    block, group = PLANES[weight.kind] * FEATURES, weight.group_size
    return {
        "KIND": KINDS[weight.kind],
        "GROUPS": 0 if group is None else max(1, block // group),
        "BLOCKS_EACH": 1 << 30 if group is None else max(1, group // block),
        "ZEROS": 0 if weight.zeros is None else 1 if weight.whole else 2,
        "BFLOAT": int(weight.short == torch.bfloat16),
        "TAKEN": weight.bias + offset(weight.kind, torch.bfloat16),
        "BIAS": int(biased),
        "WARPS": tile.warps,
        "DEPTH": tile.depth,
        "AHEAD": int(tile.ahead),
        "EVEN": int(weight.depth % block == 0),
    }


def tile_of(weight: WordWeight, processors: int) -> FewTile:
    """As measured on an H100 at the shapes of an 8B model."""
    programs = -(-weight.size // FEATURES_EACH)
    return FewTile(16 if programs <= 2 * processors else 8, 2)

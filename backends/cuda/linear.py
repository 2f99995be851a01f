"""Unquantized linear layers: whose kernel multiplies which shape. What is fastest here is measured, once a card.

Up to MOST_ROWS rows a product is bound by reading its weight, and kernels of our own compete with the library's; above,
the library's are kept. Choices are made when a shape is first met, which is during warm-up, and are kept on disk beside
the compiled kernels. A shape first met inside a capture goes to the library, which needs no measuring.

Legend: M rows of x, N output features, K input features.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.nn.functional import linear as library

from mainspring.backends.triton.launch import Overlap
from mainspring.backends.triton.linear import SplitTile, VectorTile, split, vector
from mainspring.core.backend import PackedLinear

MOST_ROWS = 32
FEWEST_WEIGHTS = 1 << 19
"""Of a layer that is worth a measurement."""
MOST_TILES = 1 << 16
"""Of one product; tiles have 32 output features and more."""
CACHED_BYTES = 200 << 20
"""What a measurement reads before it comes back to the same weight: several times the second-level cache."""
REPLAYS = 7

VECTOR_TILES = tuple(
    VectorTile(*sizes) for sizes in ((4, 1024, 4), (2, 1024, 2), (2, 2048, 4), (8, 512, 4), (16, 256, 4))
)
SPLIT_TILES = (
    SplitTile(64, 256, 1, 4, 3, ahead=256), SplitTile(64, 128, 1, 4, 4, ahead=256),
    SplitTile(32, 256, 1, 4, 3, ahead=256), SplitTile(128, 128, 1, 8, 3, ahead=256),
)  # fmt: skip
"""The tiles that were fastest for some shape of an 8B or a 0.6B model on an H100; how K is split follows from N."""

Tile = VectorTile | SplitTile | None
"""None: the library."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a choice depends on."""

    rows: int
    """The most rows that are treated alike: 1, 16 or 32."""
    size: int
    depth: int
    dtype: str
    bias: bool


class Linears:
    """The linear layers of one device."""

    def __init__(self, overlap: Overlap, processors: int, card: str, folder: Path) -> None:
        self._overlap = overlap
        self._processors = processors
        self._file = folder / f"linear-{card.replace(' ', '-')}-torch-{torch.__version__}-triton-{triton.__version__}"
        self._tiles = _read(self._file)
        self._weights: defaultdict[tuple[int, int, torch.dtype], list[Tensor]] = defaultdict(list)
        self._arrived: Tensor | None = None

    def add(self, weight_NK: Tensor) -> None:
        """Takes note of a weight: measurements rotate among those of one shape, as a model's layers do."""
        self._weights[(*weight_NK.shape, weight_NK.dtype)].append(weight_NK)

    def __call__(self, x_MK: Tensor, packed: PackedLinear) -> Tensor:
        """As `Device.quantized_linear`."""
        weight_NK, bias_N = packed.data, packed.bias
        rows = x_MK.shape[0]
        if not 0 < rows <= MOST_ROWS or weight_NK.dtype == torch.float32 or weight_NK.numel() < FEWEST_WEIGHTS:
            return library(x_MK, weight_NK, bias_N)
        shape = Shape(
            1 if rows == 1 else 16 if rows <= 16 else 32, *weight_NK.shape, str(weight_NK.dtype), bias_N is not None
        )
        if shape not in self._tiles:
            if torch.cuda.is_current_stream_capturing():
                return library(x_MK, weight_NK, bias_N)
            self._tiles[shape] = self._fastest(shape, x_MK, packed)
            _write(self._file, self._tiles)
        return self._run(self._tiles[shape], x_MK, weight_NK, bias_N)

    def _run(self, tile: Tile, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        if tile is None:
            return library(x_MK, weight_NK, bias_N)
        x_MK = x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()
        if isinstance(tile, VectorTile):
            return vector(x_MK, weight_NK, bias_N, tile, overlap=self._overlap)
        if self._arrived is None:
            # Kept for ever: captured steps hold its address. One step runs at a time, so all layers share it.
            self._arrived = torch.zeros(MOST_TILES, dtype=torch.int32, device=x_MK.device)
        return split(x_MK, weight_NK, bias_N, tile, arrived=self._arrived, overlap=self._overlap)

    def _fastest(self, shape: Shape, x_MK: Tensor, packed: PackedLinear) -> Tile:
        weights = self._weights[(shape.size, shape.depth, packed.data.dtype)] or [packed.data]
        # A class is measured at its largest, with what a caller happened to bring in some of the rows.
        x_MK = x_MK.repeat(shape.rows, 1)[: shape.rows].contiguous()

        def seconds(tile: Tile) -> float:
            return _seconds(lambda weight: self._run(tile, x_MK, weight, packed.bias), weights)

        return min(candidates(shape, self._processors), key=seconds)


def candidates(shape: Shape, processors: int) -> Iterator[Tile]:
    """The library first, which wins what is equally fast."""
    yield None
    if shape.rows == 1:
        yield from VECTOR_TILES
        return
    for tile in SPLIT_TILES:
        tiles = triton.cdiv(shape.size, tile.rows)
        once = 1 << max(0, (processors // tiles).bit_length() - 1)
        for splits in (once, 2 * once):
            if shape.depth >= splits * tile.columns and (splits == once or tiles * splits <= 4 * processors):
                yield SplitTile(tile.rows, tile.columns, splits, tile.warps, tile.stages, tile.ahead)


def _seconds(product: Callable[[Tensor], Tensor], weights: list[Tensor]) -> float:
    """Of one product inside a graph, weights taking turns; the median of several replays."""
    each = weights[0].numel() * weights[0].element_size()
    turns = max(8, CACHED_BYTES // each // len(weights) * len(weights))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        product(weights[0])
        stream.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for turn in range(turns):
                product(weights[turn % len(weights)])
        finally:
            graph.capture_end()
        times = []
        for _ in range(REPLAYS):
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended))
    torch.cuda.current_stream().wait_stream(stream)
    return sorted(times)[REPLAYS // 2] / turns


def _read(file: Path) -> dict[Shape, Tile]:
    """What was chosen before; nothing where there is no such file, or none that can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        kinds: dict[str, Callable[..., Tile]] = {"vector": VectorTile, "split": SplitTile, "library": lambda: None}
        return {
            Shape(**entry["shape"]): kinds[entry["kernel"]](**entry["tile"]) for entry in json.loads(file.read_text())
        }
    return {}


def _write(file: Path, tiles: dict[Shape, Tile]) -> None:
    """In one piece, for others may read it. A folder that cannot be written to costs the next start a second or two."""
    entries = [
        {
            "shape": asdict(shape),
            "kernel": "library" if tile is None else "vector" if isinstance(tile, VectorTile) else "split",
            "tile": {} if tile is None else asdict(tile),
        }
        for shape, tile in tiles.items()
    ]
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_text(json.dumps(entries, indent=1))
        part.replace(file)

"""Unquantized linear layers: whose kernel multiplies which shape. What is fastest here is measured, once a card.

Up to MOST_ROWS rows a product is bound by reading its weight, and kernels of our own compete with the library's; above,
the library's first guess competes with its others. Choices are made when a shape is first met, for decodes that is
during warm-up, and are kept on disk beside the compiled kernels. A shape first met inside a capture goes to the
library, which needs no measuring.

Legend: M rows of x, N output features, K input features.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.nn.functional import linear as library

from mainspring.backends.cuda.cublas import Algorithm, Cublas, CublasError
from mainspring.backends.triton.launch import Overlap
from mainspring.backends.triton.linear import SplitTile, VectorTile, split, vector
from mainspring.core.backend import PackedLinear

_log = logging.getLogger(__name__)

MOST_ROWS = 32
"""For which kernels of our own are tried."""
MANY_ROWS = 256
"""From here on classes grow, and a measurement takes as long as a step."""
FEWEST_WEIGHTS = 1 << 19
"""Of a layer that is worth a measurement."""
MOST_TILES = 1 << 16
"""Of one product; tiles have 32 output features and more."""
CACHED_BYTES = 200 << 20
"""What a measurement reads before it comes back to the same weight: several times the second-level cache."""
REPLAYS, FEW_REPLAYS = 7, 3
GUESSES, FEW_GUESSES = 16, 6
"""Of the library, that are tried: up to MANY_ROWS rows, and above."""

VECTOR_TILES = tuple(
    VectorTile(*sizes) for sizes in ((4, 1024, 4), (2, 1024, 2), (2, 2048, 4), (8, 512, 4), (16, 256, 4))
)
SPLIT_TILES = (
    SplitTile(64, 256, 1, 4, 3, ahead=256), SplitTile(64, 128, 1, 4, 4, ahead=256),
    SplitTile(32, 256, 1, 4, 3, ahead=256), SplitTile(128, 128, 1, 8, 3, ahead=256),
)  # fmt: skip
"""The tiles that were fastest for some shape of an 8B or a 0.6B model on an H100; how K is split follows from N."""

Tile = VectorTile | SplitTile | Algorithm | None
"""None: the library, as torch calls it."""
KERNELS: dict[type[object], str] = {
    VectorTile: "vector", SplitTile: "split", Algorithm: "cublas", type(None): "library",
}  # fmt: skip
"""Their names on disk."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a choice depends on."""

    rows: int
    """The most rows that are treated alike, as `most_rows` has it."""
    size: int
    depth: int
    dtype: str
    bias: bool


def most_rows(rows: int) -> int:
    """Of the class that so many rows are in."""
    for most in (1, 16, MOST_ROWS):
        if rows <= most:
            return most
    return triton.cdiv(rows, 32) * 32 if rows <= MANY_ROWS else triton.next_power_of_2(rows)


def classes(rows: int) -> Iterator[int]:
    """What to measure when so many are first met. Warm-up's largest step stands for all that have many rows, so that
    nobody waits for a measurement later."""
    yield rows
    while (rows := rows // 2) > MANY_ROWS:
        yield rows


class Linears:
    """The linear layers of one device. Without `cublas`, what is no kernel of ours is torch's to choose."""

    def __init__(
        self, overlap: Overlap, processors: int, card: str, folder: Path, *, cublas: Cublas | None = None
    ) -> None:
        self._overlap = overlap
        self._processors = processors
        self._cublas = cublas
        versions = f"torch-{torch.__version__}-triton-{triton.__version__}-cublas-{cublas.version if cublas else 0}"
        self._file = folder / f"linear-{card.replace(' ', '-')}-{versions}"
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
        if not rows or weight_NK.dtype == torch.float32 or weight_NK.numel() < FEWEST_WEIGHTS:
            return library(x_MK, weight_NK, bias_N)
        shape = Shape(most_rows(rows), *weight_NK.shape, str(weight_NK.dtype), bias_N is not None)
        if shape not in self._tiles:
            if torch.cuda.is_current_stream_capturing():
                return library(x_MK, weight_NK, bias_N)
            self._measure(shape, x_MK, packed)
        return self._run(self._tiles[shape], x_MK, weight_NK, bias_N)

    def _run(self, tile: Tile, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        if tile is None:
            return library(x_MK, weight_NK, bias_N)
        x_MK = x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()
        if isinstance(tile, Algorithm):
            return self._guessed(tile, x_MK, weight_NK, bias_N)
        if isinstance(tile, VectorTile):
            return vector(x_MK, weight_NK, bias_N, tile, overlap=self._overlap)
        if self._arrived is None:
            # Kept for ever: captured steps hold its address. One step runs at a time, so all layers share it.
            self._arrived = torch.zeros(MOST_TILES, dtype=torch.int32, device=x_MK.device)
        return split(x_MK, weight_NK, bias_N, tile, arrived=self._arrived, overlap=self._overlap)

    def _guessed(self, algorithm: Algorithm, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        """What was measured for the most rows of a class is refused for some fewer, now and then."""
        if self._cublas is not None:
            with suppress(CublasError):
                return self._cublas.product(x_MK, weight_NK, bias_N, algorithm)
        return library(x_MK, weight_NK, bias_N)

    def _measure(self, met: Shape, x_MK: Tensor, packed: PackedLinear) -> None:
        """Where memory does not suffice to measure, the library serves until the next start."""
        for rows in classes(met.rows):
            shape = replace(met, rows=rows)
            if shape in self._tiles:
                continue
            # A capture, this measurement's or a step's behind it, can take no memory back that torch has in reserve.
            torch.cuda.empty_cache()
            try:
                self._tiles[shape] = self._fastest(shape, x_MK, packed)
            except torch.OutOfMemoryError as error:
                _log.warning("products of %d rows are not measured: %s", rows, error)
                self._tiles[shape] = None
            else:
                _write(self._file, self._tiles)
            torch.cuda.empty_cache()

    def _fastest(self, shape: Shape, x_MK: Tensor, packed: PackedLinear) -> Tile:
        weights = self._weights[(shape.size, shape.depth, packed.data.dtype)] or [packed.data]
        # A class is measured at its largest, with what a caller happened to bring in some of the rows.
        x_MK = x_MK.repeat(triton.cdiv(shape.rows, x_MK.shape[0]), 1)[: shape.rows].contiguous()
        replays = REPLAYS if shape.rows <= MANY_ROWS else FEW_REPLAYS

        def seconds(tile: Tile) -> float:
            return _seconds(lambda weight: self._run(tile, x_MK, weight, packed.bias), weights, shape.rows, replays)

        return min([*candidates(shape, self._processors), *self._guesses(x_MK, packed)], key=seconds)

    def _guesses(self, x_MK: Tensor, packed: PackedLinear) -> list[Algorithm]:
        """None for sizes that leave rows unaligned: these are rare, and the library's own care for them suffices."""
        rows, (size, depth) = x_MK.shape[0], packed.data.shape
        if self._cublas is None or rows == 1 or size % 8 or depth % 8:
            return []
        most = GUESSES if rows <= MANY_ROWS else FEW_GUESSES
        with suppress(CublasError):
            return self._cublas.algorithms(x_MK, packed.data, packed.bias is not None, most)
        return []


def candidates(shape: Shape, processors: int) -> Iterator[Tile]:
    """The library first, which wins what is equally fast."""
    yield None
    if shape.rows > MOST_ROWS:
        return
    if shape.rows == 1:
        yield from VECTOR_TILES
        return
    for tile in SPLIT_TILES:
        tiles = triton.cdiv(shape.size, tile.rows)
        once = 1 << max(0, (processors // tiles).bit_length() - 1)
        for splits in (once, 2 * once):
            if shape.depth >= splits * tile.columns and (splits == once or tiles * splits <= 4 * processors):
                yield SplitTile(tile.rows, tile.columns, splits, tile.warps, tile.stages, tile.ahead)


def _seconds(product: Callable[[Tensor], Tensor], weights: list[Tensor], rows: int, replays: int) -> float:
    """Of one product inside a graph, weights taking turns; the median of several replays."""
    each = weights[0].numel() * weights[0].element_size()
    turns = max(8, CACHED_BYTES // each // len(weights) * len(weights)) if rows <= MANY_ROWS else 2
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
        for _ in range(replays):
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended))
    torch.cuda.current_stream().wait_stream(stream)
    return sorted(times)[replays // 2] / turns


def _read(file: Path) -> dict[Shape, Tile]:
    """What was chosen before; nothing where there is no such file, or none that can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        kinds: dict[str, Callable[..., Tile]] = {
            "vector": VectorTile, "split": SplitTile, "cublas": lambda words: Algorithm(tuple(words)),
            "library": lambda: None,
        }  # fmt: skip
        return {
            Shape(**entry["shape"]): kinds[entry["kernel"]](**entry["tile"]) for entry in json.loads(file.read_text())
        }
    return {}


def _write(file: Path, tiles: dict[Shape, Tile]) -> None:
    """In one piece, for others may read it. A folder that cannot be written to costs the next start a second or two."""
    entries = [
        {
            "shape": asdict(shape),
            "kernel": KERNELS[type(tile)],
            "tile": {} if tile is None else asdict(tile),
        }
        for shape, tile in tiles.items()
    ]
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_text(json.dumps(entries, indent=1))
        part.replace(file)

"""Speed of quantized linear layers on one GPU, each beside its floor, bfloat16 and torch's own product of the same.

    python benchmarks/cuda/quantized.py [--case "int4 g128" ...] [--sweep] [--serve int4] [--json FILE]

`--sweep` tries tiles; `--serve` measures decode steps of the whole model under one of `--quantize`'s names.

Shapes are those of Llama-3.1-8B on random data; figures as in `kernels.py`: the median of replays of a graph that runs
a layer several times over different memory. A floor is the bytes that must be read over the card's measured bandwidth,
or the operations over its measured rate, whichever is longer. Errors are against float64 of the dequantized weight.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from mainspring.backends.cuda.codes import reader_of
from mainspring.backends.cuda.few_rows import FewRows, FewTile, tile_of
from mainspring.backends.cuda.overlap import overlap_of
from mainspring.backends.cuda.runtime_compiler import Compiler
from mainspring.backends.torch_gpu.quantization import CodedWeights, Quantized, ScaledWeights
from mainspring.backends.torch_gpu.quantized_tiles import scaled_tile, word_tile
from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.triton.scaled import ScaledTile, scaled_linear
from mainspring.backends.triton.words import WordTile, word_linear
from mainspring.core.backend import PackedLinear, WeightScheme
from mainspring.core.ops.quantized import dequantize, quantize_weight

READ_BYTES_PER_SECOND = 3.0e12
OPERATIONS_PER_SECOND = {2: 771e12, 1: 1542e12}
"""An H100 80GB HBM3, measured for operands of two bytes; of one byte, twice as many."""
LAYERS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
COLD_BYTES = 200 << 20
"""What is read before memory comes round again: several times the second-level cache."""
REPLAYS = 7
INT4 = WeightScheme(weight="int4", bits=4, group_size=128)
INT4_ZEROS = WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False)
INT8 = WeightScheme(weight="int8", bits=8)
INT8_BOTH = replace(INT8, activation="int8", activation_granularity="token")
FLOAT8 = WeightScheme(weight="float8_e4m3fn", bits=8)
FLOAT8_BOTH = replace(FLOAT8, activation="float8_e4m3fn", activation_granularity="token")
FLOAT8_BLOCKS = replace(FLOAT8_BOTH, activation_granularity="block", group_size=128, group_rows=128)
NF4 = WeightScheme(weight="nf4", bits=4, group_size=64)
MXFP4 = WeightScheme(weight="mxfp4", bits=4, group_size=32)
CASES: dict[str, tuple[WeightScheme, tuple[int, ...]]] = {
    "int4 g128": (INT4, (1, 2, 4, 8, 16, 64, 256)),
    "int4 g32 zeros": (INT4_ZEROS, (1, 16)),
    "int8": (INT8, (1, 16)),
    "float8": (FLOAT8, (1, 16)),
    "nf4": (NF4, (1,)),
    "mxfp4": (MXFP4, (1,)),
    "int8 both": (INT8_BOTH, (1, 64, 4096)),
    "float8 both": (FLOAT8_BOTH, (1, 16, 64, 256, 1024, 4096)),
    "float8 blocks": (FLOAT8_BLOCKS, (1, 64, 4096)),
}
"""Name to scheme and rows."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One shape under one scheme, in as many copies as are cold when their turn comes."""

    copies: list[PackedLinear]
    dequantized: Tensor
    bytes: int


def seconds(call: Callable[[int], object], turns: int) -> float:
    """Of one call among `turns` in a graph; calls get their number."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(0)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for turn in range(turns):
                call(turn)
    times = []
    for _ in range(REPLAYS):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / turns / 1e3)
    return statistics.median(times)


def held(packed: PackedLinear) -> int:
    """Bytes of a layer's weight."""
    match packed.data:
        case CodedWeights(words):
            return words.bytes()
        case ScaledWeights(weight):
            return weight.weight.numel() + 4 * weight.scales.numel()
    return packed.data.weight.numel() * packed.data.weight.element_size()


def copied(packed: PackedLinear) -> PackedLinear:
    """The same in other memory."""
    data = packed.data
    if isinstance(data, CodedWeights):
        words = data.words
        zeros = None if words.zeros is None else words.zeros.clone()
        words = replace(words, words=words.words.clone(), scales=words.scales.clone(), zeros=zeros)
        return replace(packed, data=replace(data, words=words))
    weight = replace(data.weight, weight=data.weight.weight.clone(), scales=data.weight.scales.clone())
    return replace(packed, data=replace(data, weight=weight))


def layer(quantized: Quantized, scheme: WeightScheme, size: int, depth: int, *, most_copies: int = 99) -> Layer:
    """Random, rounded to nearest."""
    weight = torch.randn(size, depth, device="cuda") * depth**-0.5
    tensors = quantize_weight(weight, scheme)
    first = quantized.pack(scheme, tensors)
    copies = [first, *(copied(first) for _ in range(min(most_copies, COLD_BYTES // held(first))))]
    return Layer(copies, dequantize(scheme, tensors), held(first))


def floor(bytes_read: int, rows: int, size: int, depth: int, width: int) -> float:
    """Seconds that the card needs at least."""
    traffic = bytes_read + 2 * rows * (size + depth)
    return max(traffic / READ_BYTES_PER_SECOND, 2 * rows * size * depth / OPERATIONS_PER_SECOND[width])


def normal(rows: int, depth: int) -> Tensor:
    return torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)


def library(rows: int, size: int, depth: int) -> float:
    """Seconds of cuBLAS in bfloat16, as torch calls it."""
    x = normal(rows, depth)
    weights = [normal(size, depth) for _ in range(1 + COLD_BYTES // (2 * size * depth))]
    return seconds(
        lambda turn: torch.nn.functional.linear(x, weights[turn % len(weights)]), turns_of(rows, len(weights))
    )


def library_float8(rows: int, made: Layer) -> float:
    """Seconds of torch._scaled_mm with a scale a row and an output feature, activations already rounded."""
    data = made.copies[0].data
    x = normal(rows, data.weight.weight.shape[1]).to(torch.float8_e4m3fn)
    scale_a, scale_b = torch.ones(rows, 1, device="cuda"), data.weight.scales.t().contiguous()
    return seconds(
        lambda turn: torch._scaled_mm(
            x, made.copies[turn % len(made.copies)].data.weight.weight.t(), scale_a, scale_b,
            out_dtype=torch.bfloat16, use_fast_accum=True,
        ),
        turns_of(rows, len(made.copies)),
    )  # fmt: skip


def library_int4(rows: int, size: int, depth: int) -> float:
    """Seconds of torch's weight-only int4 ("tinygemm") in groups of 128."""
    most = 1 + COLD_BYTES // (size * depth // 2)
    codes = [torch.randint(0, 256, (size, depth // 2), dtype=torch.uint8, device="cuda") for _ in range(most)]
    weights = [torch.ops.aten._convert_weight_to_int4pack(code, 8) for code in codes]
    scales_and_zeros = torch.rand(depth // 128, size, 2, device="cuda", dtype=torch.bfloat16)
    x = normal(rows, depth)
    return seconds(
        lambda turn: torch.ops.aten._weight_int4pack_mm(x, weights[turn % most], 128, scales_and_zeros),
        turns_of(rows, most),
    )


def library_quantized(scheme: WeightScheme, rows: int, made: Layer) -> float | None:
    """Seconds of torch's own product of the scheme, where it has one."""
    if scheme == FLOAT8_BOTH:
        return library_float8(rows, made)
    return library_int4(rows, *made.dequantized.shape) if scheme == INT4 else None


def turns_of(rows: int, copies: int) -> int:
    return max(copies, 16 if rows <= 256 else 4)


def measure(quantized: Quantized, cases: Sequence[str]) -> Iterator[dict[str, object]]:
    """A row of the table each."""
    beside: dict[tuple[str, int], float] = {}
    for case in cases:
        scheme, row_counts = CASES[case]
        for name, (size, depth) in LAYERS.items():
            made = layer(quantized, scheme, size, depth)
            for rows in row_counts:
                x = normal(rows, depth)
                wanted = x[:64].double() @ made.dequantized.double().t()
                found = quantized(x, made.copies[0])[:64].double()
                ours = seconds(
                    lambda turn, x=x, made=made: quantized(x, made.copies[turn % len(made.copies)]),
                    turns_of(rows, len(made.copies)),
                )
                if (name, rows) not in beside:
                    beside[name, rows] = library(rows, size, depth)
                width = 1 if scheme.activation else 2
                torchs = library_quantized(scheme, rows, made)
                yield {
                    "case": case, "layer": name, "rows": rows, "error": float((found - wanted).norm() / wanted.norm()),
                    "ours_us": 1e6 * ours, "bf16_us": 1e6 * beside[name, rows],
                    "floor_us": 1e6 * floor(made.bytes, rows, size, depth, width),
                    "gb_per_s": made.bytes / ours / 1e9, "tflops": 2 * rows * size * depth / ours / 1e12,
                    "torch_us": None if torchs is None else 1e6 * torchs,
                }  # fmt: skip
            del made
            torch.cuda.empty_cache()


def tiles(rows: int, size: int, depth: int, processors: int) -> Iterator[WordTile]:
    """Candidates of a sweep."""
    strips, blocks = -(-size // 64), -(-depth // 128)
    padded = max(16, 1 << (rows - 1).bit_length())
    shapes = (
        ((1, 4, 3), (1, 4, 4), (1, 4, 6), (1, 4, 8), (2, 4, 4), (2, 8, 4), (2, 8, 6))
        if rows <= 64 else ((1, 4, 4), (2, 8, 3), (2, 8, 4), (2, 4, 3))
    )  # fmt: skip
    row_tiles = {padded} if rows <= 64 else {128, 256}
    for (number, warps, stages), row_tile in product(shapes, row_tiles):
        for each_processor in (1, 2, 3, 4, 6, 8) if rows <= 64 else (1, 2, 3):
            splits = max(1, each_processor * processors // (-(-strips // number) * -(-rows // row_tile)))
            if blocks // splits >= 2:
                for ahead in (4, 0) if rows <= 16 else (0,):
                    yield WordTile(number, row_tile, splits, warps, stages, ahead)


SCALED_TILES = tuple(
    ScaledTile(*sizes)
    for sizes in (
        (128, 128, 128, 1, 8, 4), (128, 256, 128, 1, 8, 3), (256, 128, 128, 1, 8, 3), (128, 128, 128, 1, 4, 4),
        (128, 256, 64, 1, 8, 4), (128, 256, 128, 1, 8, 4), (64, 256, 128, 1, 4, 4), (128, 64, 128, 1, 4, 4),
    )
)  # fmt: skip


def compile_part(quantized: Quantized, part: int, parts: int) -> None:
    """Launches each part-th kernel once, so that processes side by side fill the compiler's cache."""
    tuning, number = quantized.tuning, 0
    for case, (scheme, row_counts) in CASES.items():
        if (number := number + 1) % parts != part:
            continue
        for size, depth in ((6144, 4096), (28672, 4096)):
            packed = layer(quantized, scheme, size, depth, most_copies=0).copies[0]
            for rows in row_counts:
                quantized(normal(rows, depth), packed)
        print(case, "compiled", flush=True)
    size, depth = LAYERS["qkv"]
    words = layer(quantized, INT4, size, depth, most_copies=0).copies[0].data.words
    seen = set()
    for rows in (1, 16, 64, 256):
        for tile in tiles(rows, size, depth, tuning.processors):
            for splits in (1, 2):
                tile = replace(tile, splits=splits)
                if tile in seen or seen.add(tile) or (number := number + 1) % parts != part:
                    continue
                with suppress(OutOfResources):
                    word_linear(
                        normal(rows, depth), words, None, tile, arrived=quantized.arrived(words.words.device),
                        overlap=tuning.overlap, reader=tuning.reader,
                    )  # fmt: skip
    for scheme, tile in product((INT8_BOTH, FLOAT8_BOTH, FLOAT8_BLOCKS), SCALED_TILES):
        if (number := number + 1) % parts == part:
            with suppress(OutOfResources):
                try_scaled(quantized, scheme, tile)
    torch.cuda.synchronize()


def try_scaled(quantized: Quantized, scheme: WeightScheme, tile: ScaledTile) -> float:
    """Seconds of the product alone at 4096 rows of qkv."""
    made = layer(quantized, scheme, *LAYERS["qkv"], most_copies=0).copies[0].data
    x, scales = quantized.round(normal(4096, 4096), scheme)
    return seconds(
        lambda turn: scaled_linear(
            x, scales, made.weight, None, tile, out_dtype=torch.bfloat16, arrived=quantized.arrived(x.device)
        ),
        4,
    )


FEW_TILES = tuple(FewTile(*sizes) for sizes in product((4, 8, 16), (1, 2, 4), (False, True)))


PROCESSORS = 132


def sweep_few(few: FewRows) -> None:
    """The fastest tiles of the kernel for few rows."""
    for scheme, (name, (size, depth)) in product((INT4, INT4_ZEROS), LAYERS.items()):
        made = layer(Quantized(Tuning(1)), scheme, size, depth)
        for rows in (1, 2, 4):
            x, results = normal(rows, depth), {}
            for tile in FEW_TILES:

                def run(turn: int, x: Tensor = x, tile: FewTile = tile, made: Layer = made) -> Tensor:
                    return few(x, made.copies[turn % len(made.copies)].data.words, None, tile)

                results[tile] = seconds(run, turns_of(rows, len(made.copies)))
            chosen = results[tile_of(made.copies[0].data.words, PROCESSORS)]
            least = 1e6 * floor(made.bytes, rows, size, depth, 2)
            print(f"g{scheme.group_size:<4} {name:8} {rows:3} floor {least:6.2f} chosen {1e6 * chosen:6.2f}", end="")
            for tile in sorted(results, key=lambda tile: results[tile])[:4]:
                print(f"  {1e6 * results[tile]:6.2f} ({tile.warps}, {tile.depth}, {int(tile.ahead)})", end="")
            print(flush=True)
        del made
        torch.cuda.empty_cache()


def sweep(quantized: Quantized) -> None:
    """The fastest tiles of each shape."""
    tuning = quantized.tuning
    if tuning.few_rows is not None:
        sweep_few(tuning.few_rows)
    for name, (size, depth) in LAYERS.items():
        made = layer(quantized, INT4, size, depth)
        for rows in (1, 16, 64, 256):
            x, results = normal(rows, depth), {}
            candidates = list(dict.fromkeys(tiles(rows, size, depth, tuning.processors)))
            for number, tile in enumerate(candidates):

                def run(turn: int, x: Tensor = x, tile: WordTile = tile, made: Layer = made) -> Tensor:
                    return word_linear(
                        x, made.copies[turn % len(made.copies)].data.words, None, tile,
                        arrived=quantized.arrived(x.device), overlap=tuning.overlap, reader=tuning.reader,
                    )  # fmt: skip

                with suppress(OutOfResources):
                    results[number] = seconds(run, turns_of(rows, len(made.copies)))
            for number in sorted(results, key=lambda key: results[key])[:5]:
                print(f"{name:8} {rows:4} {1e6 * results[number]:8.2f} us  {candidates[number]}", flush=True)
        del made
        torch.cuda.empty_cache()


SERVED = {"none": (None, None), "int4": ("int4", None), "int4 g128": ("int4", INT4), "int8": ("int8", None)}
"""Name to `--quantize`, and the scheme that takes the place of what it says."""


def serve(name: str) -> None:
    """Decode steps of the whole model."""
    from shapes import MODELS, decode_step, serving

    quantize, scheme = SERVED[name]
    served, start = serving(MODELS["8b"], quantize=quantize, scheme=scheme, sequences=16)
    print(f"{name}: start {start:.1f} s", flush=True)
    for rows in (1, 8, 16):
        print(f"{name}: decode step, batch {rows}: {decode_step(served, rows)[0]:.3f} ms", flush=True)
    served.executor.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--compile", type=int, nargs=2, metavar=("PART", "PARTS"))
    parser.add_argument("--serve", choices=SERVED)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    capability, card = torch.cuda.get_device_capability(), torch.cuda.get_device_properties(0)
    quantized = Quantized(
        Tuning(
            card.multi_processor_count, overlap=overlap_of(capability), reader=reader_of(capability), float8=True,
            few_rows=FewRows(Compiler(str(torch.version.cuda).partition(".")[0]), capability, PROCESSORS),
            float8_library_rows=32, words=word_tile, scaled=scaled_tile,
        )
    )  # fmt: skip
    print(f"{card.name}, torch {torch.__version__}")
    if given.compile is not None:
        compile_part(quantized, *given.compile)
        return
    if given.serve is not None:
        serve(given.serve)
        return
    if given.sweep:
        sweep(quantized)
        return
    found = []
    print("case           layer     rows   error     ours    floor     bf16    torch   GB/s TFLOP/s x bf16")
    for line in measure(quantized, given.case or list(CASES)):
        found.append(line)
        peer = line["torch_us"]
        print(
            f"{line['case']:14} {line['layer']:8} {line['rows']:5} {line['error']:.5f} {line['ours_us']:8.2f} "
            f"{line['floor_us']:8.2f} {line['bf16_us']:8.2f} {'' if peer is None else f'{peer:.2f}':>9} "
            f"{line['gb_per_s']:6.0f} {line['tflops']:7.1f} {line['bf16_us'] / line['ours_us']:6.2f}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

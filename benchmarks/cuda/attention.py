"""Speed of attention on one GPU over prompts and contexts, beside torch's providers and the card's ceilings.

    python benchmarks/cuda/attention.py [--json FILE]

32 query heads on 8, of dimension 128, in bfloat16, on random data. Ours reads a paged cache whose blocks lie in any
order, and a decode writes the token's own key and value on the way; torch's providers read one dense tensor and write
nothing, which is what they like best. Results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from kernels import COLD_BYTES, OPERATIONS_PER_SECOND, READ_BYTES_PER_SECOND, normal, seconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mainspring.backends.cuda.overlap import overlap_of
from mainspring.backends.cuda.tiles import prefill_tile
from mainspring.backends.triton.attention import Cache, Fresh, Rows, Scoring, decode, num_splits, ragged
from mainspring.backends.triton.launch import Overlap

PROMPTS = (1024, 2048, 4096, 8192, 16384, 32768)
BATCHES = (1, 8, 32, 128, 256)
CONTEXTS = (1024, 4096, 16384, 65536)
MOST_CACHE_BYTES = 17 << 30
"""Of one layer: more than that leaves no room for a peer's copy of it."""
HEADS, KV_HEADS, HEAD_DIM, BLOCK = 32, 8, 128, 32
TOKEN_BYTES = 4 * KV_HEADS * HEAD_DIM
PEERS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
TOLERANCE = 2e-2
"""Of the largest number in a result: two providers round weights and sums in different places."""

Row = tuple[str, dict[str, float]]


def caches_of(rows: int, context: int, count: int) -> tuple[list[Cache], Rows]:
    """So many caches of the same sequences, with blocks in any order."""
    blocks = -(-context // BLOCK)
    shape = (rows * blocks + 1, BLOCK, KV_HEADS, HEAD_DIM)
    table = (torch.randperm(rows * blocks, device="cuda") + 1).int().view(rows, blocks)
    length = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    start = torch.arange(rows + 1, dtype=torch.int32, device="cuda")
    return [Cache(normal(*shape), normal(*shape)) for _ in range(count)], Rows(start, length, table)


def dense(cache: Tensor, table: Tensor, context: int) -> Tensor:
    """[R, K, context, D] of the paged [num_blocks, S, K, D]."""
    rows = len(table)
    return cache[table.long()].view(rows, -1, KV_HEADS, HEAD_DIM)[:, :context].transpose(1, 2).contiguous()


def compare(ours: Tensor, peers: Tensor, what: str) -> None:
    """Raises `SystemExit` where two results are not the same attention."""
    error = float((peers.float() - ours.float()).abs().max() / peers.float().abs().max())
    if not error < TOLERANCE:
        raise SystemExit(f"{what}: ours and torch's differ by {error:.3g} of the largest result")


def prefills() -> Iterator[Row]:
    """(tokens of one prompt with nothing before it, TFLOP/s and microseconds of each provider)."""
    for tokens in PROMPTS:
        (cache,), step = caches_of(1, tokens, 1)
        step = Rows(torch.tensor([0, tokens], dtype=torch.int32, device="cuda"), step.kv_length, step.block_table)
        q, out = normal(tokens, HEADS, HEAD_DIM), normal(tokens, HEADS, HEAD_DIM)
        tile = prefill_tile(tokens, HEAD_DIM, HEADS // KV_HEADS, q.dtype)
        keys, values = (dense(x, step.block_table, tokens) for x in (cache.keys, cache.values))
        queries = q.transpose(0, 1)[None].contiguous()

        def ours(q=q, cache=cache, step=step, out=out, tile=tile) -> Tensor:  # type: ignore[no-untyped-def]
            ragged(q, cache, step, Scoring(HEAD_DIM**-0.5), out, tile=tile)
            return out

        def peer(queries=queries, keys=keys, values=values) -> Tensor:  # type: ignore[no-untyped-def]
            found: Tensor = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
            return found[0].transpose(0, 1)

        compare(ours(), peer(), f"prefill of {tokens}")
        operations = 2 * tokens**2 * HEADS * HEAD_DIM
        floor = operations / OPERATIONS_PER_SECOND
        yield f"prefill of {tokens}", _figures(ours, peer, 4, floor, operations / 1e12, "TFLOP/s")


def decodes(overlap: Overlap, processors: int) -> Iterator[Row]:
    """(rows and context, TB/s and microseconds of each provider)."""
    for context in CONTEXTS:
        for rows in BATCHES:
            size = rows * context * TOKEN_BYTES
            if size <= MOST_CACHE_BYTES:
                yield f"decode, {rows} rows of {context}", _decode(rows, context, overlap, processors)
                torch.cuda.empty_cache()


def _decode(rows: int, context: int, overlap: Overlap, processors: int) -> dict[str, float]:
    size = rows * context * TOKEN_BYTES
    caches, step = caches_of(rows, context, 1 + min(7, COLD_BYTES // size))
    q, k, out = normal(rows, HEADS, HEAD_DIM), normal(rows, KV_HEADS, HEAD_DIM), normal(rows, HEADS, HEAD_DIM)
    slot = step.block_table[:, -1].long() * BLOCK + (context - 1) % BLOCK
    splits = num_splits(rows, KV_HEADS, processors)
    place = itertools.cycle(range(len(caches)))

    def ours() -> Tensor:
        fresh = Fresh(k, k, slot)
        cache = caches[next(place)]
        decode(q, cache, step, Scoring(HEAD_DIM**-0.5), out, splits=splits, fresh=fresh, overlap=overlap)
        return out

    for _ in caches:
        ours()  # writes each token's key and value, which the peers' copies must hold
    laid_out = [
        (dense(cache.keys, step.block_table, context), dense(cache.values, step.block_table, context))
        for cache in caches
    ]
    queries = q[:, :, None]

    def peer() -> Tensor:
        keys, values = laid_out[next(place)]
        found: Tensor = scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        return found[:, :, 0]

    expected = peer()
    for _ in caches:
        found = ours()  # the last of them over the cache that the peer read
    compare(found, expected, f"{rows} rows of {context}")
    return _figures(ours, peer, max(4, len(caches)), size / READ_BYTES_PER_SECOND, size / 1e12, "TB/s")


def _figures(
    ours: Callable[[], Tensor], peer: Callable[[], Tensor], turns: int, floor: float, work: float, unit: str
) -> dict[str, float]:
    took = seconds(lambda _: ours(), turns)
    found = {"floor us": 1e6 * floor, "ours us": 1e6 * took, f"ours {unit}": work / took}
    for name, backend in PEERS.items():
        try:
            with sdpa_kernel(backend):
                took = seconds(lambda _: peer(), turns)
        except RuntimeError:  # it does not take this shape
            continue
        found |= {f"{name} us": 1e6 * took, f"{name} {unit}": work / took}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    card = torch.cuda.get_device_properties(0)
    print(f"{card.name}, torch {torch.__version__}")
    results = {}
    for part in (prefills(), decodes(overlap_of((card.major, card.minor)), card.multi_processor_count)):
        for what, found in part:
            results[what] = found
            print(what.ljust(28), *(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

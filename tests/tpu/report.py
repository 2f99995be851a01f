"""Compiles our programs for real TPUs with libtpu, on a host without one, and writes what the compiler said.

python -m tests.tpu.report docs/verified/tpu.md
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp

from mainspring.backends.tpu.pallas_attention import paged_decode
from mainspring.core.config import EngineConfig
from tests.tpu.compiler import TARGETS, Compiled, compile_jax, compile_stablehlo
from tests.tpu.programs import record

LAYERS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
"""Layers as those of Llama 3.2 1B, two of them: the compiler's answer for more is the same, many times over."""
WIDE = {**LAYERS, "num_attention_heads": 16, "head_dim": 128}
"""Heads of 128, as the kernel wants them."""
LADDERS = {"decode_rows": (8,), "prefill_tokens": (128,), "blocks": (32,)}
SIZES = {"max_length": 1024, "max_sequences": 8, "max_batch_tokens": 128, "num_blocks": 512, "block_size": 32}

KERNELS = {
    "8 rows of 2,048 tokens, 32/8 heads of 128, bfloat16": (8, 64, 8, 4, 128, jnp.bfloat16),
    "64 rows of 8,192 tokens, 32/8 heads of 128, bfloat16": (64, 256, 8, 4, 128, jnp.bfloat16),
    "8 rows of 2,048 tokens, 9/3 heads of 64, bfloat16": (8, 64, 3, 3, 64, jnp.bfloat16),
    "8 rows of 2,048 tokens, 32/8 heads of 128, float32": (8, 64, 8, 4, 128, jnp.float32),
}
"""Rows, blocks a row, kv heads, query heads of each, head dim, dtype; blocks of 32 tokens, 2,048 of them."""
BLOCKS, BLOCK_SIZE = 2048, 32

Line = tuple[str, Compiled]


def programs(folder: Path) -> Iterator[Line]:
    """The prefill, and the decode with and without the kernel."""
    config = EngineConfig(model=str(folder), backend="tpu", dtype="bfloat16", load_format="dummy", **SIZES)
    for kernel, layers in ((False, LAYERS), (True, WIDE)):
        (folder / "config.json").write_text(json.dumps(layers))
        for program in record(config, LADDERS, kernel=kernel):
            if kernel and not program.decode:
                continue
            kind = ("decode" if program.decode else "prefill") + ", heads of 128, Pallas kernel" * kernel
            bucket = program.bucket
            name = f"{kind}: {bucket.tokens} tokens, {bucket.sequences} rows, {bucket.blocks} blocks a row"
            for target in TARGETS:
                yield name, compile_stablehlo(program.stablehlo, target)


def kernels() -> Iterator[Line]:
    """The Pallas kernel alone."""
    for name, (rows, blocks, heads, group, dim, dtype) in KERNELS.items():
        cache = ((BLOCKS, heads, BLOCK_SIZE, dim), dtype)
        shapes = [((rows * blocks,), jnp.int32), ((rows,), jnp.int32), ((rows, heads, group, dim), dtype), cache, cache]
        for target in TARGETS:
            yield name, compile_jax(paged_decode, shapes, target)


HEAD = "| program | chip | compiled in | arguments | temporary | code | flops | bytes accessed |\n"
HEAD += "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"


def table(lines: Iterator[Line]) -> str:
    """Markdown; each line also goes to the terminal when it is known."""
    rows = [HEAD]
    for name, told in lines:
        parts = told.arguments, told.temporary, told.code
        sizes = " | ".join(f"{size / 2**20:.1f} MiB" for size in parts)
        accessed = f"{told.accessed / 2**20:.1f} MiB" if told.accessed else "not told"
        flops = f"{told.flops / 1e9:.2f} G" if told.flops > 0 else "not told"
        rows.append(f"| {name} | {told.target} | {told.seconds:.1f} s | {sizes} | {flops} | {accessed} |\n")
        sys.stdout.write(rows[-1])
        sys.stdout.flush()
    return "".join(rows)


TEXT = """# How far the TPU backend is verified

Written by `make verify-tpu`, which first runs `tests/tpu`: the conformance kit, whole generations and the count of
compilations on XLA's host device, and the kernel's numbers in Pallas's interpreter. No TPU took part: below is what
libtpu's compiler, the one that runs on a TPU VM, said of the programs that the executor would run there. Seconds are
those of two shared cores.

{versions}

## The executor's programs

Two layers shaped as those of Llama 3.2 1B (32/8 heads of 64; with the kernel 16/8 of 128), a vocabulary of 32,000,
bfloat16, 512 KV blocks of 32 tokens.

{programs}
## The kernel for decodes alone

Blocks of 32 tokens, 2,048 of them. Heads of 64 fill half a vector register, and for v6e the compiler copies the whole
cache into a padded layout before each call (its temporary memory says so). The backend therefore takes the kernel for
heads of 128, 256, ... alone.

{kernels}"""


def main(path: Path) -> None:
    """Compiles everything and writes the report; whatever does not compile raises."""
    names = ("torch", "torch_xla", "jax", "libtpu")
    versions = ", ".join(f"{name} {version(name)}" for name in names) + "."
    with tempfile.TemporaryDirectory() as folder:
        text = TEXT.format(versions=versions, programs=table(programs(Path(folder))), kernels=table(kernels()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

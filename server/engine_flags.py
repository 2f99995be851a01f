"""Flags that end in an `EngineConfig`, for every command that loads a model; TGI's name where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mainspring.core.config import EngineConfig

Command = TypeVar("Command", bound=Callable[..., Any])
POSITIVE = click.IntRange(min=1)


def flag(*names: str, envvar: str | None = None, **options: Any) -> Callable[[Command], Command]:
    """A click option that also reads the environment variables named like its long names, the first one first."""
    long = [name.removeprefix("--").partition("/")[0] for name in names if name.startswith("--")]
    variables = [envvar] if envvar else [name.replace("-", "_").upper() for name in long]
    return click.option(*names, envvar=variables, show_envvar=True, show_default=True, **options)


def engine_flags(command: Command) -> Command:
    """The flags that end in an `EngineConfig`; TGI's name where TGI has one."""
    for option in reversed(_ENGINE_FLAGS):
        command = option(command)
    return command


_ENGINE_FLAGS = [
    flag("--backend", default="auto", help="What computes; `mainspring backends` lists them."),
    flag("--device-index", default=0, type=click.IntRange(min=0), help="Which of the backend's devices."),
    flag(
        "--num-shard",
        type=POSITIVE,
        help="Devices that hold a part of the model each, from --device-index on.  [default: 1; all with --sharded]",
    ),
    flag("--sharded", type=click.BOOL, help="`true` without --num-shard: all devices of the backend hold a part."),
    flag(
        "--pipeline-parallel-size",
        type=POSITIVE,
        default=1,
        help="Stages that the layers are cut into, of --num-shard devices each.",
    ),
    flag(
        "--enable-expert-parallel",
        is_flag=True,
        help="Deal experts out whole to the devices of --num-shard, not by their features.",
    ),
    flag("--revision", help="Branch, tag or commit of a hub model."),
    flag("--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), default="auto"),
    flag(
        "--kv-cache-dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16", "fp8_e4m3fn", "fp8_e5m2", "int8"]),
        default="auto",
    ),
    flag("--quantize", help="Quantize weights while loading, by scheme name; 'none' undoes a GGUF file's blocks, too."),
    flag("--load-format", type=click.Choice(["auto", "dummy"]), default="auto", help="`dummy`: random weights."),
    flag("--max-total-tokens", type=POSITIVE, help="Tokens of a sequence, prompt and output.  [default: the model's]"),
    flag("--max-batch-size", type=POSITIVE, default=256, help="Sequences that run at once."),
    flag(
        "--max-batch-total-tokens",
        type=POSITIVE,
        help="Tokens that all sequences together may hold.  [default: what memory leaves]",
    ),
    flag("--max-batch-prefill-tokens", type=POSITIVE, default=2048, help="Tokens computed in one step."),
    flag("--max-prefill-chunk", type=POSITIVE, help="Tokens of one prompt computed in one step."),
    flag("--max-queued-requests", type=POSITIVE, default=1024, help="Sequences that may wait; above it: 429."),
    flag("--max-queued-tokens", type=POSITIVE, default=4_000_000, help="Prompt tokens that may wait; above it: 429."),
    flag("--block-size", type=POSITIVE, help="Tokens a KV block holds.  [default: the backend's]"),
    flag("--num-blocks", type=POSITIVE, help="KV blocks.  [default: what memory leaves]"),
    flag(
        "--memory-fraction",
        "--cuda-memory-fraction",
        type=click.FloatRange(0, 1, min_open=True),
        help="Share of the device's memory to use.",
    ),
    flag("--prefix-caching/--no-prefix-caching", default=True, help="Reuse the KV cache of equal prompt beginnings."),
    flag(
        "--speculate",
        type=click.IntRange(min=0),
        help="Tokens guessed at once for a sequence and verified in one step.  [default: the speculator's]",
    ),
    flag(
        "--speculator",
        help="Who guesses: `ngram` (copies what was said), `none`, or a draft model or heads: a directory or hub id.",
    ),
    flag("--seed", default=0, type=click.IntRange(min=0), help="Of requests that name none."),
    flag("--threads", type=POSITIVE, help="Host threads for backends that compute on the host.  [default: all cores]"),
    flag("--compile/--no-compile", default=False, help="Trade start-up time for speed where the backend can."),
    flag("--backend-option", multiple=True, metavar="KEY=VALUE", help="Passed to the backend; may be repeated."),
]


def engine_config(model: str, flags: Mapping[str, Any]) -> EngineConfig:
    """What the engine is told when a command got these flags."""
    from mainspring.core.config import EngineConfig

    kv_dtype = flags["kv_cache_dtype"]
    return EngineConfig(
        model=model,
        revision=flags["revision"],
        backend=flags["backend"],
        device_index=flags["device_index"],
        num_shard=_num_shard(flags["num_shard"], sharded=flags["sharded"]),
        num_stages=flags["pipeline_parallel_size"],
        expert_parallel=flags["enable_expert_parallel"],
        dtype=flags["dtype"],
        kv_dtype=kv_dtype.replace("fp8", "float8"),
        quantize=flags["quantize"],
        load_format=flags["load_format"],
        max_length=flags["max_total_tokens"],
        max_sequences=flags["max_batch_size"],
        max_batch_tokens=flags["max_batch_prefill_tokens"],
        max_prefill_chunk=flags["max_prefill_chunk"],
        max_waiting_requests=flags["max_queued_requests"],
        max_waiting_tokens=flags["max_queued_tokens"],
        block_size=flags["block_size"],
        num_blocks=flags["num_blocks"],
        max_cache_tokens=flags["max_batch_total_tokens"],
        memory_fraction=flags["memory_fraction"],
        prefix_caching=flags["prefix_caching"],
        speculate=flags["speculate"],
        speculator=flags["speculator"],
        seed=flags["seed"],
        threads=flags["threads"],
        compile=flags["compile"],
        backend_options=_backend_options(flags["backend_option"]),
    )


def _num_shard(number: int | None, *, sharded: bool | None) -> int | None:
    if sharded and number == 1:
        raise click.BadParameter("1 is no sharding; leave --sharded out or name more", param_hint="--num-shard")
    return 1 if number is None and not sharded else number


def _backend_options(pairs: Sequence[str]) -> dict[str, str]:
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--backend-option")
        options[key] = value
    return options

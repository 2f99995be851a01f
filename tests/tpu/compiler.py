"""libtpu's compiler without a TPU: JAX's compile-only client for a topology that is named, not found.

The client's `compile` is private to JAX, whose version `requirements.txt` pins. TPU_SKIP_MDS_QUERY=1 keeps libtpu from
asking the cloud which machine this is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax._src import compiler
from jax._src.interpreters import mlir
from jax._src.lib import _jax
from jax._src.lib.mlir import ir
from jax.experimental import topologies

TARGETS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler says of one program. Sizes in bytes."""

    target: str
    seconds: float
    arguments: int
    temporary: int
    code: int
    flops: float
    accessed: float


def devices(target: str) -> Any:
    """The chips of a small topology."""
    return topologies.get_topology_desc(platform="tpu", topology_name=TARGETS[target]).devices


def compile_stablehlo(text: str, target: str) -> Compiled:
    """A program in StableHLO's text, for one chip."""
    chip = devices(target)[0]
    options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    with mlir.make_ir_context() as context:
        module = ir.Module.parse(text, context)
        return _measured(target, lambda: chip.client.compile(module, _jax.DeviceList((chip,)), options))


def compile_jax(function: Callable[..., Any], shapes: list[tuple[tuple[int, ...], Any]], target: str) -> Compiled:
    """A JAX function for one chip."""
    sharding = jax.sharding.SingleDeviceSharding(devices(target)[0])
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
    return _measured(target, lambda: jax.jit(function).lower(*arguments).compile())


def _measured(target: str, build: Callable[[], Any]) -> Compiled:
    began = time.perf_counter()
    built = build()
    seconds = time.perf_counter() - began
    executable = built if hasattr(built, "memory_analysis") else None
    memory = executable.memory_analysis() if executable else built.get_compiled_memory_stats()
    cost = built.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return Compiled(
        target=target,
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        accessed=float(cost.get("bytes accessed", 0.0)),
    )

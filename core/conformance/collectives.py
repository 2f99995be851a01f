"""Checks of collectives: two ranks, each a process of its own, and every call against its definition.

    python -m mainspring.core.conformance.collectives ADDRESS RANK STORE

is one rank; `check` starts both. A rank prints what it found wrong, one sentence a line.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed

from mainspring.core.backend import Backend, Capabilities, Communicator, Device, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.conformance.find import find_backend
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import Check, Trial
from mainspring.core.ops import resolve
from mainspring.core.ops.norm import add_rms_norm

WORLD = 2
PATIENCE = 120
"""Seconds after which ranks that wait for each other are given up."""

CALLS = (
    "summed_norm", "all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "send and receive",
)  # fmt: skip

NORMED = ((1, 64), (3, 80), (300, 64), (0, 64), (2000, 576), (129, 576))
"""Rows and sizes: few, more than any machine has programs for at once, many."""
EPSILON = 1e-5


def check(backend: Backend, capabilities: Capabilities, address: str) -> Check:
    """Both ranks' findings in one."""
    kind = type(backend)
    return Check(
        "collectives", partial(_finding, backend, capabilities, address or f"{kind.__module__}:{kind.__name__}")
    )


def _finding(backend: Backend, capabilities: Capabilities, address: str, device: Device) -> Finding:
    own = type(device).communicator is not Device.communicator
    trial = Trial("collectives", "native" if own else "default")
    found = backend.devices()
    if capabilities.collectives is None:
        return trial.finding("one device only, by its own word")
    # Ranks may share the host; two ranks on one accelerator are what its library refuses.
    if torch.device(device.torch_device).type != "cpu" and (isinstance(found, Unavailable) or len(found) < WORLD):
        return trial.finding("not tried: needs two devices")
    with tempfile.TemporaryDirectory(prefix="conformance") as directory:
        said = _run_ranks(address, Path(directory) / "store")
    for rank, problems in enumerate(said):
        for call in CALLS:
            mine = [problem.removeprefix(f"{call}: ") for problem in problems if problem.startswith(f"{call}: ")]
            trial.require(f"{call}, rank {rank}", not mine, "; ".join(mine))
        for problem in problems:
            if not problem.startswith(tuple(f"{call}: " for call in CALLS)):
                trial.refuse(f"rank {rank}", problem)
    return trial.finding(f"{WORLD} processes")


def _run_ranks(address: str, store: Path) -> list[list[str]]:
    command = [sys.executable, "-m", "mainspring.core.conformance.collectives", address]
    ranks = [
        subprocess.Popen(  # noqa: S603  our own interpreter
            [*command, str(rank), str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(WORLD)
    ]
    return [_said(rank) for rank in ranks]


def _said(rank: subprocess.Popen[str]) -> list[str]:
    try:
        out, err = rank.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        rank.kill()
        rank.communicate()
        return [f"still waiting after {PATIENCE} s"]
    lines = out.splitlines()
    if rank.returncode == 0:
        return lines
    return lines or [f"exit code {rank.returncode}: {(err.strip().splitlines() or ['no word'])[-1]}"]


def main(arguments: Sequence[str]) -> int:
    """One rank."""
    address, rank, store = arguments[0], int(arguments[1]), arguments[2]
    backend = find_backend(address)
    devices = backend.devices()
    if isinstance(devices, Unavailable):
        sys.stdout.write(f"{devices.reason}\n")
        return 1
    info = devices[rank % len(devices)]
    device = backend.open(info.index, rank, WORLD, EngineConfig(model="conformance", backend=backend.name))
    distributed.init_process_group(
        backend.capabilities(info).collectives,
        init_method=f"file://{store}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=PATIENCE / 2),
    )
    try:
        for problem in _wrong(device, rank):
            sys.stdout.write(f"{problem}\n")
            sys.stdout.flush()
    finally:
        distributed.destroy_process_group()
        device.close()
    return 0


def _wrong(device: Device, rank: int) -> Iterator[str]:
    """What each call got wrong. Both ranks make the same calls whatever came out, or one would wait for ever."""
    group = device.communicator(range(WORLD))
    both = [torch.arange(8.0).reshape(2, 4) * 3 + 100 * r for r in range(WORLD)]
    total = both[0] + both[1]
    trials: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "all_reduce": (lambda: group.all_reduce(_mine(device, both, rank)), total),
        "all_gather": (lambda: group.all_gather(_mine(device, both, rank), dim=1), torch.cat(both, dim=1)),
        "reduce_scatter": (
            lambda: group.reduce_scatter(_mine(device, both, rank), dim=1), total.chunk(WORLD, dim=1)[rank]
        ),
        "broadcast": (lambda: group.broadcast(_mine(device, both, rank), source=1), both[1]),
        "all_to_all": (
            lambda: group.all_to_all(_mine(device, both, rank)), torch.stack([both[0][rank], both[1][rank]])
        ),
        "send and receive": (lambda: _exchange(group, _mine(device, both, rank), rank), both[0]),
    }  # fmt: skip
    for name, (call, expected) in trials.items():
        result = call()
        device.synchronize()
        if not torch.equal(result.cpu(), expected):
            yield f"{name}: {result.cpu().tolist()} instead of {expected.tolist()}"
    yield from _wrong_norms(device, group, rank)
    group.close()


def _wrong_norms(device: Device, group: Communicator, rank: int) -> Iterator[str]:
    """Twice over the shapes, and small ones several times on end: machines that sum by themselves take turns."""
    norm = device.summed_norm(group, resolve(device.ops()).add_rms_norm)
    for number, (rows, size) in enumerate((*NORMED, *NORMED, *[(2, 64)] * 5)):
        generator = torch.Generator().manual_seed(number)
        parts = [torch.randn(rows, size, generator=generator) for _ in range(WORLD)]
        residual, weight = torch.randn(rows, size, generator=generator), torch.randn(size, generator=generator)
        there = [x.clone().to(device.torch_device) for x in (parts[rank], residual, weight)]
        found = torch.stack(norm(there[0], there[1], there[2], EPSILON)).cpu()
        expected = torch.stack(add_rms_norm(parts[0] + parts[1], residual, weight, EPSILON))
        other = group.all_gather(found.to(device.torch_device), dim=0).cpu()
        if not torch.allclose(found, expected, rtol=3e-5, atol=3e-5):
            worst = float((found - expected).abs().max())
            yield f"summed_norm: call {number}, {rows} rows of {size}: off by {worst:.1e}"
        if not torch.equal(other[:2], other[2:]):
            yield f"summed_norm: call {number}, {rows} rows of {size}: ranks got different numbers"


def _mine(device: Device, both: Sequence[Tensor], rank: int) -> Tensor:
    return both[rank].clone().to(device.torch_device)


def _exchange(group: Communicator, mine: Tensor, rank: int) -> Tensor:
    if rank == 0:
        group.send(mine, to=1)
        return mine
    return group.receive(torch.empty_like(mine), source=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

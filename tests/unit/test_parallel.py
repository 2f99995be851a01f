"""The default communicator over gloo in two processes: each collective against its definition."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from mainspring.core.parallel.communicator import TorchCommunicator

WORLD = 2


def rank_main(rank: int, store: str) -> None:
    """One rank; an assertion that fails makes the spawn fail."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    lonely = TorchCommunicator([rank])  # nobody else is there to make it
    assert torch.equal(lonely.all_reduce(torch.ones(2)), torch.ones(2))
    lonely.close()
    group = TorchCommunicator(range(WORLD))
    mine = torch.arange(4.0).reshape(2, 2) + 10 * rank
    both = [torch.arange(4.0).reshape(2, 2) + 10 * r for r in range(WORLD)]

    assert torch.equal(group.all_reduce(mine.clone()), both[0] + both[1])
    assert torch.equal(group.all_gather(mine, dim=1), torch.cat(both, dim=1))
    assert torch.equal(group.all_gather(mine, dim=0), torch.cat(both, dim=0))
    assert torch.equal(group.reduce_scatter(mine, dim=1), (both[0] + both[1])[:, rank : rank + 1])
    assert torch.equal(group.broadcast(mine.clone(), source=1), both[1])
    assert torch.equal(group.all_to_all(mine), torch.stack([both[0][rank], both[1][rank]]))
    if rank == 0:
        group.send(mine, to=1)
    else:
        assert torch.equal(group.receive(torch.empty(2, 2), source=0), both[0])
    group.close()
    distributed.destroy_process_group()


def test_every_collective_matches_its_definition(tmp_path: Path) -> None:
    multiprocessing.spawn(rank_main, args=(str(tmp_path / "store"),), nprocs=WORLD)

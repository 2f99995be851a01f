"""Host cost of a decode step: from a `Batch` to packed integers, with nothing behind it.

    python benchmarks/step_inputs.py [rows] [context]

Prints microseconds a step for each part. The device runs the step before meanwhile, so this is what must stay below a
step's duration.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from mainspring.core.batch import Admission, Batch
from mainspring.core.execution.inputs import exact_shape, fill, view
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.execution.table import StateTable
from mainspring.core.request import SamplingParams

BLOCK_SIZE, VOCAB, STEPS = 16, 128_256, 200


def main() -> None:
    """Builds the same decode step many times."""
    rows, context = (int(argument) for argument in (*sys.argv[1:], "256", "2048")[:2])
    blocks = -(-context // BLOCK_SIZE)
    sampling = SamplingTable(rows + 1, VOCAB, (2,))
    table = StateTable(rows, context, BLOCK_SIZE, sampling=sampling, torch_device="cpu")
    drawn = SamplingParams(temperature=0.8, top_p=0.95)
    order = random.Random(0).sample(range(rows), rows)
    table.update(Batch(0, admissions=[Admission(row, [], 0, drawn, row, list(range(1, blocks + 1))) for row in order]))
    batch = Batch(1, order, [context - 1 - row for row in range(rows)], [1] * rows, [True] * rows, rows, rows)
    batch.new_blocks = [(row, blocks - 1, row) for row in order[: rows // BLOCK_SIZE]]
    shape = exact_shape(batch, BLOCK_SIZE)
    buffer = torch.empty(shape.words, dtype=torch.int32)
    words = buffer.numpy()
    chosen = np.array(order)
    report("changes (admissions, new blocks)", lambda: table.update(batch))
    report("shape", lambda: exact_shape(batch, BLOCK_SIZE))
    report(f"integers ({shape.words * 4:,} bytes)", lambda: fill(words, batch, table, shape))
    report("views", lambda: view(buffer, shape))
    report("sampling tensors (new composition only)", lambda: sampling.select(chosen, torch.from_numpy, partition=True))


def report(what: str, part: Callable[[], object]) -> None:
    """Median time of one part."""
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        part()
        times.append(time.perf_counter() - began)
    print(f"{what:40} {sorted(times)[STEPS // 2] * 1e6:8.1f} us")


if __name__ == "__main__":
    main()

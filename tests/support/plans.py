"""Plans of steps written by hand, for executors under test: a few sequences with block tables of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mainspring.core.backend import Executor
from mainspring.core.batch import Admission, Batch, StepResult
from mainspring.core.request import SamplingParams

GREEDY = SamplingParams()


@dataclass
class Planner:
    """Gives each new sequence a row and fresh blocks, and numbers the steps."""

    block_size: int
    blocks_each: int = 8
    step: int = 0
    rows: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    """Row to the position that its next decode computes."""

    def admission(
        self,
        tokens: Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        seed: int = 0,
        blocks: Sequence[int] | None = None,
        num_prompt_tokens: int | None = None,
    ) -> Admission:
        """A new sequence; `blocks` where it must share or mistake them."""
        row = self.rows
        self.rows += 1
        first = 1 + row * self.blocks_each
        own = list(range(first, first + self.blocks_each))
        return Admission(row, tokens, num_prompt_tokens or len(tokens), params, seed, own if blocks is None else blocks)

    def prefill(self, *admissions: Admission, start: int = 0, stop: int | None = None) -> Batch:
        """Computes the tokens from `start` to `stop` (the end) of each, and samples where that is the last one."""
        batch = self._batch()
        batch.admissions += [] if start and stop is None and self._known(admissions) else list(admissions)
        for admission in admissions:
            end = len(admission.tokens) if stop is None else stop
            batch.rows.append(admission.row)
            batch.starts.append(start)
            batch.counts.append(end - start)
            batch.samples.append(end == len(admission.tokens))
            batch.num_tokens += end - start
            self.lengths[admission.row] = end
        return batch

    def decode(self, *rows: int) -> Batch:
        """One more token for each row."""
        batch = self._batch()
        for row in rows:
            batch.rows.append(row)
            batch.starts.append(self.lengths[row])
            batch.counts.append(1)
            batch.samples.append(True)
            self.lengths[row] += 1
        batch.num_decodes = batch.num_tokens = len(rows)
        return batch

    def _known(self, admissions: Sequence[Admission]) -> bool:
        return all(admission.row in self.lengths for admission in admissions)

    def _batch(self) -> Batch:
        self.step += 1
        return Batch(self.step)


def run(executor: Executor, batch: Batch) -> StepResult:
    """The step's result, awaited at once."""
    return executor.execute(batch).result()

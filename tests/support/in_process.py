"""A model served in this process: the engine's own parts and its loop, without channel and server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mainspring.core.backend import Device, Executor
from mainspring.core.batch import Batch
from mainspring.core.composition import build_scheduler
from mainspring.core.config import EngineConfig
from mainspring.core.execution.loading import build_executor
from mainspring.core.grammar.store import Grammars
from mainspring.core.plan import make_plan
from mainspring.core.request import Delta, RequestId, SamplingParams, Submit
from mainspring.core.scheduling.scheduler import Scheduler
from mainspring.core.setting import settle


@dataclass(slots=True)
class InProcess:
    """One executor and its scheduler."""

    executor: Executor
    scheduler: Scheduler
    batches: list[Batch]

    def generate(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[list[int]]:
        """Tokens of each prompt, one step planned ahead as the engine does."""
        first = len(self.batches)
        for index, prompt in enumerate(prompts):
            self.scheduler.submit(Submit(RequestId(first * 1000 + index), prompt, params))
        outputs: dict[int, list[int]] = defaultdict(list)
        for delta in self.deltas():
            assert delta.error is None, delta.message
            outputs[delta.request_id] += delta.tokens
        return [outputs[first * 1000 + index] for index in range(len(prompts))]

    def deltas(self) -> Iterator[Delta]:
        """What comes of all that was submitted; whoever reads may cancel some of it meanwhile."""
        landing = None
        while self.scheduler.has_work:
            batch = self.scheduler.schedule()
            flying = None if batch is None else (batch, self.executor.execute(batch))
            if batch is not None:
                self.batches.append(batch)
            if landing is not None:
                yield from self.scheduler.commit(landing[0], landing[1].result())
            landing = flying
        if landing is not None:
            self.scheduler.commit(landing[0], landing[1].result())


def open_in_process(config: EngineConfig, device: Device | None = None, grammars: Grammars | None = None) -> InProcess:
    """As the engine's entry composes it; `device` instead of the one that the backend opens."""
    setting = settle(config)
    backend, info = setting.choice.backend, setting.choice.device
    executor = build_executor(
        setting.config,
        setting.model,
        make_plan(setting.config, setting.model, backend, info, setting.speculator),
        device or backend.open(info.index, 0, 1, config),
        info=info,
        capabilities=backend.capabilities(info),
        progress=lambda phase, done, total: None,
        grammars=grammars,
    )
    length = (executor.num_blocks() - 1) * executor.kv_spec().block_size
    return InProcess(executor, build_scheduler(setting, executor, min(length, config.max_length or length)), [])

"""Rank 0, the engine process: an executor that hands every batch to the other ranks before it runs it itself.

Only rank 0 plans. Its plan depends on clocks and on when messages arrive, so copies of the scheduler would need both
forwarded to stay equal; a `Batch` is small, and whoever executes the same batches in the same order holds the same
tables. Every rank chooses the tokens from logits that were gathered, which are copies, bit for bit; and what is drawn
at random is a hash. So nothing but the plan crosses, and nothing comes back; but for the masks of grammars, which rank
0 makes and sends to the others' devices before each choice, and for tokens of a last stage, which go to all devices.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial

from mainspring.core.backend import Executor, KVSpec, Pending, ProgressCallback
from mainspring.core.batch import Batch, Buckets, StepResult
from mainspring.core.config import EngineConfig
from mainspring.core.errors import EXIT_ENGINE, EXIT_STARTUP, BackendError, DeviceOutOfMemory, StartupError
from mainspring.core.grammar.store import Grammars
from mainspring.core.parallel import meeting
from mainspring.core.parallel.messages import RankStart, pack_batch
from mainspring.core.parallel.processes import Ranks
from mainspring.core.parallel.stages import Place, place_of
from mainspring.core.plan import Plan
from mainspring.core.processors.forms import ProcessorForms
from mainspring.core.setting import Setting

_log = logging.getLogger(__name__)

_REASON_SECONDS = 1.0
"""What the main thread may take to come back from the device and say why the start failed."""


class LeadingExecutor:
    """An `Executor` over this rank's own and all others'."""

    def __init__(self, own: Executor, ranks: Ranks, world: int) -> None:
        self._own = own
        self._ranks = ranks
        self._world = world

    def execute(self, batch: Batch) -> Pending:
        """Enqueues one step on every rank."""
        self._ranks.send(pack_batch(batch))
        return SharedPending(self._own.execute(batch), self._ranks)

    def kv_spec(self) -> KVSpec:
        """Of one rank."""
        return self._own.kv_spec()

    def num_blocks(self) -> int:
        """The same on every rank."""
        return self._own.num_blocks()

    def buckets(self) -> Buckets | None:
        """The same on every rank."""
        return self._own.buckets()

    def device_name(self) -> str:
        """With the number of ranks."""
        return f"{self._world} x {self._own.device_name()}"

    def step_seconds(self, batch: Batch) -> float:
        """As this rank measured it."""
        return self._own.step_seconds(batch)

    def close(self) -> None:
        """Ends all ranks behind the steps that they were given."""
        self._own.close()
        self._ranks.let_go()
        meeting.part()  # as the others do now: some libraries wait for each other here
        self._ranks.close()


class SharedPending:
    """A step that all ranks run."""

    def __init__(self, own: Pending, ranks: Ranks) -> None:
        self._own = own
        self._ranks = ranks

    def done(self) -> bool:
        """Of this rank."""
        return self._own.done()

    def result(self) -> StepResult:
        """This rank's, which is every rank's. Raises `BackendError` when memory ran out: the others wait for good."""
        try:
            return self._own.result()
        except DeviceOutOfMemory as error:
            raise BackendError(f"rank 0: {error}; lower --max-batch-prefill-tokens or --memory-fraction") from error
        except Exception:
            self._ranks.is_lost(_REASON_SECONDS)  # mostly the cause, and then the last word is the watch's
            raise


def build_executor(
    setting: Setting,
    plan: Plan,
    progress: ProgressCallback,
    grace_seconds: float,
    *,
    grammars: Grammars | None = None,
    forms: ProcessorForms | None = None,
) -> Executor:
    """Starts the other ranks and loads this one's part meanwhile. Raises `StartupError` with the reasons of all.

    A rank that stands still for `grace_seconds` counts as lost, as one that ended does.
    """
    config = setting.config
    place = place_of(0, config.num_shard or 1, config.num_stages, whole_experts=config.expert_parallel)
    serving = threading.Event()
    with meeting.listening() as listener:
        port = listener.getsockname()[1]
        starts = [partial(_start, config, rank, port) for rank in range(1, place.world)]
        ranks = Ranks(starts, grace_seconds=grace_seconds, on_loss=partial(_end, serving))
        try:
            own = _load(
                setting,
                plan,
                progress,
                place,
                lambda collectives: meeting.meet(place, collectives, port, listener),
                grammars=grammars,
                forms=forms,
            )
            ranks.await_ready()
        except Exception as error:
            explained = _explained(error, ranks)
            ranks.let_go()
            ranks.kill()
            ranks.close()
            raise explained from error
    serving.set()
    return LeadingExecutor(own, ranks, place.world)


def _start(config: EngineConfig, rank: int, port: int, report: int) -> RankStart:
    return RankStart(config=config, rank=rank, port=port, leader_pid=os.getpid(), report=report)


def _load(
    setting: Setting,
    plan: Plan,
    progress: ProgressCallback,
    place: Place,
    meet: Callable[[str], None],
    *,
    grammars: Grammars | None,
    forms: ProcessorForms | None,
) -> Executor:
    """This rank's part."""
    from mainspring.core.execution import loading  # imports torch, while the other ranks do

    backend, info = setting.choice.backend, setting.devices[0]
    capabilities = backend.capabilities(info)
    device = backend.open(info.index, place.rank, place.world, setting.config)
    try:
        meet(str(capabilities.collectives))
        return loading.build_executor(
            setting.config,
            setting.model,
            plan,
            device,
            info=info,
            capabilities=capabilities,
            progress=progress,
            model_plugins=setting.plugins.models(),
            processor_plugins=setting.plugins.logits_processors(),
            grammars=grammars,
            forms=forms,
            place=place,
        )
    except BaseException:
        device.close()
        raise


def _explained(error: Exception, ranks: Ranks) -> Exception:
    """What to tell: a rank that ended has mostly said why, and what that did to this one is no news."""
    own = isinstance(error, StartupError) and not isinstance(error, meeting.NotMetError)
    if own or not ranks.is_lost(_REASON_SECONDS):
        return error
    return StartupError(ranks.reasons())


def _end(serving: threading.Event, ranks: Ranks) -> None:
    """Ends this process, whose main thread may be inside the device, waiting for a rank that is no more."""
    if serving.is_set():
        ranks.kill()
        os._exit(EXIT_ENGINE)
    if not ranks.is_parting(_REASON_SECONDS):
        for reason in ranks.reasons():
            _log.error("%s", reason)
        ranks.kill()
        os._exit(EXIT_STARTUP)

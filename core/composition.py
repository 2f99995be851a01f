"""What an engine consists of, by its setting and plan: an executor, a scheduler for it, and what the server is told."""

from __future__ import annotations

import time

from mainspring.core.backend import Executor, ExecutorRequest, ProgressCallback
from mainspring.core.grammar.store import Grammars, installed
from mainspring.core.plan import Plan
from mainspring.core.processors.forms import ProcessorForms
from mainspring.core.request import Ready
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler
from mainspring.core.setting import Setting
from mainspring.core.speculation.speculation import Speculation
from mainspring.core.speculator_plan import drafts_at_once


def build_executor(
    setting: Setting,
    plan: Plan,
    progress: ProgressCallback,
    grace_seconds: float = 5.0,
    grammars: Grammars | None = None,
    processors: ProcessorForms | None = None,
) -> Executor:
    """The backend's own executor where it has one, else the core's over the backend's device, or over several."""
    config, model = setting.config, setting.model
    backend, device = setting.choice.backend, setting.choice.device
    own = backend.executor(
        ExecutorRequest(model, config, plan.max_length, plan.kv, plan.num_blocks, device, progress, grammars)
    )
    if own is not None:
        return own
    if len(setting.devices) > 1:
        from mainspring.core.parallel import leading

        return leading.build_executor(setting, plan, progress, grace_seconds, grammars=grammars, forms=processors)
    from mainspring.core.execution import loading  # imports torch, which a backend's own executor may do without

    opened = backend.open(device.index, 0, 1, config)
    try:
        return loading.build_executor(
            config,
            model,
            plan,
            opened,
            info=device,
            capabilities=backend.capabilities(device),
            progress=progress,
            model_plugins=setting.plugins.models(),
            grammars=grammars,
            processor_plugins=setting.plugins.logits_processors(),
            forms=processors,
        )
    except BaseException:
        opened.close()
        raise


def build_scheduler(setting: Setting, executor: Executor, max_length: int) -> Scheduler:
    """The scheduler for what the executor turned out to hold."""
    config, choice = setting.config, setting.choice
    count = drafts_at_once(config, setting.speculator)
    pool = BlockPool(executor.num_blocks(), executor.kv_spec().block_size, prefix_caching=config.prefix_caching)
    return Scheduler(
        pool=pool,
        max_sequences=config.max_sequences,
        max_length=max_length,
        max_batch_tokens=config.max_batch_tokens,
        max_prefill_chunk=config.max_prefill_chunk,
        max_waiting_requests=config.max_waiting_requests,
        max_waiting_tokens=config.max_waiting_tokens,
        eos_token_ids=setting.model.eos_token_ids,
        buckets=executor.buckets(),
        mixes_prefill_and_decode=choice.backend.capabilities(choice.device).mixes_prefill_and_decode,
        clock=time.monotonic,
        seed=config.seed,
        speculation=Speculation(count, asks=setting.speculator is not None) if count else None,
    )


def describe(setting: Setting, plan: Plan, executor: Executor, grammars: Grammars, processors: ProcessorForms) -> Ready:
    """What the server must know to validate requests, and what the operator should."""
    block_size, num_blocks = executor.kv_spec().block_size, executor.num_blocks()
    room = (num_blocks - 1) * block_size
    notes = (setting.choice.reason, *plan.notes)
    if room < plan.max_length:
        notes += (
            f"sequences are limited to {room} of {plan.max_length} tokens: no more memory was free for the cache",
        )
    return Ready(
        max_length=min(plan.max_length, room),
        vocab_size=setting.model.vocab_size,
        block_size=block_size,
        num_blocks=num_blocks,
        max_sequences=setting.config.max_sequences,
        backend=setting.choice.backend.name,
        device=executor.device_name(),
        dtype=plan.dtype,
        notes=notes,
        num_shard=setting.config.num_shard or 1,
        eos_token_ids=tuple(setting.model.eos_token_ids),
        follows_grammars=grammars.followed and bool(installed()) and bool(setting.model.eos_token_ids),
        processors=processors.offered,
        speculate=drafts_at_once(setting.config, setting.speculator),
    )

"""From the first listen to the last answer: which phase the server is in, and what serves then.

Loading and draining take minutes in which probes and clients want true answers; they read them here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mainspring.core.config import EngineConfig
from mainspring.core.errors import EXIT_STARTUP, ErrorKind, RequestError, StartupError
from mainspring.core.grammar.messages import AUTO
from mainspring.core.metrics import Stats
from mainspring.core.request import Ready
from mainspring.server.answer_formats import AnswerFormats
from mainspring.server.engine.client import EngineClient
from mainspring.server.errors import NotReadyError
from mainspring.server.logits_processors import with_defaults
from mainspring.server.model import Limits, ServedModel
from mainspring.server.service import Service
from mainspring.server.source import ModelSource
from mainspring.server.telemetry.outcome import Spans
from mainspring.server.telemetry.prometheus import Metrics
from mainspring.server.text.template import ChatTemplate
from mainspring.server.text.tokenizer import Tokenizer, load_tokenizer

_log = logging.getLogger(__name__)
_SEQUENCES_A_REQUEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What the operator allows clients; None takes what the engine can do."""

    max_input_tokens: int | None = None
    max_concurrent_requests: int | None = None
    max_request_tokens: int | None = None
    """None takes `_SEQUENCES_A_REQUEST` sequences of full length."""
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4
    validation_workers: int = 2
    payload_limit: int = 2_000_000
    """Bytes of a request body."""

    def resolve(self, ready: Ready, max_waiting_requests: int) -> Limits:
        """The limits that hold, now that the engine's own are known."""
        return Limits(
            max_input_tokens=min(self.max_input_tokens or ready.max_length, ready.max_length - 1),
            max_total_tokens=ready.max_length,
            max_concurrent_requests=self.max_concurrent_requests or ready.max_sequences + max_waiting_requests,
            max_request_tokens=self.max_request_tokens or _SEQUENCES_A_REQUEST * ready.max_length,
            max_best_of=self.max_best_of,
            max_stop_sequences=self.max_stop_sequences,
            max_top_n_tokens=self.max_top_n_tokens,
            max_client_batch_size=self.max_client_batch_size,
            validation_workers=self.validation_workers,
        )


class Lifecycle:
    """Starts the engine and the tokenizer side by side, serves, drains, and knows why it ended."""

    def __init__(
        self,
        engine: EngineClient,
        source: ModelSource,
        metrics: Metrics,
        build: Callable[[Ready, Tokenizer, ChatTemplate | None], ServedModel],
        *,
        loaded: Callable[[], None] | None = None,
        announce: Callable[[Ready, float], None] | None = None,
        spans: Spans | None = None,
    ) -> None:
        self._spans = spans
        self._loaded = loaded
        """Called when loading has ended, well or not."""
        self._announce = announce
        """Called once with the seconds that starting took."""
        self.metrics = metrics
        self.ended = asyncio.Event()
        """Set when the server cannot go on: it could not start, or the engine is dead."""
        self.startup_error: StartupError | None = None
        self._engine = engine
        self._source = source
        self._build = build
        self._service: Service | None = None
        self._leaving = False
        self._draining = False
        self._begun = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start loading, in the background."""
        self._task = asyncio.create_task(self._live(), name="lifecycle")

    def serving(self) -> Service:
        """Raises RequestError with the reason while there is no model to serve."""
        if self._service is None:
            raise NotReadyError(self.phase)
        if self._engine.failure is not None:
            raise RequestError(ErrorKind.ENGINE_DEAD, "the engine is not running", retry_after=5.0)
        if self._draining:
            raise RequestError(ErrorKind.SHUTTING_DOWN, "the server is shutting down", retry_after=5.0)
        return self._service

    @property
    def ready(self) -> bool:
        """Whether to send requests here."""
        return self._service is not None and self._engine.healthy and not (self._leaving or self._draining)

    @property
    def phase(self) -> str:
        """Where the server is, in words for probes: `weights 40 %`, `ready`, `leaving`, `draining`, `failed`."""
        if self.startup_error is not None or self._engine.failure is not None:
            return "failed"
        if self._draining:
            return "draining"
        if self._leaving:
            return "leaving"
        if self._service is not None:
            return "ready"
        progress = self._engine.progress
        if progress is None:
            return "starting"
        share = f" {100 * progress.done // progress.total} %" if progress.total else ""
        return progress.phase + share

    @property
    def exit_code(self) -> int:
        """For the process: 0 after a stop that was asked for."""
        return EXIT_STARTUP if self.startup_error is not None else self._engine.exit_code

    def leave(self) -> None:
        """Not ready from now on, for those who ask before they send; requests that come nevertheless are served."""
        self._leaving = True

    async def drain(self, seconds: float) -> None:
        """Refuse new requests and let the running ones finish, within a bound."""
        self._draining = True
        if self._service is not None:
            await self._engine.drain(seconds)

    async def close(self) -> None:
        """End everything at once. May be called in any phase."""
        self._draining = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._engine.aclose()
        if self._service is not None:
            await self._service.aclose()

    async def _live(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                engine = group.create_task(self._engine.start())
                text = group.create_task(asyncio.to_thread(_load_text, self._source))
        except* StartupError as errors:
            reasons = [reason for error in _leaves(errors) for reason in error.reasons]
            self.startup_error = StartupError(reasons)
        except* Exception:  # noqa: BLE001  the task's border: what can never serve must not wait for ever
            _log.exception("start-up failed")
            self.startup_error = StartupError("start-up failed; the log has the trace")
        finally:
            if self._loaded is not None:
                self._loaded()
        if self.startup_error is None:
            ready, (tokenizer, template) = engine.result(), text.result()
            model = self._build(ready, tokenizer, template)
            self._service = Service(self._engine, model, self.metrics, ready, spans=self._spans)
            # What start-up made lives for ever: the collector need not look at it again, with every client waiting.
            gc.freeze()
            if self._announce is not None:
                self._announce(ready, time.monotonic() - self._begun)
            await self._engine.failed()
        self.ended.set()


def build_model(
    source: ModelSource,
    engine: EngineConfig,
    limits: RequestLimits,
    compute_type: str | None = None,
    *,
    formats: AnswerFormats | None = None,
    grammar_engine: str | None = AUTO,
    processor_defaults: Mapping[str, Mapping[str, float]] | None = None,
) -> Callable[[Ready, Tokenizer, ChatTemplate | None], ServedModel]:
    """How the served model is put together once the engine has said what it can do.

    `grammar_engine` None leaves grammars out.
    """

    def build(ready: Ready, tokenizer: Tokenizer, template: ChatTemplate | None) -> ServedModel:
        source_text = None if template is None else template.source
        tool_format, reasoning_format = (formats or AnswerFormats()).choose(source_text)
        return ServedModel(
            id=source.model_id,
            created=int(time.time()),
            revision=engine.revision,
            tokenizer=tokenizer,
            template=template,
            limits=limits.resolve(ready, engine.max_waiting_requests),
            vocab_size=ready.vocab_size,
            compute_type=compute_type or ready.backend,
            constrains=ready.follows_grammars and grammar_engine is not None,
            grammar_engine=grammar_engine or AUTO,
            processors=with_defaults(ready.processors, processor_defaults or {}),
            tool_format=tool_format,
            reasoning_format=reasoning_format,
        )

    return build


def engine_state(engine: EngineClient) -> tuple[Stats, Ready] | None:
    """For the metrics: None while the engine loads."""
    return None if engine.ready is None else (engine.stats, engine.ready)


def _load_text(source: ModelSource) -> tuple[Tokenizer, ChatTemplate | None]:
    tokenizer = load_tokenizer(source.path, source.tokenizer_config)
    template = tokenizer.chat_template
    return tokenizer, None if template is None else ChatTemplate(template, tokenizer.special, tokenizer.tool_template)


def _leaves(group: BaseExceptionGroup[StartupError]) -> list[StartupError]:
    found: list[StartupError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found

"""`LLM`: the server's engine without the server, for scripts. Same process layout, same text pipeline, no HTTP.

A synchronous face: the event loop runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from mainspring.core.config import Dtype, EngineConfig, KVDtype
from mainspring.core.errors import StartupError
from mainspring.core.grammar.messages import AUTO, GrammarSpec
from mainspring.core.metrics import Stats
from mainspring.core.request import FinishReason, Ready, SamplingParams, TokenLogprobs
from mainspring.server.beams.probing import pieces_of
from mainspring.server.beams.search import Beams
from mainspring.server.engine.client import EngineClient, ProgressListener
from mainspring.server.errors import TemplateError
from mainspring.server.grammar.guidance import Guidance
from mainspring.server.source import located, resolve
from mainspring.server.text.generation import Generation, Piece, Token, generate
from mainspring.server.text.template import ChatTemplate, Message
from mainspring.server.text.tokenizer import load_tokenizer

T = TypeVar("T")
Prompt = str | list[int]
"""Text, or token ids."""


@dataclass(frozen=True, slots=True)
class Output:
    """What was generated for one prompt."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    seed: int
    logprobs: list[TokenLogprobs] | None = None
    """One entry a token of `token_ids`, if `params.logprobs` asked for them."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """One entry a token of the prompt, None for the first, if `params.prompt_logprobs` asked for them."""


class LLM:
    """A loaded model. Close it, or use it as a context manager.

    >>> with LLM("demo", backend="cpu") as llm:  # doctest: +SKIP
    ...     print(llm.generate("The capital of France is", SamplingParams(max_tokens=8))[0].text)
    """

    def __init__(
        self,
        model: str,
        backend: str = "auto",
        *,
        revision: str | None = None,
        dtype: Dtype | Literal["auto"] = "auto",
        kv_dtype: KVDtype | Literal["auto"] = "auto",
        quantize: str | None = None,
        speculate: int | None = None,
        speculator: str | None = None,
        num_shard: int | None = 1,
        num_stages: int = 1,
        expert_parallel: bool = False,
        load_format: Literal["auto", "dummy"] = "auto",
        max_length: int | None = None,
        max_sequences: int = 256,
        max_batch_tokens: int = 2048,
        num_blocks: int | None = None,
        memory_fraction: float | None = None,
        prefix_caching: bool = True,
        seed: int = 0,
        threads: int | None = None,
        compile: bool = False,  # noqa: A002  # the flag's name everywhere
        backend_options: dict[str, str] | None = None,
        on_progress: ProgressListener | None = None,
    ) -> None:
        """Loads the model and waits until it serves. Raises StartupError with every reason it cannot."""
        self._open(
            EngineConfig(
                model=model,
                revision=revision,
                backend=backend,
                dtype=dtype,
                kv_dtype=kv_dtype,
                quantize=quantize,
                speculate=speculate,
                speculator=speculator,
                num_shard=num_shard,
                num_stages=num_stages,
                expert_parallel=expert_parallel,
                load_format=load_format,
                max_length=max_length,
                max_sequences=max_sequences,
                max_batch_tokens=max_batch_tokens,
                num_blocks=num_blocks,
                memory_fraction=memory_fraction,
                prefix_caching=prefix_caching,
                seed=seed,
                threads=threads,
                compile=compile,
                backend_options=backend_options or {},
            ),
            on_progress,
        )

    @classmethod
    def of(
        cls, config: EngineConfig, on_progress: ProgressListener | None = None, *, grammar_engine: str = AUTO
    ) -> Self:
        """With every setting there is; `config.model` may be all that `model` may be."""
        llm = cls.__new__(cls)
        llm._open(config, on_progress, grammar_engine)
        return llm

    def _open(self, config: EngineConfig, on_progress: ProgressListener | None, grammar_engine: str = AUTO) -> None:
        source = resolve(config.model, config.revision)
        self.tokenizer = load_tokenizer(source.path)
        template = self.tokenizer.chat_template
        self._template = None if template is None else ChatTemplate(template, self.tokenizer.special)
        # More would only fill the engine's queue, which is bounded.
        self._at_once = config.max_sequences + config.max_waiting_requests
        self._engine = EngineClient(located(config, source), on_progress=on_progress)
        self._guidance: Guidance | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mainspring", daemon=True)
        self._thread.start()
        try:
            self.ready: Ready = self._run(self._engine.start())
        except StartupError:
            self.close()
            raise
        if self.ready.follows_grammars:
            self._guidance = Guidance(self._engine, self.tokenizer, self.ready, grammar_engine=grammar_engine)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        stop: Sequence[str] = (),
        grammar: GrammarSpec | Sequence[GrammarSpec | None] | None = None,
        *,
        beams: Beams | None = None,
    ) -> list[Output]:
        """One output a prompt, in order. Greedy and to the end of the context where `params` do not say otherwise.

        Every output follows its `grammar`, if there is one: one for all, or one for each. With `beams` it is the best
        that a beam search finds, and nothing is drawn.

        `params` are those of all prompts, or a sequence with one entry for each. Raises RequestError for the first
        prompt that fails; the others are then ended.
        """
        each = _one_by_one(prompts)
        params_of = [params] * len(each) if isinstance(params, SamplingParams | None) else params
        grammar_of = [grammar] * len(each) if isinstance(grammar, GrammarSpec | None) else grammar
        generations = [
            replace(self._generation(prompt, how, stop), grammar=what, beams=beams)
            for prompt, how, what in zip(each, params_of, grammar_of, strict=True)
        ]
        return self._run(self._generate_all(generations))

    def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, stop: Sequence[str] = ()
    ) -> Output:
        """The assistant's answer. Raises TemplateError when there is no template or it refuses the messages."""
        return self.generate([self.chat_prompt(messages)], params, stop)[0]

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat. Raises TemplateError."""
        if self._template is None:
            raise TemplateError("this model has no chat template; use generate()")
        return self.tokenizer.encode(self._template.render(messages), add_special_tokens=False)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, stop: Sequence[str] = ()) -> Iterator[str]:
        """Text as it is generated. Leaving the iteration ends the request."""
        pieces = generate(self._engine, self.tokenizer, self._generation(prompt, params, stop))
        try:
            while (piece := self._run(_next(pieces))) is not None:
                if piece.text:
                    yield piece.text
        finally:
            self._run(pieces.aclose())

    @property
    def stats(self) -> Stats:
        """The engine's numbers as of its last step."""
        return self._engine.stats

    def close(self) -> None:
        """End the engine. May be called again."""
        if self._loop.is_closed():
            return
        if self._guidance is not None:
            self._run(self._guidance.aclose())
        self._run(self._engine.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _generation(self, prompt: Prompt, params: SamplingParams | None, stop: Sequence[str]) -> Generation:
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return Generation(tokens=tokens, params=params or SamplingParams(), stops=tuple(stop))

    async def _generate_all(self, generations: Sequence[Generation]) -> list[Output]:
        places = asyncio.Semaphore(self._at_once)

        async def one(generation: Generation) -> Output:
            async with places:
                return await _collect(pieces_of(self._engine, self.tokenizer, generation, self._guidance), generation)

        tasks = [asyncio.ensure_future(one(generation)) for generation in generations]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _one_by_one(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    ids = [token_id for token_id in prompts if isinstance(token_id, int)]
    return [ids] if ids else [prompt for prompt in prompts if not isinstance(prompt, int)]


async def _collect(pieces: AsyncGenerator[Piece, None], generation: Generation) -> Output:
    text: list[str] = []
    tokens: list[Token] = []
    prompt: tuple[Token, ...] = ()
    reason, seed = FinishReason.ERROR, 0
    async with aclosing(pieces):
        async for piece in pieces:
            text.append(piece.text)
            tokens.extend(piece.tokens)
            prompt = piece.prompt or prompt
            if piece.finish is not None:
                reason, seed = piece.finish.reason, piece.finish.seed
    asked = generation.params
    return Output(
        "".join(text),
        [token.id for token in tokens],
        reason,
        generation.tokens,
        seed,
        None if asked.logprobs is None else [token.logprobs for token in tokens if token.logprobs is not None],
        None if asked.prompt_logprobs is None else [token.logprobs for token in prompt],
    )


async def _next(pieces: AsyncGenerator[Piece, None]) -> Piece | None:
    return await anext(pieces, None)

"""What parsing a request needs to know about the served model, and nothing that changes while it is served."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.core.grammar.messages import AUTO
from mainspring.core.request import ProcessorForm
from mainspring.server.reasoning.parser import ReasoningParser
from mainspring.server.text.template import ChatTemplate
from mainspring.server.text.tokenizer import Tokenizer
from mainspring.server.tools.parser import ToolParser
from mainspring.server.tools.plain_json import PlainJson

MAX_STOP_CHARACTERS = 1000
"""Of one stop string; with the bound on their number this bounds the work of looking for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on requests. Lengths are in tokens."""

    max_input_tokens: int
    max_total_tokens: int
    """Prompt and output together."""
    max_concurrent_requests: int
    """Prompts queued and running; above it requests are refused as overload."""
    max_request_tokens: int
    """All tokens that one request may have generated: prompts x sequences x tokens."""
    max_best_of: int = 2
    max_stop_sequences: int = 4
    """On TGI's routes; OpenAI's allow `MAX_STOPS`."""
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4
    """Prompts in one completion request."""
    validation_workers: int = 2
    """Threads that template and tokenise."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model as clients see it."""

    id: str
    created: int
    """Unix time."""
    revision: str | None
    tokenizer: Tokenizer
    template: ChatTemplate | None
    limits: Limits
    vocab_size: int
    """Of the engine: what token ids in requests are checked against."""
    compute_type: str
    """For the header x-compute-type: what does the work."""
    constrains: bool = False
    """Whether the engine can hold an answer to a grammar."""
    grammar_engine: str = AUTO
    """Which one."""
    processors: tuple[ProcessorForm, ...] = ()
    """Logits processors that requests may name."""
    tool_format: type[ToolParser] = PlainJson
    """How it writes calls of tools."""
    reasoning_format: type[ReasoningParser] | None = None
    """How it writes its thoughts; None where it has none, or they are to stay in the text."""

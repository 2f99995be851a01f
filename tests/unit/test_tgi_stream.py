"""TGI's stream where tokens come many at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

from mainspring.core.request import FinishReason, SamplingParams
from mainspring.server.text.generation import Finish, Generation, Piece, Token
from mainspring.server.text.tokenizer import SpecialTokens, Tokenizer
from mainspring.server.tgi.parse import GenerateCall
from mainspring.server.tgi.stream import EVENTS_A_WRITE, stream
from tests.support.tiny_tokenizers import byte_level

NUM_TOKENS = 2 * EVENTS_A_WRITE + 1


async def pieces() -> AsyncGenerator[Piece, None]:
    first, *others = (Token(number, "x", False, None) for number in range(NUM_TOKENS))
    yield Piece(0, (first,), "x", None, None)
    yield Piece(0, tuple(others), "x" * len(others), None, Finish(FinishReason.LENGTH, NUM_TOKENS, 0))


def test_tokens_that_come_together_are_events_of_their_own_in_few_writes() -> None:
    call = GenerateCall(
        generation=Generation(tokens=[1, 2], params=SamplingParams()),
        inputs="say",
        return_full_text=False,
        details=True,
        top_n_tokens=0,
        stream=True,
    )

    async def written() -> list[bytes]:
        return [part async for part in stream(pieces(), call, Tokenizer(byte_level(), SpecialTokens()))]

    parts = asyncio.run(written())
    assert len(parts) == 3
    events = [json.loads(event.removeprefix(b"data: ")) for event in b"".join(parts).split(b"\n\n")[:-1]]
    assert [event["index"] for event in events] == list(range(1, NUM_TOKENS + 1))
    assert [event["token"]["id"] for event in events] == list(range(NUM_TOKENS))
    assert all(event["generated_text"] is None and event["details"] is None for event in events[:-1])
    assert events[-1]["generated_text"] == "x" * NUM_TOKENS
    assert events[-1]["details"]["generated_tokens"] == NUM_TOKENS

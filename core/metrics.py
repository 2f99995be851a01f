"""Numbers the engine reports about itself. Plain data: the server turns them into Prometheus text."""

from __future__ import annotations

import msgspec


class Stats(msgspec.Struct, array_like=True):
    """Gauges as of now and counters since start. Sent with every `StepOutput`."""

    running: int = 0
    """Sequences that hold blocks."""
    waiting: int = 0
    """Sequences that wait for their first or next admission."""
    waiting_tokens: int = 0
    blocks_used: int = 0
    """Blocks that a sequence refers to; cached but unreferenced blocks count as free."""
    blocks_total: int = 0
    batch_tokens: int = 0
    """Tokens computed in the last step."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found there."""
    preemptions: int = 0
    nan_rows: int = 0
    steps: int = 0
    requests_aborted: int = 0
    draft_rows: int = 0
    """Rows of steps that verified guesses."""
    draft_tokens: int = 0
    """Tokens guessed."""
    accepted_tokens: int = 0
    """Those of them that were right."""

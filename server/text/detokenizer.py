"""Token ids to text while they are generated: incremental, byte-safe, linear.

A token is a string of bytes (`Tokenizer.token_bytes`), a sequence's text is the UTF-8 decoding of its tokens' bytes one
after the other. So a character whose bytes come in several tokens appears with its last byte, never as U+FFFD before;
bytes that can never become a character turn into U+FFFD as the Unicode standard (section 3.9, "maximal subparts") says.
No window of earlier tokens is decoded again, so nothing of the prompt can leak and time is linear.

Stop strings are `stops.py`.
"""

from __future__ import annotations

import codecs
from typing import Protocol

_utf8 = codecs.getincrementaldecoder("utf-8")


class TokenBytes(Protocol):
    """What the detokenizer needs of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text; it need not be whole characters."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether it stands for no text, as ends and starts of turns do."""
        ...


class Detokenizer:
    """The text of one sequence. Special tokens have no text here."""

    def __init__(self, tokenizer: TokenBytes) -> None:
        self._tokenizer = tokenizer
        self._decoder = _utf8("replace")

    def fork(self) -> Detokenizer:
        """Another one that has been told the same tokens."""
        other = Detokenizer(self._tokenizer)
        other._decoder.setstate(self._decoder.getstate())
        return other

    def push(self, token_id: int) -> str:
        """Text that this token completes; empty while a character is unfinished.

        An unfinished character at the end of the sequence is never shown.
        """
        if self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

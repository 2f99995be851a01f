"""What every chunk of one answer repeats: its unique id, when it was made, and by what."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

import mainspring
from mainspring.server.model import ServedModel
from mainspring.server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Identity:
    """Of one answer. The tokenizer is the model's, for the text of log-probabilities."""

    id: str
    created: int
    model: str
    fingerprint: str
    tokenizer: Tokenizer


def new_identity(prefix: str, model: ServedModel) -> Identity:
    """`prefix` is the kind of answer in OpenAI's ids: `chatcmpl` or `cmpl`."""
    fingerprint = f"mainspring-{mainspring.__version__}"
    return Identity(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model.id, fingerprint, model.tokenizer)

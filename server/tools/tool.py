"""What a request says about tools, in no protocol's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Choice = Literal["auto", "none", "required"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the client can run."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of its arguments."""
    description: str | None = None
    strict: bool = False
    """Arguments must satisfy the schema, whoever decides to call."""

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect a tool: OpenAI's form."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request that its answer may call."""

    tools: tuple[Tool, ...] = ()
    required: bool = False
    """At least one call must come; then text does not."""
    parallel: bool = True
    """Several calls in one answer."""

"""Tools on OpenAI's wire: what a request offers, and which of them the answer is to call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mainspring.server.http.body import WireModel

MAX_TOOLS = 128


class Function(WireModel):
    """What a tool does, and its arguments' JSON schema: `parameters`, in TGI's dialect also `arguments`."""

    name: Annotated[str, Field(pattern=r"^[\w.:/-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(WireModel):
    """A tool that the answer may call. Functions are the only kind."""

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(WireModel):
    """A tool by its name."""

    name: str


class NamedTool(WireModel):
    """This tool and no other, once."""

    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedTools(WireModel):
    """Some of the request's tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, max_length=MAX_TOOLS)]


class AllowedToolsChoice(WireModel):
    """OpenAI's `allowed_tools`."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_form(choice: object) -> str:
    if not isinstance(choice, dict):
        return "str"
    return "allowed_tools" if choice.get("type") == "allowed_tools" else "function"


ToolChoice = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedToolsChoice, Tag("allowed_tools")],
    Discriminator(_choice_form),
]
"""`auto`, `none`, `required`, in TGI's dialect a tool's name; or an object that names tools."""

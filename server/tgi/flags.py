"""Flags of TGI's launcher that this server has no use for, and what it does when it is given one.

A flag whose absence changes nothing for clients is accepted, and a note says so once. A flag that asks for something
that is not here is refused with what to use instead; the values that ask for nothing pass. Flags that do something
here are click options of `cli.py`, under TGI's names where TGI has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

_NOTES = "mainspring.notes"
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class ForeignFlag:
    """A flag of TGI's that does nothing here. It also reads the variable that TGI's launcher would."""

    name: str
    text: str
    """Why it has no effect or, of a flag that is refused, what to do instead."""
    refused: bool = False
    harmless: tuple[str, ...] = ()
    """Values that a refused flag may have, because they ask for what happens anyway."""
    is_switch: bool = False

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return self.name.removeprefix("--").replace("-", "_").upper()

    def judge(self, value: str) -> str:
        """The note for a value, empty for one that needs none. Raises click.UsageError for one that is refused."""
        if value in self.harmless:
            return ""
        shown = self.name if self.is_switch else f"{self.name} {value}"
        if self.refused:
            raise click.UsageError(f"{shown} is not supported: {self.text}")
        return f"{shown} has no effect: {self.text}"


_TUNNEL = "run the tunnel beside the server and point it at --port"
_ONE_HOST = "ranks are on one host and meet at a port that the kernel chooses"

FOREIGN_FLAGS = (
    ForeignFlag("--trust-remote-code", "code that comes with a checkpoint is never run", is_switch=True),
    ForeignFlag("--waiting-served-ratio", "every step may admit requests; prefill is chunked into decode steps"),
    ForeignFlag("--max-waiting-tokens", "every step may admit requests; prefill is chunked into decode steps"),
    ForeignFlag("--cuda-graphs", "the backend chooses its own shapes and captures them"),
    ForeignFlag("--prometheus-port", "/metrics is on --port, as it was in TGI"),
    ForeignFlag("--shard-uds-path", "the engine's socket lies in a private directory of its own"),
    ForeignFlag("--master-addr", _ONE_HOST),
    ForeignFlag("--master-port", _ONE_HOST),
    ForeignFlag("--weights-cache-override", "name the directory with the weights as MODEL", refused=True),
    ForeignFlag("--disable-custom-kernels", "choose another --backend instead", is_switch=True),
    ForeignFlag("--rope-scaling", "set `rope_scaling` in the model's config.json", refused=True),
    ForeignFlag("--rope-factor", "set `rope_scaling` in the model's config.json", refused=True),
    ForeignFlag("--ngrok", _TUNNEL, refused=True, is_switch=True),
    ForeignFlag("--ngrok-authtoken", _TUNNEL, refused=True),
    ForeignFlag("--ngrok-edge", _TUNNEL, refused=True),
    ForeignFlag("--lora-adapters", "merge the adapter into the model (peft: `merge_and_unload`)", refused=True),
    ForeignFlag("--usage-stats", "nothing is ever sent anywhere", harmless=("off",)),
    ForeignFlag("--enable-prefill-logprobs", "a request that wants them asks for them", is_switch=True),
    ForeignFlag("--max-image-fetch-size", "nothing is fetched for requests"),
)


def foreign_flags(command: _Command) -> _Command:
    """Lets a command take all of `FOREIGN_FLAGS`, hidden from its help."""
    for flag in reversed(FOREIGN_FLAGS):
        option = click.option(
            flag.name,
            envvar=flag.variable,
            hidden=True,
            expose_value=False,
            is_flag=flag.is_switch,
            default=False if flag.is_switch else None,
            callback=_callback(flag),
        )
        command = option(command)
    return command


def notes(context: click.Context) -> list[str]:
    """One sentence for each flag of the running command that was taken and has no effect."""
    found: list[str] = context.meta.setdefault(_NOTES, [])
    return found


def _callback(flag: ForeignFlag) -> Callable[[click.Context, click.Parameter, object], None]:
    def judge(context: click.Context, parameter: click.Parameter, value: object) -> None:
        if value in (None, False):
            return
        note = flag.judge(str(value))
        if note:
            notes(context).append(note)

    return judge

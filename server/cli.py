"""The command line. Every flag also reads an environment variable, by TGI's rule: UPPER_SNAKE_CASE of its name.

Nothing heavy is imported at the top: `--help` must not wait for a web server or a tokenizer. `backends`, `check` and
`conformance` belong to the core and run in its own modules.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

import mainspring
from mainspring.server.engine_flags import POSITIVE, engine_config, engine_flags
from mainspring.server.serve_flags import serve_flags, server_options
from mainspring.server.startup_errors import startup_errors
from mainspring.server.tgi.flags import foreign_flags, notes

if TYPE_CHECKING:
    from mainspring.server.source import ModelSource


class _NearestCommand(click.Group):
    """Offers the nearest command for an unknown one, as click does for options."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            from mainspring.core.errors import unknown

            ctx.fail(unknown("command", args[0], self.commands))
        return super().resolve_command(ctx, args)


@click.group(cls=_NearestCommand, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(mainspring.__version__, prog_name="mainspring")
def main() -> None:
    """One LLM inference server for any accelerator. MODEL is a directory, a .gguf file, a hub id, or `demo`."""


@main.command()
@click.argument("model", required=False)
@serve_flags
@engine_flags
@foreign_flags
@click.pass_context
def serve(context: click.Context, /, model: str | None, **flags: Any) -> None:
    """Serve MODEL over HTTP: TGI's API and OpenAI's.

    TGI's flags and variables are taken as they are. Those that have no effect here are said at the start, those that
    ask for what is not here are refused.
    """
    if flags["env"]:
        from mainspring.server.environment import environment

        click.echo("\n".join(environment()))
        return
    import asyncio

    with startup_errors():
        _find_device(flags["backend"], flags["device_index"])
    from mainspring.server.app import serve as serve_http
    from mainspring.server.telemetry import logs

    logs.configure(
        level=flags["log_level"],
        as_json=flags["json_output"],
        requests=flags["access_log"] or flags["json_output"],
    )
    with startup_errors():
        source = _source(model or flags["model_id"], flags["revision"], flags["huggingface_hub_cache"])
        options = server_options(source, flags, notes(context))
        code = asyncio.run(serve_http(options))
    sys.exit(code)


@main.command()
@click.argument("model")
@click.argument("prompt")
@click.option("--max-tokens", type=POSITIVE, default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--chat/--no-chat", default=False, help="Put the prompt through the model's chat template.")
@engine_flags
def generate(model: str, prompt: str, **flags: Any) -> None:
    """Continue PROMPT with MODEL and print the text as it comes."""
    from mainspring.core.request import SamplingParams
    from mainspring.server.offline import LLM
    from mainspring.server.progress import ProgressBars

    config = engine_config(model, flags)
    params = SamplingParams(max_tokens=flags["max_tokens"], temperature=flags["temperature"])
    bars = ProgressBars(sys.stderr)
    with closing(bars), startup_errors(), LLM.of(config, on_progress=bars.show) as llm:
        bars.close()
        start = llm.chat_prompt([{"role": "user", "content": prompt}]) if flags["chat"] else prompt
        for text in llm.stream(start, params):
            click.echo(text, nl=False)
    click.echo()


_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@main.command()
@click.option("--matrix", is_flag=True, help="Feature by backend instead, from each one's last conformance report.")
@click.option("--markdown", is_flag=True, help="With --matrix: as docs/backends.md has it.")
def backends(matrix: bool, markdown: bool) -> None:
    """List the backends and which of them can run here, or why not."""
    if markdown and not matrix:
        raise click.UsageError("--markdown is a form of the matrix: add --matrix")
    chosen = [flag for flag, given in (("--matrix", matrix), ("--markdown", markdown)) if given]
    _run_module("mainspring.core.commands", "backends", *chosen)


@main.command(context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure a model, offline, or a server, over HTTP: `bench --help`."""
    from mainspring.server.bench.cli import bench as benchmarks

    benchmarks.main(list(arguments), prog_name="mainspring bench")


@main.command()
@click.argument("model")
@engine_flags
def check(model: str, **flags: Any) -> None:
    """Print the start-up plan for MODEL and everything that would keep it from running, before anything is loaded."""
    import msgspec

    with startup_errors():
        config = engine_config(str(_source(model, flags["revision"]).path), flags)
    _run_module("mainspring.core.commands", "check", msgspec.json.encode(config).decode())


@main.command()
@click.argument("model")
@click.argument("out", type=click.Path())
@click.option("--method", type=click.Choice(["gptq", "awq", "rtn", "fp8"]), default="gptq", show_default=True)
@click.option(
    "--format", "layout", type=click.Choice(["compressed-tensors", "gptq"]), default="compressed-tensors",
    show_default=True,
)  # fmt: skip
@click.option("--bits", type=click.Choice(["4", "8"]), default="4", show_default=True)
@click.option("--group-size", type=int, default=128, show_default=True, help="-1: one scale an output channel.")
@click.option("--symmetric/--asymmetric", default=True, show_default=True)
@click.option("--calibration", metavar="FILE", help="A text like what the model will read, for gptq and awq.")
@click.option("--samples", type=POSITIVE, default=128, show_default=True, help="Pieces of the text at most.")
@click.option("--length", type=POSITIVE, default=512, show_default=True, help="Tokens of each.")
@click.option("--revision", default=None, help="Of a model on the hub.")
def quantize(model: str, out: str, revision: str | None, bits: str, **options: Any) -> None:
    """Write MODEL's weights in fewer bits to the directory OUT, a block of layers at a time."""
    import msgspec

    with startup_errors():
        path = str(_source(model, revision).path)
    request = {"model": path, "out": out, "bits": int(bits), **options}
    _run_module("mainspring.core.quantizing.command", msgspec.json.encode(request).decode())


@main.command(context_settings=_PASS_ON)
@click.argument("backend")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def conformance(backend: str, arguments: tuple[str, ...]) -> None:
    """Check BACKEND's ops and executor against the reference."""
    _run_module("mainspring.core.conformance", backend, *arguments)


@main.group()
def watermark() -> None:
    """Texts that carry a mark: requests ask for it with `watermark: true`."""


@watermark.command()
@click.argument("model")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
@click.option("--watermark-gamma", "gamma", type=click.FloatRange(0.01, 0.99), default=0.5, envvar="WATERMARK_GAMMA")
@click.option("--watermark-key", "key", type=click.IntRange(0, 2**31 - 1), envvar="WATERMARK_KEY")
@click.option(
    "--threshold", type=float, default=4.0, show_default=True, help="The z-score above which a text is marked."
)
@click.option("--revision", help="Branch, tag or commit of a hub model.")
def detect(model: str, file: TextIO, gamma: float, key: int | None, threshold: float, revision: str | None) -> None:
    """Tell whether the text in FILE (or standard input) is marked. Of MODEL only the tokenizer is read.

    Exits with 1 when it is not.
    """
    import msgspec

    from mainspring.server.text.tokenizer import load_tokenizer
    from mainspring.server.watermark import DEFAULT_KEY
    from mainspring.server.watermark import detect as detect_mark

    with startup_errors():
        tokenizer = load_tokenizer(_source(model, revision).path)
    tokens = tokenizer.encode(file.read(), add_special_tokens=False)
    found = detect_mark(tokens, gamma=gamma, key=DEFAULT_KEY if key is None else key)
    marked = found.detected(threshold)
    click.echo(msgspec.json.encode({"watermarked": marked, **asdict(found)}).decode())
    sys.exit(0 if marked else 1)


def _source(model: str | None, revision: str | None, hub_cache: Path | None = None) -> ModelSource:
    from mainspring.server.source import resolve

    if model is None:
        raise click.UsageError("name a model: `mainspring serve MODEL` (try `demo`)")
    return resolve(model, revision, hub_cache)


def _find_device(backend: str, index: int) -> None:
    """Asks for a device that was named before the web server and the tokenizer are loaded: a vendor's missing software
    is then said at once. Raises `StartupError`.
    """
    from mainspring.core.plugins import load_plugins

    if backend != "auto":
        load_plugins().choose(backend, index)


def _run_module(module: str, *arguments: str) -> NoReturn:
    """Become `python -m module`, so that nothing of the core's computing side is imported into the server."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # our own interpreter


if __name__ == "__main__":
    main()

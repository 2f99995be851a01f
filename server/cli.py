"""The command line. Every flag also reads an environment variable, by TGI's rule: UPPER_SNAKE_CASE of its name.

Nothing heavy is imported at the top: `--help` must not wait for a web server or a tokenizer. `backends`, `check` and
`conformance` belong to the core and run in its own modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

import mainspring
from mainspring.core.errors import RequestError, StartupError
from mainspring.server.tgi.flags import foreign_flags, notes

if TYPE_CHECKING:
    from mainspring.core.config import EngineConfig
    from mainspring.server.app import ServerOptions
    from mainspring.server.certificate import Certificate
    from mainspring.server.lifecycle import RequestLimits
    from mainspring.server.source import ModelSource

EXIT_STARTUP = 71
_Command = TypeVar("_Command", bound=Callable[..., Any])
_POSITIVE = click.IntRange(min=1)


def flag(*names: str, envvar: str | None = None, **options: Any) -> Callable[[_Command], _Command]:
    """A click option that also reads the environment variables named like its long names, the first one first."""
    long = [name.removeprefix("--").partition("/")[0] for name in names if name.startswith("--")]
    variables = [envvar] if envvar else [name.replace("-", "_").upper() for name in long]
    return click.option(*names, envvar=variables, show_envvar=True, show_default=True, **options)


def engine_flags(command: _Command) -> _Command:
    """The flags that end in an `EngineConfig`; TGI's name where TGI has one."""
    for option in reversed(_ENGINE_FLAGS):
        command = option(command)
    return command


_ENGINE_FLAGS = [
    flag("--backend", default="auto", help="What computes; `mainspring backends` lists them."),
    flag("--device-index", default=0, type=click.IntRange(min=0), help="Which of the backend's devices."),
    flag("--revision", help="Branch, tag or commit of a hub model."),
    flag("--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), default="auto"),
    flag(
        "--kv-cache-dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16", "fp8_e4m3fn", "fp8_e5m2", "int8"]),
        default="auto",
    ),
    flag("--quantize", help="Quantize weights while loading, by scheme name."),
    flag("--load-format", type=click.Choice(["auto", "dummy"]), default="auto", help="`dummy`: random weights."),
    flag("--max-total-tokens", type=_POSITIVE, help="Tokens of a sequence, prompt and output.  [default: the model's]"),
    flag("--max-batch-size", type=_POSITIVE, default=256, help="Sequences that run at once."),
    flag(
        "--max-batch-total-tokens",
        type=_POSITIVE,
        help="Tokens that all sequences together may hold.  [default: what memory leaves]",
    ),
    flag("--max-batch-prefill-tokens", type=_POSITIVE, default=2048, help="Tokens computed in one step."),
    flag("--max-prefill-chunk", type=_POSITIVE, help="Tokens of one prompt computed in one step."),
    flag("--max-queued-requests", type=_POSITIVE, default=1024, help="Sequences that may wait; above it: 429."),
    flag("--max-queued-tokens", type=_POSITIVE, default=4_000_000, help="Prompt tokens that may wait; above it: 429."),
    flag("--block-size", type=_POSITIVE, help="Tokens a KV block holds.  [default: the backend's]"),
    flag("--num-blocks", type=_POSITIVE, help="KV blocks.  [default: what memory leaves]"),
    flag(
        "--memory-fraction",
        "--cuda-memory-fraction",
        type=click.FloatRange(0, 1, min_open=True),
        help="Share of the device's memory to use.",
    ),
    flag("--prefix-caching/--no-prefix-caching", default=True, help="Reuse the KV cache of equal prompt beginnings."),
    flag("--seed", default=0, type=click.IntRange(min=0), help="Of requests that name none."),
    flag("--threads", type=_POSITIVE, help="Host threads for backends that compute on the host.  [default: all cores]"),
    flag("--compile/--no-compile", default=False, help="Trade start-up time for speed where the backend can."),
    flag("--backend-option", multiple=True, metavar="KEY=VALUE", help="Passed to the backend; may be repeated."),
]


def serve_flags(command: _Command) -> _Command:
    """The flags of the HTTP server; TGI's name where TGI has one."""
    for option in reversed(_SERVE_FLAGS):
        command = option(command)
    return command


_FILE = click.Path(dir_okay=False, path_type=Path)
_SERVE_FLAGS = [
    flag("--model-id", help="MODEL, as TGI's launcher takes it."),
    flag("--tokenizer-config-path", type=_FILE, help="Read this tokenizer_config.json instead of the model's."),
    flag(
        "--huggingface-hub-cache",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where downloads are kept.  [default: the hub library's place]",
    ),
    # HOST and HOSTNAME are set by shells and containers to the machine's own name
    flag("--host", "--hostname", envvar="MAINSPRING_HOST", default="127.0.0.1", help="Where to listen."),
    flag("--port", "-p", type=click.IntRange(0, 65535), default=3000, help="0 takes a free one."),
    flag("--api-key", multiple=True, metavar="KEY", help="Answer only requests that bring it; may be repeated."),
    flag("--insecure/--no-insecure", default=False, help="Listen to other machines without a key."),
    flag("--private-metrics/--no-private-metrics", default=False, help="/metrics and /info need the key too."),
    flag(
        "--cors-allow-origin",
        multiple=True,
        metavar="ORIGIN",
        help="Let web pages of this origin call the server, `*` of any; may be repeated.",
    ),
    flag("--ssl-certfile", type=_FILE, help="PEM file of the certificate: serve HTTPS."),
    flag("--ssl-keyfile", type=_FILE, help="PEM file of its private key."),
    flag(
        "--max-input-tokens",
        "--max-input-length",
        type=_POSITIVE,
        help="Tokens of a prompt.  [default: total - 1]",
    ),
    flag(
        "--max-concurrent-requests",
        type=_POSITIVE,
        help="Requests in progress; above it: 429.  [default: the queue's]",
    ),
    flag(
        "--max-request-tokens",
        type=_POSITIVE,
        help="Prompts x sequences x tokens of one request.  [default: 8 full contexts]",
    ),
    flag("--max-best-of", type=_POSITIVE, default=2),
    flag("--max-stop-sequences", type=_POSITIVE, default=4),
    flag("--max-top-n-tokens", type=click.IntRange(min=0), default=5),
    flag("--max-client-batch-size", type=_POSITIVE, default=4, help="Prompts in one /v1/completions request."),
    flag("--max-connections-per-peer", type=_POSITIVE, help="Connections of one address.  [default: any number]"),
    flag("--validation-workers", type=_POSITIVE, default=2, help="Threads that template and tokenise."),
    flag("--payload-limit", type=_POSITIVE, default=2_000_000, help="Bytes of a request body."),
    flag(
        "--graceful-termination-timeout", "-g", type=click.FloatRange(min=0), default=90.0, help="Seconds of a drain."
    ),
    flag("--json-output/--no-json-output", default=False, help="Log JSON lines, one a request among them."),
    flag("--log-level", type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False), default="info"),
    flag("--access-log/--no-access-log", default=False, help="Log a line a request."),
    flag("--vllm-metric-names/--no-vllm-metric-names", default=False, help="Metrics also under `vllm:` names."),
    flag("--compute-type", help="For the header x-compute-type.  [default: the backend]"),
    click.option("--env", "-e", is_flag=True, help="Print the versions of everything that matters, and exit."),
]


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

    from mainspring.server import logs
    from mainspring.server.app import serve as serve_http

    logs.configure(
        level=flags["log_level"],
        as_json=flags["json_output"],
        requests=flags["access_log"] or flags["json_output"],
    )
    with _startup_errors():
        options = _server_options(model or flags["model_id"], flags, notes(context))
        code = asyncio.run(serve_http(options))
    sys.exit(code)


def _server_options(model: str | None, flags: Mapping[str, Any], found_notes: Sequence[str]) -> ServerOptions:
    from mainspring.server.app import Access, ServerOptions
    from mainspring.server.auth import KeyRing
    from mainspring.server.connection import ConnectionLimits

    source = _source(model, flags["revision"], flags["huggingface_hub_cache"])
    return ServerOptions(
        source=replace(source, tokenizer_config=flags["tokenizer_config_path"]),
        engine=_engine_config(str(source.path), flags),
        host=flags["host"],
        port=flags["port"],
        access=Access(
            keys=KeyRing(flags["api_key"]),
            private_metrics=flags["private_metrics"],
            insecure=flags["insecure"],
            origins=flags["cors_allow_origin"],
        ),
        certificate=_certificate(flags["ssl_certfile"], flags["ssl_keyfile"]),
        limits=_request_limits(flags),
        connections=ConnectionLimits(per_peer=flags["max_connections_per_peer"]),
        drain_seconds=flags["graceful_termination_timeout"],
        vllm_metric_names=flags["vllm_metric_names"],
        compute_type=flags["compute_type"],
        notes=tuple(found_notes),
    )


def _request_limits(flags: Mapping[str, Any]) -> RequestLimits:
    from mainspring.server.lifecycle import RequestLimits

    return RequestLimits(
        max_input_tokens=flags["max_input_tokens"],
        max_concurrent_requests=flags["max_concurrent_requests"],
        max_request_tokens=flags["max_request_tokens"],
        max_best_of=flags["max_best_of"],
        max_stop_sequences=flags["max_stop_sequences"],
        max_top_n_tokens=flags["max_top_n_tokens"],
        max_client_batch_size=flags["max_client_batch_size"],
        validation_workers=flags["validation_workers"],
        payload_limit=flags["payload_limit"],
    )


def _certificate(file: Path | None, key_file: Path | None) -> Certificate | None:
    from mainspring.server.certificate import Certificate

    if (file is None) != (key_file is None):
        raise click.UsageError("--ssl-certfile and --ssl-keyfile go together")
    return None if file is None or key_file is None else Certificate(file, key_file)


@main.command()
@click.argument("model")
@click.argument("prompt")
@click.option("--max-tokens", type=_POSITIVE, default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--chat/--no-chat", default=False, help="Put the prompt through the model's chat template.")
@engine_flags
def generate(model: str, prompt: str, **flags: Any) -> None:
    """Continue PROMPT with MODEL and print the text as it comes."""
    from mainspring.core.request import SamplingParams
    from mainspring.server.offline import LLM
    from mainspring.server.progress import ProgressBars

    config = _engine_config(model, flags)
    params = SamplingParams(max_tokens=flags["max_tokens"], temperature=flags["temperature"])
    with _startup_errors(), LLM.of(config, on_progress=ProgressBars(sys.stderr).show) as llm:
        start = llm.chat_prompt([{"role": "user", "content": prompt}]) if flags["chat"] else prompt
        for text in llm.stream(start, params):
            click.echo(text, nl=False)
    click.echo()


_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@main.command()
def backends() -> None:
    """List the backends and which of them can run here, or why not."""
    _run_module("mainspring.core.commands", "backends")


@main.command()
@click.argument("model")
@engine_flags
def check(model: str, **flags: Any) -> None:
    """Print the start-up plan for MODEL and everything that would keep it from running, before anything is loaded."""
    import msgspec

    with _startup_errors():
        config = _engine_config(str(_source(model, flags["revision"]).path), flags)
    _run_module("mainspring.core.commands", "check", msgspec.json.encode(config).decode())


@main.command(context_settings=_PASS_ON)
@click.argument("backend")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def conformance(backend: str, arguments: tuple[str, ...]) -> None:
    """Check BACKEND's ops and executor against the reference."""
    _run_module("mainspring.core.conformance", backend, *arguments)


@contextmanager
def _startup_errors() -> Iterator[None]:
    """Print every reason why it cannot start, and exit with the code for that."""
    try:
        yield
    except StartupError as error:
        for reason in error.reasons:
            click.echo(f"mainspring: {reason}", err=True)
        sys.exit(EXIT_STARTUP)
    except RequestError as error:
        raise click.ClickException(error.message) from error


def _source(model: str | None, revision: str | None, hub_cache: Path | None = None) -> ModelSource:
    from mainspring.server.source import resolve

    if model is None:
        raise click.UsageError("name a model: `mainspring serve MODEL` (try `demo`)")
    return resolve(model, revision, hub_cache)


def _engine_config(model: str, flags: Mapping[str, Any]) -> EngineConfig:
    from mainspring.core.config import EngineConfig

    kv_dtype = flags["kv_cache_dtype"]
    return EngineConfig(
        model=model,
        revision=flags["revision"],
        backend=flags["backend"],
        device_index=flags["device_index"],
        dtype=flags["dtype"],
        kv_dtype=kv_dtype.replace("fp8", "float8"),
        quantize=flags["quantize"],
        load_format=flags["load_format"],
        max_length=flags["max_total_tokens"],
        max_sequences=flags["max_batch_size"],
        max_batch_tokens=flags["max_batch_prefill_tokens"],
        max_prefill_chunk=flags["max_prefill_chunk"],
        max_waiting_requests=flags["max_queued_requests"],
        max_waiting_tokens=flags["max_queued_tokens"],
        block_size=flags["block_size"],
        num_blocks=flags["num_blocks"],
        max_cache_tokens=flags["max_batch_total_tokens"],
        memory_fraction=flags["memory_fraction"],
        prefix_caching=flags["prefix_caching"],
        seed=flags["seed"],
        threads=flags["threads"],
        compile=flags["compile"],
        backend_options=_backend_options(flags["backend_option"]),
    )


def _backend_options(pairs: Sequence[str]) -> dict[str, str]:
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--backend-option")
        options[key] = value
    return options


def _run_module(module: str, *arguments: str) -> NoReturn:
    """Become `python -m module`, so that nothing of the core's computing side is imported into the server."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # our own interpreter


if __name__ == "__main__":
    main()

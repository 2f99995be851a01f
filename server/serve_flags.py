"""The flags of the HTTP server, and what they say as `ServerOptions`; TGI's name where TGI has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mainspring.server.engine_flags import POSITIVE, Command, engine_config, flag

if TYPE_CHECKING:
    from mainspring.server.app import ServerOptions
    from mainspring.server.http.certificate import Certificate
    from mainspring.server.http.quota import Quota
    from mainspring.server.lifecycle import RequestLimits
    from mainspring.server.source import ModelSource


def serve_flags(command: Command) -> Command:
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
    flag("--api-key-file", type=_FILE, help="One key a line; read again on SIGHUP."),
    flag("--max-requests-per-key", type=POSITIVE, help="In progress of one key; above it: 429.  [default: any number]"),
    flag("--max-requests-per-minute", type=POSITIVE, help="Of a key; above it: 429.  [default: any number]"),
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
    flag("--max-input-tokens", type=POSITIVE, help="Tokens of a prompt.  [default: total - 1]"),
    flag("--max-input-length", type=POSITIVE, help="Older name of --max-input-tokens."),
    flag(
        "--max-concurrent-requests",
        type=POSITIVE,
        help="Requests in progress; above it: 429.  [default: the queue's]",
    ),
    flag(
        "--max-request-tokens",
        type=POSITIVE,
        help="Prompts x sequences x tokens of one request.  [default: 8 full contexts]",
    ),
    flag("--max-best-of", type=POSITIVE, default=2),
    flag("--max-stop-sequences", type=POSITIVE, default=4),
    flag("--max-top-n-tokens", type=click.IntRange(min=0), default=5),
    flag("--max-client-batch-size", type=POSITIVE, default=4, help="Prompts in one /v1/completions request."),
    flag("--max-connections-per-peer", type=POSITIVE, help="Connections of one address.  [default: any number]"),
    flag("--validation-workers", type=POSITIVE, default=2, help="Threads that template and tokenise."),
    flag("--payload-limit", type=POSITIVE, default=2_000_000, help="Bytes of a request body."),
    flag(
        "--graceful-termination-timeout", "-g", type=click.FloatRange(min=0), default=90.0, help="Seconds of a drain."
    ),
    flag(
        "--pre-stop-seconds",
        type=click.FloatRange(min=0),
        default=0.0,
        help="Seconds between SIGTERM and the drain in which the server is not ready but still takes requests.",
    ),
    flag("--json-output/--no-json-output", default=False, help="Log JSON lines, one a request among them."),
    flag("--log-level", type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False), default="info"),
    flag("--otlp-endpoint", help="Send a trace of every request there, by OTLP over gRPC (extra `otel`)."),
    flag("--otlp-service-name", default="mainspring", help="The name that traces are sent under."),
    flag("--access-log/--no-access-log", default=False, help="Log a line a request."),
    flag("--vllm-metric-names/--no-vllm-metric-names", default=False, help="Metrics also under `vllm:` names."),
    flag(
        "--tool-call-parser",
        metavar="NAME",
        help="How the model writes calls.  [default: as its template says]",
    ),
    flag("--reasoning-parser", metavar="NAME", help="How it writes thoughts; `none` leaves them in.  [default: too]"),
    flag(
        "--grammar-engine",
        metavar="NAME",
        default="auto",
        help="What reads grammars: llguidance, xgrammar, or auto for the first that is installed.",
    ),
    flag("--disable-grammar-support/--no-disable-grammar-support", default=False, help="Refuse grammars."),
    flag(
        "--watermark-gamma",
        type=click.FloatRange(0.01, 0.99),
        help="Share of the vocabulary that `watermark` favours.  [default: 0.5]",
    ),
    flag("--watermark-delta", type=click.FloatRange(0, 100), help="What it adds to their scores.  [default: 2]"),
    flag("--watermark-key", type=click.IntRange(0, 2**31 - 1), help="Who knows it can detect, and forge, the mark."),
    flag("--compute-type", help="For the header x-compute-type.  [default: the backend]"),
    click.option("--env", "-e", is_flag=True, help="Print the versions of everything that matters, and exit."),
]


def server_options(source: ModelSource, flags: Mapping[str, Any], notes: Sequence[str]) -> ServerOptions:
    """Everything that `serve` was told. Raises click.UsageError for flags that contradict one another."""
    from mainspring.server.answer_formats import AnswerFormats
    from mainspring.server.app import ServerOptions, Traces
    from mainspring.server.http.access import Access
    from mainspring.server.http.auth import KeyRing
    from mainspring.server.http.connection import ConnectionLimits
    from mainspring.server.source import located

    return ServerOptions(
        source=replace(source, tokenizer_config=flags["tokenizer_config_path"]),
        engine=located(engine_config(str(source.path), flags), source, flags["huggingface_hub_cache"]),
        host=flags["host"],
        port=flags["port"],
        access=Access(
            keys=KeyRing(flags["api_key"], flags["api_key_file"]),
            private_metrics=flags["private_metrics"],
            insecure=flags["insecure"],
            origins=flags["cors_allow_origin"],
            quota=_quota(flags),
        ),
        certificate=_certificate(flags["ssl_certfile"], flags["ssl_keyfile"]),
        limits=_request_limits(flags),
        connections=ConnectionLimits(per_peer=flags["max_connections_per_peer"]),
        drain_seconds=flags["graceful_termination_timeout"],
        pre_stop_seconds=flags["pre_stop_seconds"],
        vllm_metric_names=flags["vllm_metric_names"],
        compute_type=flags["compute_type"],
        grammar_engine=None if flags["disable_grammar_support"] else flags["grammar_engine"],
        formats=AnswerFormats(flags["tool_call_parser"], flags["reasoning_parser"]),
        processor_defaults={"watermark": _given(flags, "watermark_")},
        traces=Traces(flags["otlp_endpoint"], flags["otlp_service_name"]) if flags["otlp_endpoint"] else None,
        notes=tuple(notes),
    )


def _given(flags: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The flags of this prefix that were set, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in flags.items()
        if name.startswith(prefix) and value is not None
    }


def _quota(flags: Mapping[str, Any]) -> Quota:
    from mainspring.server.http.quota import Quota

    quota = Quota(at_once=flags["max_requests_per_key"], a_minute=flags["max_requests_per_minute"])
    if quota and not (flags["api_key"] or flags["api_key_file"]):
        raise click.UsageError(
            "--max-requests-per-key and --max-requests-per-minute are each key's: give clients keys with --api-key"
        )
    return quota


def _request_limits(flags: Mapping[str, Any]) -> RequestLimits:
    from mainspring.server.lifecycle import RequestLimits

    return RequestLimits(
        max_input_tokens=_max_input_tokens(flags["max_input_tokens"], flags["max_input_length"]),
        max_concurrent_requests=flags["max_concurrent_requests"],
        max_request_tokens=flags["max_request_tokens"],
        max_best_of=flags["max_best_of"],
        max_stop_sequences=flags["max_stop_sequences"],
        max_top_n_tokens=flags["max_top_n_tokens"],
        max_client_batch_size=flags["max_client_batch_size"],
        validation_workers=flags["validation_workers"],
        payload_limit=flags["payload_limit"],
    )


def _max_input_tokens(tokens: int | None, length: int | None) -> int | None:
    if tokens is not None and length is not None:
        raise click.UsageError(
            f"both --max-input-tokens ({tokens}) and --max-input-length ({length}) are set; keep --max-input-tokens, "
            "the other is its older name"
        )
    return tokens if tokens is not None else length


def _certificate(file: Path | None, key_file: Path | None) -> Certificate | None:
    from mainspring.server.http.certificate import Certificate

    if (file is None) != (key_file is None):
        raise click.UsageError("--ssl-certfile and --ssl-keyfile go together")
    return None if file is None or key_file is None else Certificate(file, key_file)

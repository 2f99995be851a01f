"""`mainspring bench ...`: flags in, a table on standard output, JSON and a picture where asked for."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from mainspring.server.bench import report
from mainspring.server.bench.dialects import DIALECTS
from mainspring.server.bench.summary import Objectives
from mainspring.server.engine_flags import engine_config, engine_flags
from mainspring.server.startup_errors import startup_errors

_Command = TypeVar("_Command", bound=Callable[..., Any])
_POSITIVE = click.IntRange(min=1)
_FILE = click.Path(dir_okay=False, path_type=Path)
_DATASET = click.Path(exists=True, dir_okay=False, path_type=Path)


def _lengths(input_tokens: int, output_tokens: int | None) -> Callable[[_Command], _Command]:
    """The flags that all three commands share."""

    def add(command: _Command) -> _Command:
        default = True if output_tokens is not None else "128, or the file's"
        for option in (
            click.option("--json", "json_file", type=_FILE, help="Write the results there."),
            click.option("--output-tokens", type=_POSITIVE, default=output_tokens, show_default=default),
            click.option("--input-tokens", type=_POSITIVE, default=input_tokens, show_default=True),
        ):
            command = option(command)
        return command

    return add


@click.group()
def bench() -> None:
    """Measure a model or a server."""


@bench.command()
@click.argument("model")
@click.option("--batch-size", type=_POSITIVE, default=8, show_default=True, help="Sequences that start together.")
@click.option("--runs", type=_POSITIVE, default=10, show_default=True)
@click.option("--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Further runs, not counted.")
@_lengths(32, 128)
@engine_flags
def latency(model: str, **flags: Any) -> None:
    """Time batches of MODEL from start to end, one after another, offline."""
    from mainspring.server.bench.offline import measure_latency
    from mainspring.server.bench.prompts import random_ids
    from mainspring.server.offline import LLM

    with startup_errors(), LLM.of(engine_config(model, flags)) as llm, _bar() as bar:
        size, num_batches = flags["batch_size"], flags["warmup"] + flags["runs"]
        lengths = flags["input_tokens"], flags["output_tokens"]
        prompts = random_ids(size * num_batches, *lengths, llm.ready.vocab_size, flags["seed"])
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        task = bar.add_task("latency", total=num_batches)
        result = measure_latency(llm, batches, flags["warmup"], lambda: bar.advance(task))
    rows = [
        (name, f"{getattr(result.e2e, statistic):.1f} ms")
        for name, statistic in (("mean", "mean"), ("p50", "p50"), ("p90", "p90"), ("p99", "p99"))
    ]
    rows.append(("p50 an output token", f"{1000 * result.seconds_per_token:.3f} ms"))
    title = f"{result.runs} batches of {size} x {lengths[0]} + {lengths[1]} tokens on {result.device}"
    report.print_rows(Console(), title, rows)
    _write(flags["json_file"], {"latency": result})


@bench.command()
@click.argument("model")
@click.option("--requests", type=_POSITIVE, default=256, show_default=True)
@click.option("--dataset", type=_DATASET, help="JSON in ShareGPT's form instead of random prompts.")
@_lengths(128, None)
@engine_flags
def throughput(model: str, **flags: Any) -> None:
    """Run many requests of MODEL at once, offline."""
    from mainspring.server.bench.offline import measure_throughput
    from mainspring.server.bench.prompts import conversations, random_ids
    from mainspring.server.offline import LLM

    count, output_tokens = flags["requests"], flags["output_tokens"]
    with startup_errors(), LLM.of(engine_config(model, flags)) as llm:
        if flags["dataset"]:
            prompts = conversations(flags["dataset"], count, output_tokens, flags["seed"])
        else:
            prompts = random_ids(
                count, flags["input_tokens"], output_tokens or 128, llm.ready.vocab_size, flags["seed"]
            )
        result = measure_throughput(llm, prompts)
    rows = [
        ("requests", str(result.requests)),
        ("seconds", f"{result.seconds:.2f}"),
        ("requests/s", f"{result.requests_per_second:.2f}"),
        ("output tokens/s", f"{result.output_tokens_per_second:.1f}"),
        ("total tokens/s", f"{result.total_tokens_per_second:.1f}"),
    ]
    report.print_rows(Console(), f"throughput on {result.device}", rows)
    _write(flags["json_file"], {"throughput": result})


@bench.command()
@click.option("--url", "urls", multiple=True, required=True, metavar="[NAME=]URL", help="A peer; may be repeated.")
@click.option("--api", type=click.Choice(sorted(DIALECTS)), default="chat", show_default=True, help="Its protocol.")
@click.option("--model", help="Its model's name.  [default: the first that the server names]")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Sent as a bearer token.")
@click.option("--requests", type=_POSITIVE, default=100, show_default=True)
@click.option(
    "--rate", "rates", type=float, multiple=True, help="Requests a second (Poisson); a run each.  [all at once]"
)
@click.option("--max-concurrency", type=_POSITIVE, help="Requests in progress at most; waiting counts as latency.")
@click.option("--dataset", type=_DATASET, help="JSON in ShareGPT's form instead of prompts of --input-tokens.")
@click.option(
    "--warmup", type=click.IntRange(min=0), default=4, show_default=True, help="Requests before, not counted."
)
@click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds for one answer.")
@click.option("--slo", "slos", multiple=True, metavar="ttft|tpot|e2e=MS", help="For goodput; may be repeated.")
@click.option("--field", "fields", multiple=True, metavar="KEY=JSON", help="Put into every request.")
@click.option("--ignore-eos/--no-ignore-eos", default=True, help="Ask OpenAI-speaking servers for full-length answers.")
@click.option("--seed", default=0, show_default=True, help="Of prompts and arrival times.")
@click.option("--plot", type=_FILE, help="Write a picture there; needs the extra `bench`.")
@_lengths(128, None)
def serve(urls: tuple[str, ...], **flags: Any) -> None:
    """Load servers over HTTP, each with the same requests, and compare them."""
    from mainspring.server.bench.plot import require_plots, save_plot
    from mainspring.server.bench.serve import Load, Place, measure

    objectives = _objectives(flags["slos"])
    fields = {"temperature": 0, **({"ignore_eos": True} if flags["ignore_eos"] else {}), **_fields(flags["fields"])}
    load = Load(
        requests=flags["requests"],
        rates=flags["rates"] or (math.inf,),
        input_tokens=flags["input_tokens"],
        output_tokens=flags["output_tokens"] or (None if flags["dataset"] else 128),
        dataset=flags["dataset"],
        max_concurrency=flags["max_concurrency"],
        warmup=flags["warmup"],
        timeout=flags["timeout"],
        seed=flags["seed"],
    )
    headers = {"authorization": f"Bearer {flags['api_key']}"} if flags["api_key"] else {}
    runs: list[report.ServeRun] = []
    with startup_errors(), _bar() as bar:
        if flags["plot"]:
            require_plots()
        for name, url in map(_named, urls):
            place = Place(name=name, url=url, api=flags["api"], model=flags["model"], headers=headers, extra=fields)
            task = bar.add_task(name, total=load.requests * len(load.rates))
            runs += asyncio.run(measure(place, load, objectives, partial(bar.advance, task)))
    report.print_runs(Console(), runs)
    _write(flags["json_file"], {"load": load, "objectives": objectives, "runs": runs})
    if flags["plot"]:
        save_plot(runs, flags["plot"])


def _named(url: str) -> tuple[str, str]:
    name, separator, rest = url.partition("=")
    named = (name, rest) if separator and "/" not in name else (url, url)
    if not named[1].startswith(("http://", "https://")):
        raise click.BadParameter(f"{named[1]!r} begins with neither http:// nor https://", param_hint="--url")
    return named


def _objectives(slos: tuple[str, ...]) -> Objectives:
    limits = {}
    for slo in slos:
        measure, _, text = slo.partition("=")
        if measure not in ("ttft", "tpot", "e2e") or not text.replace(".", "", 1).isdecimal():
            raise click.BadParameter(f"{slo!r} is not ttft, tpot or e2e = milliseconds", param_hint="--slo")
        limits[measure] = float(text)
    return Objectives(**limits)


def _fields(pairs: tuple[str, ...]) -> dict[str, Any]:
    fields = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            fields[key] = json.loads(text)
        except ValueError as error:
            raise click.BadParameter(f"{pair!r} is not KEY=JSON", param_hint="--field") from error
    return fields


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal, transient=True)


def _write(file: Path | None, results: dict[str, Any]) -> None:
    if file is not None:
        content = msgspec.json.encode({"environment": report.environment(), **results}, enc_hook=str)
        file.write_bytes(msgspec.json.format(content, indent=2) + b"\n")

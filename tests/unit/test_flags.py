"""Every flag of TGI's launcher: taken, taken with a note, or refused with the way out; by name and by variable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mainspring.core.config import EngineConfig
from mainspring.core.errors import EXIT_STARTUP
from mainspring.server import app, cli
from mainspring.server.app import ServerOptions
from mainspring.server.telemetry import logs
from mainspring.server.tgi.flags import FOREIGN_FLAGS
from tests.support.model_directory import write_tiny_model
from tests.support.tgi_rows import ROWS, tgi

LAUNCHER = {row.removeprefix("3 ") for row in ROWS if row.startswith("3 --")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[ServerOptions]:
    """What `serve` would serve by; nothing is started."""
    seen: list[ServerOptions] = []

    async def record(given: ServerOptions) -> int:
        seen.append(given)
        return 0

    monkeypatch.setattr(app, "serve", record)
    return seen


def serve(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(cli.main, ["serve", *arguments], env=variables)


def variable(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_").upper()


# How each flag that works is given, where it goes, and what it is then.
SUPPORTED: list[tuple[str, str, str, Any]] = [
    ("--revision", "abc", "engine.revision", "abc"),
    ("--validation-workers", "3", "limits.validation_workers", 3),
    ("--quantize", "int8", "engine.quantize", "int8"),
    ("--speculate", "4", "engine.speculate", 4),
    ("--dtype", "bfloat16", "engine.dtype", "bfloat16"),
    ("--kv-cache-dtype", "fp8_e4m3fn", "engine.kv_dtype", "float8_e4m3fn"),
    ("--max-concurrent-requests", "7", "limits.max_concurrent_requests", 7),
    ("--max-best-of", "3", "limits.max_best_of", 3),
    ("--max-stop-sequences", "5", "limits.max_stop_sequences", 5),
    ("--max-top-n-tokens", "6", "limits.max_top_n_tokens", 6),
    ("--max-input-tokens", "100", "limits.max_input_tokens", 100),
    ("--max-input-length", "100", "limits.max_input_tokens", 100),
    ("--max-total-tokens", "200", "engine.max_length", 200),
    ("--max-batch-prefill-tokens", "300", "engine.max_batch_tokens", 300),
    ("--max-batch-total-tokens", "400", "engine.max_cache_tokens", 400),
    ("--max-batch-size", "8", "engine.max_sequences", 8),
    ("--num-shard", "2", "engine.num_shard", 2),
    ("--port", "81", "port", 81),
    ("--cuda-memory-fraction", "0.5", "engine.memory_fraction", 0.5),
    ("--cors-allow-origin", "https://a.example", "access.origins", ("https://a.example",)),
    ("--max-client-batch-size", "9", "limits.max_client_batch_size", 9),
    ("--payload-limit", "1000", "limits.payload_limit", 1000),
    ("--graceful-termination-timeout", "12", "drain_seconds", 12.0),
    ("--otlp-endpoint", "http://collector:4317", "traces.endpoint", "http://collector:4317"),
    ("--tokenizer-config-path", "/a/b.json", "source.tokenizer_config", Path("/a/b.json")),
]
ELSEWHERE = {
    "--otlp-service-name", "--sharded", "--model-id", "--hostname", "--api-key", "--json-output", "--env",
    "--huggingface-hub-cache", "--disable-grammar-support", "--watermark-gamma", "--watermark-delta",
}  # fmt: skip
"""Flags that work and have a test of their own."""


def test_every_flag_of_the_launcher_is_in_one_list() -> None:
    lists = [{flag for flag, *_ in SUPPORTED}, ELSEWHERE, {flag.name for flag in FOREIGN_FLAGS}]
    assert set.union(*lists) == LAUNCHER
    assert sum(map(len, lists)) == len(LAUNCHER)


@pytest.mark.parametrize(
    ("flag", "value", "field", "expected"),
    [pytest.param(*row, marks=tgi(f"3 {row[0]}")) for row in SUPPORTED],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_supported_flags(
    model: str, options: list[ServerOptions], flag: str, value: str, field: str, expected: Any, by_variable: bool
) -> None:
    result = serve(model, **{variable(flag): value}) if by_variable else serve(model, flag, value)
    assert result.exit_code == 0, result.output
    found: Any = options[0]
    for part in field.split("."):
        found = getattr(found, part)
    assert found == expected
    assert options[0].notes == ()


@pytest.mark.parametrize("flag", [pytest.param(flag, marks=tgi(f"3 {flag.name}")) for flag in FOREIGN_FLAGS])
@pytest.mark.parametrize("by_variable", [False, True])
def test_foreign_flags(model: str, options: list[ServerOptions], flag: Any, by_variable: bool) -> None:
    value = "2"
    if by_variable:
        result = serve(model, **{flag.variable: "true" if flag.is_switch else value})
    else:
        result = serve(model, flag.name, *([] if flag.is_switch else [value]))
    if flag.refused:
        assert result.exit_code == 2
        assert flag.text in result.output
        assert not options
    else:
        assert result.exit_code == 0, result.output
        shown = flag.name if flag.is_switch else f"{flag.name} {value}"
        assert options[0].notes == (f"{shown} has no effect: {flag.text}",)


@pytest.mark.parametrize("flag", [flag for flag in FOREIGN_FLAGS if flag.harmless or flag.is_switch])
def test_values_that_ask_for_nothing_pass_without_a_word(model: str, options: list[ServerOptions], flag: Any) -> None:
    for value in flag.harmless or ("false",):
        result = serve(model, **{flag.variable: value})
        assert (result.exit_code, options[-1].notes) == (0, ()), result.output


@tgi("3 --max-input-tokens", "3 --max-input-length")
def test_two_names_of_one_limit_are_refused_together(model: str, options: list[ServerOptions]) -> None:
    by_flag = serve(model, "--max-input-tokens", "20", "--max-input-length", "30")
    by_variable = serve(model, "--max-input-tokens", "20", MAX_INPUT_LENGTH="30")
    for result in (by_flag, by_variable):
        assert result.exit_code == 2
        assert "--max-input-tokens (20) and --max-input-length (30)" in " ".join(result.output.split())
    assert not options


def test_a_launchers_command_line_as_it_is(model: str, options: list[ServerOptions]) -> None:
    line = (
        f"--model-id {model} --num-shard 1 --port 8080 --hostname 127.0.0.1 --max-input-length 1000 "
        "--max-total-tokens 2000 --max-batch-prefill-tokens 4096 --cuda-graphs 1,2,4 --trust-remote-code -g 5"
    )
    assert serve(*line.split()).exit_code == 0
    (given,) = options
    assert (given.port, given.host, given.engine.max_length, given.drain_seconds) == (8080, "127.0.0.1", 2000, 5.0)
    assert len(given.notes) == 2


def test_stages_are_named_as_in_vllm(model: str, options: list[ServerOptions]) -> None:
    assert serve(model).exit_code == 0
    assert serve(model, "--pipeline-parallel-size", "3").exit_code == 0
    assert serve(model, "--num-shard", "2", PIPELINE_PARALLEL_SIZE="2").exit_code == 0
    assert [(given.engine.num_shard, given.engine.num_stages) for given in options] == [(1, 1), (1, 3), (2, 2)]
    assert serve(model, "--pipeline-parallel-size", "0").exit_code == 2


@tgi("3 --sharded")
def test_sharded_takes_all_devices_where_no_number_is_named(model: str, options: list[ServerOptions]) -> None:
    for flags in ((), ("--sharded", "false"), ("--sharded", "true"), ("--sharded", "true", "--num-shard", "2")):
        assert serve(model, *flags).exit_code == 0
    assert serve(model, SHARDED="true", NUM_SHARD="3").exit_code == 0
    assert [given.engine.num_shard for given in options] == [1, 1, None, 2, 3]
    refused = serve(model, "--sharded", "true", "--num-shard", "1")
    assert refused.exit_code == 2
    assert "1 is no sharding" in refused.output


@tgi("3 --model-id")
def test_model_by_argument_flag_and_variable(model: str, options: list[ServerOptions]) -> None:
    for result in (serve(model), serve("--model-id", model), serve(MODEL_ID=model)):
        assert result.exit_code == 0, result.output
    assert [given.engine for given in options] == [EngineConfig(model=model)] * 3


@tgi("3 --hostname")
def test_hostname_is_a_flag_and_not_the_containers_variable(model: str, options: list[ServerOptions]) -> None:
    serve(model, "--hostname", "0.0.0.0", HOSTNAME="box")
    serve(model, HOSTNAME="box", HOST="box")
    serve(model, MAINSPRING_HOST="::")
    assert [given.host for given in options] == ["0.0.0.0", "127.0.0.1", "::"]


@tgi("3 --api-key")
def test_api_keys(model: str, options: list[ServerOptions]) -> None:
    serve(model, "--api-key", "one", "--api-key", "two")
    serve(model, API_KEY="one two")
    for given in options:
        assert [given.access.keys.opens(f"Bearer {key}".encode()) for key in ("one", "two", "three")] == [1, 1, 0]
    assert not serve(model).exception
    assert not options[-1].access.keys


@tgi("3 --json-output")
def test_json_output(model: str, options: list[ServerOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(logs, "configure", lambda **choice: asked.append(choice))
    for result in (serve(model, "--json-output"), serve(model, JSON_OUTPUT="true"), serve(model)):
        assert result.exit_code == 0
    assert [choice["as_json"] for choice in asked] == [choice["requests"] for choice in asked] == [True, True, False]


@tgi("3 --env", "3 environment")
def test_env_prints_versions_and_starts_nothing(options: list[ServerOptions]) -> None:
    result = serve("--env")
    assert result.exit_code == 0
    assert re.search(r"^mainspring: \d", result.output, re.MULTILINE)
    assert re.search(r"^torch: \d", result.output, re.MULTILINE)
    assert not options


@tgi("3 --huggingface-hub-cache")
def test_hub_cache(tmp_path: Path, options: list[ServerOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(snapshot.name)
    write_tiny_model(snapshot)
    assert serve("owner/name", HUGGINGFACE_HUB_CACHE=str(tmp_path)).exit_code == 0
    assert Path(options[0].engine.model) == snapshot
    assert serve("owner/name", "--huggingface-hub-cache", str(tmp_path / "other")).exit_code == EXIT_STARTUP


@tgi("3 --otlp-service-name")
def test_traces_have_a_name(model: str, options: list[ServerOptions]) -> None:
    serve(model, "--otlp-endpoint", "http://a:1")
    serve(model, "--otlp-endpoint", "http://a:1", OTLP_SERVICE_NAME="mine")
    assert [given.traces and given.traces.service_name for given in options] == ["mainspring", "mine"]


def test_certificate_and_key_go_together(model: str, options: list[ServerOptions]) -> None:
    assert "go together" in serve(model, "--ssl-certfile", "a.pem").output
    assert serve(model, "--ssl-certfile", "a.pem", "--ssl-keyfile", "b.pem").exit_code == 0
    assert options[0].certificate is not None


@tgi("3 --watermark-gamma", "3 --watermark-delta")
@pytest.mark.parametrize("by_variable", [False, True])
def test_the_watermark_s_flags_are_its_processor_s_defaults(
    model: str, options: list[ServerOptions], by_variable: bool
) -> None:
    flags = {"--watermark-gamma": "0.25", "--watermark-delta": "3"}
    if by_variable:
        result = serve(model, **{variable(flag): value for flag, value in flags.items()})
    else:
        result = serve(model, *(word for pair in flags.items() for word in pair))
    assert result.exit_code == 0, result.output
    assert options[0].processor_defaults == {"watermark": {"gamma": 0.25, "delta": 3.0}}


def test_foreign_flags_are_not_in_the_help() -> None:
    shown = serve("--help").output
    assert not [flag.name for flag in FOREIGN_FLAGS if flag.name in shown.split()]

"""`mainspring bench` from end to end: against a server over HTTP, and offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mainspring.server.bench.cli import bench
from tests.server.conftest import RunningServer


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bench, arguments, catch_exceptions=False)


def results(*arguments: str, file: Path) -> Any:
    result = run(*arguments, "--json", str(file))
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text())


@pytest.mark.parametrize("api", ["chat", "completions", "tgi"])
def test_serve_measures_every_protocol(
    server: RunningServer, tmp_path: Path, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mainspring", "bench", "serve"])
    load = ("--api", api, "--requests", "6", "--input-tokens", "24", "--output-tokens", "9", "--warmup", "1")
    found = results(
        "serve", "--url", f"ours={server.url}", *load, "--rate", "200", "--slo", "e2e=60000", file=tmp_path / "r.json"
    )
    (one,) = found["runs"]
    summary = one["summary"]
    assert (one["peer"]["name"], one["peer"]["api"], one["rate"]) == ("ours", api, "200/s")
    assert (summary["requests"], summary["completed"], summary["errors"]) == (6, 6, {})
    assert summary["counted"]
    assert summary["output_tokens"] == 6 * 9
    assert summary["prompt_tokens"] == pytest.approx(6 * 24, rel=0.4)  # this vocabulary cuts words at random
    assert 0 < summary["ttft"]["p50"] <= summary["e2e"]["p50"]
    assert summary["good_share"] == 1.0
    assert len(one["samples"]["e2e"]) == 6
    assert found["environment"]["command"] == "mainspring bench serve"


def test_serve_compares_peers_and_rates_in_one_table(server: RunningServer) -> None:
    result = run("serve", "--url", f"a={server.url}", "--url", f"b={server.url}", "--rate", "500", "--rate", "inf",
                 "--api", "tgi", "--requests", "2", "--output-tokens", "3", "--warmup", "0")  # fmt: skip
    assert result.exit_code == 0, result.output
    for text in ("a, 500/s", "b, 500/s", "TTFT p99", "goodput", "2 (2)"):
        assert text in result.output


def test_prompts_with_one_beginning_come_from_the_prefix_cache(server: RunningServer, tmp_path: Path) -> None:
    load = ("--requests", "6", "--input-tokens", "200", "--output-tokens", "2", "--warmup", "0", "--rate", "5:50")
    arguments = ("serve", "--url", server.url, *load)
    apart = results(*arguments, file=tmp_path / "apart.json")["runs"][0]
    shared = results(*arguments, "--shared-tokens", "160", "--seed", "7", file=tmp_path / "shared.json")["runs"][0]
    assert apart["rate"] == "5 to 50/s"
    assert apart["summary"]["cached_tokens"] == 0
    assert shared["summary"]["cached_tokens"] >= 5 * 100


def test_a_table_for_a_page(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    peers = ("--url", f"a={server.url}", "--url", f"b={server.url}")
    load = ("--requests", "2", "--output-tokens", "3", "--warmup", "0", "--rate", "500", "--rate", "inf")
    assert run("serve", *peers, *load, "--markdown", str(file)).exit_code == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in file.read_text().splitlines()]
    names = [("500/s", "a"), ("500/s", "b"), ("all at once", "a"), ("all at once", "b")]
    assert [row[:3] for row in rows[2:6]] == [[rate, name, "2 of 2"] for rate, name in names]
    assert len({len(row) for row in rows[:6]}) == 1


def test_refusals_are_counted_by_their_text(server: RunningServer, tmp_path: Path) -> None:
    load = ("--api", "tgi", "--requests", "3", "--output-tokens", "100000", "--warmup", "0")
    found = results("serve", "--url", server.url, *load, file=tmp_path / "r.json")
    summary = found["runs"][0]["summary"]
    assert summary["completed"] == 0
    assert sum(summary["errors"].values()) == 3
    assert "422" in next(iter(summary["errors"]))


def test_nobody_there() -> None:
    result = run("serve", "--url", "http://127.0.0.1:9", "--model", "m")
    assert result.exit_code == 71
    assert "does not answer: cannot connect" in result.output


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--url", "ftp://x"), "neither http:// nor https://"),
        (("--url", "http://x", "--slo", "itl=5"), "is not ttft, tpot or e2e"),
        (("--url", "http://x", "--field", "top_k=five"), "is not KEY=JSON"),
        (("--url", "http://x", "--rate", "4:0"), "rates are above 0"),
        (("--url", "http://x", "--shared-tokens", "128"), "must be below --input-tokens 128"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], hint: str) -> None:
    result = run("serve", *arguments)
    assert result.exit_code == 2
    assert hint in result.output


def test_a_plot_without_matplotlib_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("serve", "--url", "http://127.0.0.1:9", "--plot", "x.png")
    assert result.exit_code == 71
    assert "mainspring[bench]" in result.output


def test_a_plot(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "plot.png"
    result = run("serve", "--url", server.url, "--requests", "4", "--output-tokens", "4", "--plot", str(file))
    assert result.exit_code == 0, result.output
    assert file.read_bytes().startswith(b"\x89PNG")


SIM = ("--backend", "sim", "--backend-option", "speed=0", "--input-tokens", "12", "--output-tokens", "5")


def test_latency(model_directory: Path, tmp_path: Path) -> None:
    arguments = ("latency", str(model_directory), *SIM, "--batch-size", "3", "--runs", "2", "--warmup", "1")
    found = results(*arguments, file=tmp_path / "r.json")["latency"]
    assert (found["batch_size"], found["input_tokens"], found["output_tokens"], found["runs"]) == (3, 12, 5, 2)
    assert found["seconds_per_token"] == pytest.approx(found["e2e"]["p50"] / 1000 / 5)
    assert found["device"] == "simulated ideal"


def test_throughput(model_directory: Path, tmp_path: Path) -> None:
    found = results("throughput", str(model_directory), *SIM, "--requests", "7", file=tmp_path / "r.json")["throughput"]
    assert (found["requests"], found["prompt_tokens"], found["output_tokens"]) == (7, 84, 35)
    assert found["total_tokens_per_second"] == pytest.approx(119 / found["seconds"])

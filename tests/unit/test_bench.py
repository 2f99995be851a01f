"""What `mainspring bench` computes: arrivals, events, percentiles, goodput, prompts."""

from __future__ import annotations

import asyncio
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.server.bench.arrivals import Rate, arrival_times
from mainspring.server.bench.dialects import DIALECTS, Reading, read_event
from mainspring.server.bench.events import EventReader
from mainspring.server.bench.http_client import Server
from mainspring.server.bench.load import Target
from mainspring.server.bench.outcome import Outcome
from mainspring.server.bench.prompts import Prompt, Sharing, conversations, random_ids, random_words, words_for
from mainspring.server.bench.summary import Objectives, percentile, summarize

STREAM = (
    b': hello\r\ndata: {"a": 1}\r\n\r\ndata:{"b":2}\n\n'
    b"event: x\nid: 7\ndata: first\ndata: second\n\n\n\ndata: [DONE]\r\r"
)
EVENTS = [b'{"a": 1}', b'{"b":2}', b"first\nsecond", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    reader = EventReader()
    bounds = [0, *sorted(cuts), len(STREAM)]
    found = [event for begin, end in pairwise(bounds) for event in reader.feed(STREAM[begin:end])]
    found += reader.feed(b"\n")  # decides that the last carriage return was a line of its own
    assert found == EVENTS


def test_an_unfinished_event_is_not_told() -> None:
    assert EventReader().feed(b"data: 1\n") == []


def test_arrivals_are_a_poisson_process() -> None:
    times = arrival_times(20_000, Rate(50.0, 50.0), seed=3)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert times[0] == 0.0
    assert mean == pytest.approx(1 / 50, rel=0.03)
    # Of an exponential distribution, and of few others: deviation as large as the mean, a share 1 - 1/e below it.
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(mean, rel=0.05)
    assert sum(gap < mean for gap in gaps) / len(gaps) == pytest.approx(1 - 1 / math.e, abs=0.02)
    assert times == arrival_times(20_000, Rate(50.0, 50.0), seed=3) != arrival_times(20_000, Rate(50.0, 50.0), seed=4)


@pytest.mark.parametrize(("begin", "end"), [(1.0, 16.0), (16.0, 1.0)])
def test_a_ramp_changes_its_rate_evenly_in_time(begin: float, end: float) -> None:
    count = 20_000
    times = arrival_times(count, Rate(begin, end), seed=3)
    whole = 2 * count / (begin + end)
    assert times[-1] == pytest.approx(whole, rel=0.05)
    half = sum(time < whole / 2 for time in times)
    assert half / (whole / 2) == pytest.approx(begin + (end - begin) / 4, rel=0.03)
    assert times == sorted(times)


def test_rates() -> None:
    assert arrival_times(3, Rate(), seed=0) == [0.0, 0.0, 0.0]
    assert [str(Rate.parse(text)) for text in ("2", "0.5:8", "inf")] == ["2/s", "0.5 to 8/s", "all at once"]
    for text in ("0", "-1", "1:inf", "2:0", "nan", "fast", ""):
        with pytest.raises(ValueError, match=r"above 0|could not convert"):
            Rate.parse(text)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (0.9, 3.7), (0.99, 3.97), (1.0, 4.0)])
def test_percentiles_interpolate(share: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_percentiles_lie_within_the_values(values: list[float], share: float) -> None:
    assert min(values) - 1e-6 <= percentile(values, share) <= max(values) + 1e-6


def outcome(due: float, arrivals: list[float], tokens: int, *, error: str = "") -> Outcome:
    ended = arrivals[-1] if arrivals else due + 1
    return Outcome(due, due + 0.002, arrivals, ended, prompt_tokens=10, output_tokens=tokens, counted=True, error=error)


def test_a_summary_by_hand() -> None:
    """Two good requests, the second merging two tokens in an event; one that failed after half its tokens."""
    outcomes = [
        outcome(0.0, [0.1, 0.2, 0.4], tokens=3),
        outcome(1.0, [1.3, 1.5], tokens=3),
        outcome(1.5, [1.6], tokens=1, error="the connection broke"),
    ]
    found = summarize(outcomes, Objectives(ttft=200))
    assert (found.requests, found.completed, found.prompt_tokens, found.output_tokens) == (3, 2, 20, 6)
    assert found.seconds == pytest.approx(1.6)
    assert found.requests_per_second == pytest.approx(2 / 1.6)
    assert found.output_tokens_per_second == pytest.approx(6 / 1.6)
    assert found.total_tokens_per_second == pytest.approx(26 / 1.6)
    assert found.tokens_per_event == pytest.approx(6 / 5)
    assert found.ttft is not None
    assert found.ttft.mean == pytest.approx(200)
    assert found.ttft.max == pytest.approx(300)
    assert found.tpot is not None
    assert found.tpot.max == pytest.approx(150)  # (0.4 - 0.1) / 2, above (1.5 - 1.3) / 2
    assert found.itl is not None
    assert found.itl.mean == pytest.approx((100 + 200 + 200) / 3)
    assert found.e2e is not None
    assert found.e2e.max == pytest.approx(500)
    assert found.goodput == pytest.approx(1 / 1.6)  # the second was late, the third broke
    assert found.good_share == pytest.approx(1 / 3)
    assert found.latest_send == pytest.approx(2)
    assert found.errors == {"the connection broke": 1}


def test_every_objective_counts() -> None:
    good = outcome(0.0, [0.1, 0.2], tokens=2)
    assert Objectives(ttft=101, tpot=101, e2e=201).kept_by(good)
    assert not Objectives(ttft=99).kept_by(good)
    assert not Objectives(tpot=99).kept_by(good)
    assert not Objectives(e2e=199).kept_by(good)


def test_a_run_that_failed_altogether_has_a_summary() -> None:
    found = summarize([outcome(0.0, [], 0, error="503")], Objectives())
    assert (found.completed, found.ttft, found.goodput, found.requests_per_second) == (0, None, None, 0.0)


@pytest.mark.parametrize(
    ("api", "data", "expected"),
    [
        ("chat", b'{"choices":[{"delta":{"role":"assistant","content":""}}]}', Reading()),
        ("chat", b'{"choices":[{"delta":{"content":"x"}}],"usage":null}', Reading(True)),
        ("chat", b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}', Reading(False, 3, 4)),
        (
            "chat",
            b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}',
            Reading(False, 3, 4, 2),
        ),
        ("completions", b'{"choices":[{"text":"x"}]}', Reading(True)),
        ("completions", b"[DONE]", Reading()),
        ("tgi", b'{"index":1,"token":{"id":1,"text":"x"},"details":null}', Reading(True)),
        ("tgi", b'{"token":{"id":1},"details":{"generated_tokens":4,"input_length":3}}', Reading(True, 3, 4)),
        ("tgi", b'{"error":"too long","error_type":"validation"}', Reading(error="too long")),
        ("chat", b'{"error":{"message":"no","type":"x"}}', Reading(error="no")),
    ],
)
def test_events_of_each_protocol(api: str, data: bytes, expected: Reading) -> None:
    assert read_event(DIALECTS[api], data) == expected


def test_requests_of_each_protocol() -> None:
    prompt, extra = Prompt("hello", 7), {"model": "m", "temperature": 0}
    usage = {"max_tokens": 7, "stream": True, "stream_options": {"include_usage": True}, **extra}
    assert DIALECTS["chat"].body(prompt, extra) == {"messages": [{"role": "user", "content": "hello"}], **usage}
    assert DIALECTS["completions"].body(prompt, extra) == {"prompt": "hello", **usage}
    parameters = {"max_new_tokens": 7, "details": True}
    assert DIALECTS["tgi"].body(prompt, extra) == {"inputs": "hello", "parameters": parameters}


def test_random_prompts_have_their_lengths_and_repeat_by_seed() -> None:
    prompts = random_ids(5, 8, 3, vocab_size=100, seed=1)
    assert {len(prompt.token_ids) for prompt in prompts} == {8}
    assert len({prompt.token_ids for prompt in prompts}) == 5
    assert prompts == random_ids(5, 8, 3, vocab_size=100, seed=1)
    assert [len(prompt.text.split()) for prompt in random_words(3, 20, 1, seed=1)] == [20, 20, 20]


def test_prompts_share_their_beginnings() -> None:
    prompts = [prompt.text.split() for prompt in random_words(40, 20, 1, seed=1, sharing=Sharing(15, 3))]
    assert {len(prompt) for prompt in prompts} == {20}
    assert len({tuple(prompt[:15]) for prompt in prompts}) == 3
    assert len({tuple(prompt) for prompt in prompts}) == 40


@pytest.mark.parametrize("template_tokens", [0, 30])
def test_words_are_fitted_to_the_servers_count(template_tokens: int) -> None:
    async def count_tokens(words: int) -> int:
        return template_tokens + words + words // 7

    words = asyncio.run(words_for(128, count_tokens))
    assert abs(template_tokens + words + words // 7 - 128) <= 1


def test_conversations_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "talks.json"
    talk = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "x" * 40}]
    file.write_text(json.dumps([{"conversations": talk}, {"conversations": talk[:1]}]))
    assert conversations(file, 2, None, seed=0) == [Prompt("why?", 10)] * 2
    assert conversations(file, 1, 5, seed=0) == [Prompt("why?", 5)]
    file.write_text("[]")
    with pytest.raises(ValueError, match="ShareGPT"):
        conversations(file, 1, None, seed=0)


async def _tells_tokens_in_whole_answers_alone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server whose streams have no `usage`; a word is two tokens."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    asked = json.loads(await reader.readexactly(length) or b"{}")
    choices = [{"text": "x"}]
    if asked.get("stream"):
        kind, body = "text/event-stream", f"data: {json.dumps({'choices': choices})}\n\ndata: [DONE]\n\n"
    else:
        usage = {"prompt_tokens": 2 * len(asked["prompt"].split()), "completion_tokens": 1}
        kind, body = "application/json", json.dumps({"choices": choices, "usage": usage})
    writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
    writer.close()
    await writer.wait_closed()


def test_prompts_have_their_length_where_only_whole_answers_tell_it() -> None:
    async def check() -> None:
        async with await asyncio.start_server(_tells_tokens_in_whole_answers_alone, "127.0.0.1", 0) as listener:
            host, port = listener.sockets[0].getsockname()
            target = Target(server=Server(f"http://{host}:{port}", {}), dialect=DIALECTS["completions"], extra={})
            prompt = Prompt("three common words", 1)
            outcome = await target.ask(prompt, asyncio.get_running_loop().time())
            assert (outcome.error, outcome.counted, outcome.output_tokens) == ("", False, 1)
            assert await target.prompt_tokens(prompt) == 6

    asyncio.run(check())

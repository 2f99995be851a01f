"""`LLM`: the engine without HTTP, and the commands that use it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring import LLM
from mainspring.core.errors import RequestError, StartupError
from mainspring.core.request import FinishReason, SamplingParams
from tests.server.conftest import SIM

SIX = SamplingParams(max_tokens=6)


@pytest.fixture(scope="module")
def llm(model_directory: Path) -> Iterator[LLM]:
    with LLM(str(model_directory), "sim", backend_options=SIM) as loaded:
        yield loaded


def test_generate_keeps_the_order(llm: LLM) -> None:
    prompts = [f"prompt {number}" for number in range(20)]
    outputs = llm.generate(prompts, SIX)
    assert [output.prompt_token_ids for output in outputs] == [llm.tokenizer.encode(prompt) for prompt in prompts]
    assert [output.text for output in outputs] == [llm.generate(prompt, SIX)[0].text for prompt in prompts]
    assert all(len(output.token_ids) == 6 for output in outputs)
    assert outputs[0].finish_reason is FinishReason.LENGTH


def test_prompts_may_be_token_ids(llm: LLM) -> None:
    ids = llm.tokenizer.encode("hi")
    assert llm.generate(ids, SIX)[0].text == llm.generate("hi", SIX)[0].text == llm.generate([ids], SIX)[0].text


def test_stream_joins_to_the_text(llm: LLM) -> None:
    assert "".join(llm.stream("hi", SIX)) == llm.generate("hi", SIX)[0].text


def test_leaving_a_stream_ends_the_request(llm: LLM) -> None:
    stream = llm.stream("hi", SamplingParams(max_tokens=2000))
    next(stream)
    stream.close()
    assert llm.generate("hi", SIX)[0].finish_reason is FinishReason.LENGTH


def test_logprobs_of_prompt_and_answer(llm: LLM) -> None:
    (output,) = llm.generate("hello", SamplingParams(max_tokens=3, logprobs=2, prompt_logprobs=1))
    assert [entry and len(entry.top_ids) for entry in output.prompt_logprobs] == [None, 1, 1, 1, 1]
    assert [len(entry.top_ids) for entry in output.logprobs] == [2, 2, 2]
    (plain,) = llm.generate("hello", SIX)
    assert (plain.logprobs, plain.prompt_logprobs) == (None, None)
    (scored,) = llm.generate("hello", SamplingParams(max_tokens=0, prompt_logprobs=1))
    assert (scored.token_ids, scored.prompt_logprobs) == ([], output.prompt_logprobs)


def test_stop(llm: LLM) -> None:
    words = llm.generate("hi", SIX)[0].text.split(" ")
    output = llm.generate("hi", SIX, stop=[words[3]])[0]
    assert (output.text, output.finish_reason) == (" ".join(words[:3]) + " ", FinishReason.STOP)


def test_chat_uses_the_template(llm: LLM) -> None:
    output = llm.chat([{"role": "user", "content": "hi"}], SIX)
    assert output.prompt_token_ids[0] == 1
    assert llm.tokenizer.decode(output.prompt_token_ids) == "[user]hi[assistant]"


def test_refusals_are_errors(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.generate("x" * 5000, SIX)


def test_closing_twice(model_directory: Path) -> None:
    llm = LLM(str(model_directory), "sim", backend_options=SIM)
    llm.close()
    llm.close()


def test_what_cannot_start(model_directory: Path) -> None:
    with pytest.raises(StartupError, match="did you mean 'sim'"):
        LLM(str(model_directory), "simm")


def test_generate_command(model_directory: Path, llm: LLM) -> None:
    command = [
        sys.executable,
        "-m",
        "mainspring.server.cli",
        "generate",
        str(model_directory),
        "hi",
        "--backend",
        "sim",
    ]
    options = [
        "--backend",
        "sim",
        "--backend-option",
        "speed=0",
        "--backend-option",
        "vocabulary=300-1000",
        "--max-tokens",
        "6",
    ]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, llm.generate("hi", SIX)[0].text + "\n")
    assert ended.stderr == ""

"""Chat templates: transformers' settings, the sandbox, and TGI's continuation of a last assistant message."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from mainspring.core.errors import ModelError
from mainspring.server.errors import TemplateError
from mainspring.server.text import template
from mainspring.server.text.template import ChatTemplate
from mainspring.server.text.tokenizer import SpecialTokens
from tests.support.tgi_rows import tgi
from tests.support.tiny_tokenizers import TINY_CHAT_TEMPLATE

SPECIAL = SpecialTokens(bos="<s>", bos_id=1, eos="</s>")
USER = {"role": "user", "content": "hi"}


def render(source: str, *messages: dict[str, object]) -> str:
    return ChatTemplate(source, SPECIAL).render(list(messages or (USER,)))


def test_generation_prompt_and_special_tokens() -> None:
    assert render(TINY_CHAT_TEMPLATE) == "<s>[user]hi[assistant]"


@tgi("1.5 prefix completion")
def test_last_assistant_message_is_continued() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}"
    assert render(source, USER, {"role": "assistant", "content": "Once upon "}) == "[user]hi<end>[assistant]Once upon "


def test_template_that_drops_the_last_message_cannot_continue() -> None:
    with pytest.raises(TemplateError, match="cannot be continued"):
        render("{{ messages[0].content }}", USER, {"role": "assistant", "content": "x"})


def test_blocks_are_trimmed_as_in_transformers() -> None:
    assert render("  {% if true %}\nyes\n  {% endif %}\nno") == "yes\nno"


def test_tojson_leaves_text_alone() -> None:
    assert render("{{ {'a': 'é<b>'} | tojson }}") == '{"a": "é<b>"}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"


@tgi("1.5 template")
def test_strftime_now() -> None:
    assert re.fullmatch(r"\d{4}", render("{{ strftime_now('%Y') }}"))
    assert abs(int(render("{{ strftime_now('%Y') }}")) - datetime.now().year) <= 1


@tgi("1.5 template", "1.9 template_error")
def test_template_may_refuse() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@tgi("1.5 template", "1.9 missing_template_variable")
def test_missing_field_is_named() -> None:
    with pytest.raises(TemplateError, match="tool_name"):
        render("{{ messages[0].tool_name.upper() }}")


def test_wrong_type_is_a_template_error() -> None:
    with pytest.raises(TemplateError, match="cannot handle"):
        render("{{ messages[0].content + 1 }}")


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_sandbox(attack: str) -> None:
    with pytest.raises(TemplateError):
        render(attack)


def test_output_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_PROMPT_CHARACTERS", 100)
    with pytest.raises(TemplateError, match="more than 100 characters"):
        render("{% for i in range(99999) %}{{ 'x' * 50 }}{% endfor %}")


def test_loop_controls() -> None:
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"


def test_broken_template_fails_at_start() -> None:
    with pytest.raises(ModelError, match="line 1"):
        ChatTemplate("{% if %}", SPECIAL)


def test_marks_for_training_are_taken_and_not_shown() -> None:
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}c") == "ahic"


def test_whether_a_template_has_a_place_for_tools() -> None:
    for source, takes in (("{% if tools %}x{% endif %}", True), ("{{ messages }}", False)):
        template = ChatTemplate(source, SPECIAL)
        assert (template.takes_tools, template.source) == (takes, source)


def test_a_template_of_its_own_for_tools() -> None:
    template = ChatTemplate("plain", SPECIAL, "{{ tools[0] }} <tool_call>")
    assert (template.render([USER]), template.render([USER], [{"a": 1}])) == ("plain", "{'a': 1} <tool_call>")
    assert template.takes_tools
    assert "<tool_call>" in template.source


def test_options_do_not_take_the_servers_names() -> None:
    template = ChatTemplate("{{ mood }}", SpecialTokens())
    assert template.render([{"role": "user", "content": "x"}], options={"mood": "calm"}) == "calm"
    with pytest.raises(TemplateError, match="`tools` is the server's to set"):
        template.render([{"role": "user", "content": "x"}], options={"tools": []})

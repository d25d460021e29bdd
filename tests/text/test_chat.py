"""Chat templates: as transformers renders them, as llama.cpp's formats, and what goes wrong."""

import re
from datetime import datetime

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.strings import StringArray
from llamacy.text import chat
from llamacy.text.chat_formats import FORMATS
from llamacy.train.readers import instruct_prompt

SYSTEM, ASK = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
TALK = [SYSTEM, ASK, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": " And you? "}]


def render(messages, template, **how):
    return chat.render(messages, template, **({"bos": "<s>", "eos": "</s>"} | how))


def test_smollm2(smollm2_metadata):
    template = chat.template_for(smollm2_metadata)
    start = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert render([ASK], template) == start + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(TALK, template, add_generation_prompt=False) == render(TALK, "chatml", add_generation_prompt=False)


# What each format writes for TALK, ready for an answer.
EXPECTED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!"
    "<|im_end|>\n<|im_start|>user\n And you? <|im_end|>\n<|im_start|>assistant\n",
    "llama2": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] And you? [/INST]",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nAnd you?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
    "<start_of_turn>user\nAnd you?<end_of_turn>\n<start_of_turn>model\n",
    "mistral-v3": "[INST] Be brief.\n\nHi[/INST] Hello!</s>[INST]  And you? [/INST]",
    "vicuna": "Be brief.\n\nUSER: Hi\nASSISTANT: Hello!</s>\nUSER:  And you? \nASSISTANT:",
    "instruct": "Be brief.\n\n### Instruction:\nHi\n### Response:\nHello!</s>\n"
    "### Instruction:\n And you? \n### Response:\n",
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!</s>\n\n"
    "### Instruction:\n And you? \n\n### Response:\n",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_built_in_formats(name):
    assert render(TALK, name) == EXPECTED[name]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_what_was_said_and_opens_an_answer(name):
    whole, closed = render(TALK, name), render(TALK, name, add_generation_prompt=False)
    assert [whole.index(turn["content"].strip()) for turn in TALK] == sorted(
        whole.index(turn["content"].strip()) for turn in TALK
    )
    assert whole.startswith(closed)
    # What is trained as an answer begins where the prompt ends.
    prompt = render(TALK[:2], name)
    assert closed.startswith(prompt.rstrip(" \n"))


def test_the_instruct_format_is_what_instruction_data_are_trained_with():
    assert render([ASK], "instruct") == instruct_prompt("Hi")


def test_a_system_message_that_nothing_follows_is_not_lost():
    assert "Be brief." in render([SYSTEM], "gemma") and "Be brief." in render([SYSTEM], "llama2")


def test_alpaca_has_a_system_message_of_its_own():
    assert render([ASK], "alpaca").startswith("Below is an instruction that describes a task. ")


def test_transformers_settings():
    """trim_blocks, lstrip_blocks, loop controls, tojson without escapes, the tokens' texts, None for tools."""
    assert render([], "{{ bos_token }}\n  {% if true %}\nyes\n  {% endif %}\nend{{ eos_token }}") == "<s>\nyes\nend</s>"
    assert (
        render(TALK, "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}")
        == "system"
    )
    assert render([], "{{ {'b': 'é<&', 'a': [1]} | tojson }}") == '{"b": "é<&", "a": [1]}'
    assert render([], "{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"
    assert render([], "{{ tools is none }} {{ documents is none }}") == "True True"
    assert render([], "{{ tools[0].name }}", tools=[{"name": "clock"}]) == "clock"
    assert render([], "{% generation %}a{% if true %}b{% endif %}{% endgeneration %}c") == "abc"
    assert render([], "{{ strftime_now('%Y') }}") in (str(datetime.now().year), str(datetime.now().year - 1))
    assert render([ASK], "{{ add_generation_prompt }}", add_generation_prompt=False) == "False"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("{% if %}", "not valid: line 1"),
        ("{{ messages[0]['content'] + 1 }}", "fails on this conversation: TypeError"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ nothing.at.all }}", "refuses"),
    ],
)
def test_templates_that_fail_are_one_line(template, message):
    with pytest.raises(LlamacyError, match=message):
        render([ASK], template)


def test_messages_that_no_format_knows():
    for message in ({"role": "tool", "content": "x"}, {"role": "user", "content": None}, {"content": "x"}):
        with pytest.raises(LlamacyError, match="wanted messages of system, user or assistant"):
            render([message], "chatml")
    assert render([{"role": "developer", "content": "x"}], "chatml").startswith("<|im_start|>system\nx")


def test_template_for(tmp_path):
    model = {"tokenizer.chat_template": "MODEL", "tokenizer.chat_template.tool_use": "TOOLS"}
    assert chat.template_for(model) == "MODEL"
    assert chat.template_for(model, "gemma") == "gemma"
    assert chat.template_for(model, "tool_use") == "TOOLS"
    path = tmp_path / "mine.jinja"
    path.write_text("é", encoding="utf-8")
    assert chat.template_for(model, str(path)) == "é"
    with pytest.warns(UserWarning, match="no chat template: using chatml"):
        assert chat.template_for({}) == "chatml"
    with pytest.raises(LlamacyError, match="no such file, nor one of alpaca, chatml"):
        chat.template_for(model, "nonsense")
    path.write_bytes(b"\xff")
    with pytest.raises(LlamacyError, match="cannot be read"):
        chat.template_for(model, str(path))


@pytest.mark.parametrize("value", [5, True, 0.5, ["a"], [["a"]], StringArray.of(["x"] * 3), np.zeros(10**6), 0])
def test_a_template_that_is_no_text(value):
    for key, override in (("tokenizer.chat_template", None), ("tokenizer.chat_template.mine", "mine")):
        with pytest.raises(LlamacyError) as caught:
            chat.template_for({key: value}, override)
        assert str(caught.value).startswith(f"{key}: wanted a chat template as text, got ")
        assert len(str(caught.value)) < 300


def test_errors_say_which_template(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ raise_exception('no') }}")
    model = {"tokenizer.chat_template": path.read_text(), "tokenizer.chat_template.tool_use": "{% if %}"}
    for override, where in (
        (None, "tokenizer.chat_template refuses"),
        ("tool_use", "tokenizer.chat_template.tool_use is not valid"),
        (str(path), f"{path} refuses"),
    ):
        found = chat.template_for(model, override)
        assert chat.template_for({}, found) is found
        with pytest.raises(LlamacyError, match=f"^the chat template {re.escape(where)}"):
            render([ASK], found)

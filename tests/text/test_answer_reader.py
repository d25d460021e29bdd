"""Answers taken apart: thoughts, text and calls of each family's format, the same however the text is cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacy.text.answer_reader import AnswerReader
from llamacy.text.tool_formats import GENERIC, THOUGHTS, TOOL_FORMATS, format_of, thoughts_of, written_out

FORMATS = {row.name: row for row in (*TOOL_FORMATS, GENERIC)}
THINK = THOUGHTS[0]


def read(name, text, step=10**6, thoughts=THINK, inside=False, most=None):
    """Return what an answer is made of: [(kind, text)], pieces of the same kind joined."""
    reader, found = AnswerReader(thoughts, inside, name and FORMATS[name], most), []
    parts = [part for i in range(0, len(text), step) for part in reader.feed(text[i : i + step])] + reader.flush()
    for part in parts:
        if found and found[-1][0] == part.kind != "call":
            found[-1] = (part.kind, found[-1][1] + part.text)
        else:
            found.append(tuple(part))
    return found


def call(name, arguments):
    return [("call", name), ("arguments", arguments)]


CASES = [
    ("hermes", 'Sure.\n<tool_call>\n{"name": "f", "arguments": {"city": "Pa}r\\"is", "n": [1,2]}}\n</tool_call>',
     [("text", "Sure.\n"), *call("f", '{"city": "Pa}r\\"is", "n": [1,2]}')]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "b"}</tool_call>\n<tool_call>{"name": "c", "arguments": {}}'
     "</tool_call> done", [*call("b", '{"a": 1}'), *call("c", "{}"), ("text", "done")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', call("f", '{"a": 1}')),
    ("hermes", "one <tool_call> is no call", [("text", "one <tool_call> is no call")]),
    ("hermes", 'a <tool_call>{"name": 5}</tool_call> b', [("text", 'a <tool_call>{"name": 5}</tool_call> b')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ', call("f", '{"a": ')),
    ("generic", '<tool_call>[\n{"name": "f", "arguments": {"a": 1}},\n{"name": "g", "arguments": {}}]</tool_call>',
     [*call("f", '{"a": 1}'), *call("g", "{}")]),
    ("llama3", '{"name": "f", "parameters": {"x": "y"}}; {"name": "g", "parameters": {}}',
     [*call("f", '{"x": "y"}'), *call("g", "{}")]),
    ("llama3", '<|python_tag|>{"name": "f", "parameters": {"x": "y"}}', call("f", '{"x": "y"}')),
    ("llama3", '{"just": "json"}', [("text", '{"just": "json"}')]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"a": "b"}, "id": "123456789"}, '
     '{"name": "g", "arguments": {}}]',
     [*call("f", '{"a": "b"}'), *call("g", "{}")]),
    ("mistral-args", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]abc[ARGS]{}',
     [*call("f", '{"a": 1}'), *call("g", "{}")]),
    ("functiongemma", "<start_function_call>call:f{a:<escape>x, y<escape>,n:5,l:[1,<escape>b<escape>],o:{k:true}}"
     "<end_function_call>", call("f", '{"a": "x, y", "n": 5, "l": [1, "b"], "o": {"k": true}}')),
    ("functiongemma", "<start_function_call>call f<end_function_call>!",
     [("text", "<start_function_call>call f<end_function_call>!")]),
    ("gpt-oss", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f "
     '<|constrain|>json<|message|>{"a": 1}<|call|>', [("thought", "hm"), *call("f", '{"a": 1}')]),
    ("gpt-oss", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|return|>",
     [("thought", "hm"), ("text", "Hello!")]),
    ("gpt-oss", "Hello", [("text", "Hello")]),
    ("hermes", "<think>\nhm\n\n</think>\n\nAnswer", [("thought", "hm"), ("text", "Answer")]),
    ("hermes", "<think>never ends ", [("thought", "never ends")]),
    (None, "<thing> a < b", [("text", "<thing> a < b")]),
    (None, '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
     [("text", '<tool_call>{"name": "f", "arguments": {}}</tool_call>')]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "parts"), CASES)
@pytest.mark.parametrize("step", [1, 3, 7, 10**6])
def test_what_an_answer_is_made_of(name, text, parts, step):
    assert read(name, text, step) == parts


def test_a_prompt_may_have_opened_the_thoughts():
    assert read(None, "hm</think>Answer", 1, inside=True) == [("thought", "hm"), ("text", "Answer")]
    assert read(None, "no thoughts", 1, thoughts=None, inside=True) == [("text", "no thoughts")]


def test_calls_beyond_the_most_are_left_out():
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g", "arguments": {}}</tool_call>'
    assert read("hermes", text, most=1) == call("f", "{}")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_any_text_is_the_same_in_any_pieces(name, data):
    row = FORMATS[name]
    pieces = [row.opening, row.closing, *THINK, '{"name": "f", "arguments": {', "}", '"', "x", " ", "\n", "[", "]"]
    pieces += ["call:", "a:", "<|message|>", "<|end|>", " to=functions.f", "[ARGS]", "<", "<|"]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=12)))
    one, many = read(name, text), read(name, text, data.draw(st.integers(1, 5)))
    assert one == many


def test_arguments_come_before_they_are_whole():
    reader = AnswerReader(None, False, FORMATS["hermes"])
    parts = reader.feed('<tool_call>{"name": "f", "arguments": {"a": "long te')
    assert [part.kind for part in parts] == ["call", "arguments"] and parts[1].text == '{"a": "long te'


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ tools }}<tool_call>", "hermes"), ("<tool_call> without", "generic"), ("chatml", "generic"),
        ("{{ tools }}[TOOL_CALLS]", "mistral"), ("{{ tools }}[TOOL_CALLS]x[ARGS]", "mistral-args"),
        ("{{ tools }}<|python_tag|>", "llama3"), ("<|channel|> <|call|> tools", "gpt-oss"), ("{{ tools }}", "generic"),
    ],
)  # fmt: skip
def test_formats_are_told_by_the_template(template, name):
    assert format_of(template).name == name


def test_thoughts_are_told_by_the_template():
    assert thoughts_of("{% x %}<think>") == ("<think>", "</think>") and thoughts_of("[THINK]")[1] == "[/THINK]"
    assert thoughts_of("chatml") is None


def test_tools_are_written_out_for_templates_that_know_none():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "5"},
        {"role": "tool", "content": "6"},
    ]
    found = written_out(messages, tools)
    assert [message["role"] for message in found] == ["system", "user", "assistant", "user"]
    assert found[0]["content"].startswith("Be brief.\n\n") and json.dumps(tools[0]) in found[0]["content"]
    assert read("generic", found[2]["content"]) == call("f", '{"a": 1}')
    assert found[3]["content"].count("<tool_response>") == 2

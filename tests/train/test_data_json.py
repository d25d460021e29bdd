"""JSON lines, arrays and objects: each shape of object, arrays larger than the buffer, and what is said when broken."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacy.errors import LlamacyError
from llamacy.train.data import Encoder, open_data
from llamacy.train.readers import BLOCK
from tests.train.fakes import ByteTokenizer, shown


def chatml(messages, add_generation_prompt):
    text = "".join(f"<|{m['role']}|>{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|assistant|>" if add_generation_prompt else "")


@pytest.fixture
def load(tmp_path):
    def load_text(text, n_ctx=4096, render=chatml):
        path = tmp_path / "data"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return open_data([path], Encoder(ByteTokenizer(), n_ctx), render=render)

    return load_text


def all_shown(data):
    return [shown(data[i]) for i in range(len(data))]


OBJECTS = [
    {"prompt": "Q: 鱼?\n", "completion": "A: 水"},
    {"instruction": "Add.", "input": "2 3", "output": "5"},
    {"instruction": "讲一个笑话。", "output": "哈"},
    {"instruction": "Hi", "input": None, "output": "Yo", "extra": [1, {"}": "]"}]},
    {"text": "all of this"},
]
SHOWN = [
    ("Q: 鱼?\n", "A: 水</s>"),
    ("### Instruction:\nAdd.\n### Input:\n2 3\n### Response:\n", "5</s>"),
    ("### Instruction:\n讲一个笑话。\n### Response:\n", "哈</s>"),
    ("### Instruction:\nHi\n### Response:\n", "Yo</s>"),
    ("a", "ll of this</s>"),
]
LAYOUTS = {
    "lines": "\n".join(json.dumps(o, ensure_ascii=False) for o in OBJECTS),
    "lines, escaped, blank lines, crlf, bom": "\ufeff\r\n" + "\r\n\r\n".join(json.dumps(o) for o in OBJECTS) + "\r\n",
    "array": json.dumps(OBJECTS, ensure_ascii=False),
    "indented array": "\ufeff" + json.dumps(OBJECTS, indent=2),
    "array, one object per line": "[\n" + ",\n".join(json.dumps(o) for o in OBJECTS) + "\n]\n",
    "indented objects": "\n".join(json.dumps(o, indent=2, ensure_ascii=False) for o in OBJECTS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_shape_gives_the_same_samples(load, layout):
    data = load(LAYOUTS[layout])
    assert all_shown(data) == SHOWN
    assert data.templates == ["", "instruct"]


def test_every_assistant_turn_is_trained_up_to_its_end(load):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]},
        {"role": "assistant", "content": "4"},
    ]
    data = load(json.dumps({"messages": messages}))
    text, trained = "", ""
    for token, flag in zip(data[0].ids.tolist(), data[0].trained, strict=True):
        piece = ByteTokenizer().token_bytes(token).decode()
        text += piece
        trained += piece if flag else "" if trained.endswith("|") else "|"
    assert text == chatml([*messages[:3], {"role": "user", "content": "2+2?"}, messages[4]], False)
    assert trained == "|2<|im_end|>|4<|im_end|>|"
    assert data.templates == ["chat"]


def test_an_end_is_added_only_where_the_template_leaves_the_answer_open(load):
    def open_ended(messages, add_generation_prompt):
        return "".join(f"{m['role']}:{m['content']};" for m in messages).removesuffix(";") + (
            ";assistant:" if add_generation_prompt else ""
        )

    line = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    assert shown(load(line, render=open_ended)[0]) == ("user:a;assistant:", "b</s>")


def test_turns_that_the_template_rewrites_are_not_trained(load):
    def forgetful(messages, add_generation_prompt):
        shown = [m["content"] if i == len(messages) - 1 else m["content"].upper() for i, m in enumerate(messages)]
        return "".join(f"<{m['role']}>{text}" for m, text in zip(messages, shown, strict=True)) + (
            "<assistant>" if add_generation_prompt else ""
        )

    turns = [("user", "A"), ("assistant", "first"), ("user", "B"), ("assistant", "second")]
    line = json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
    assert shown(load(line, render=forgetful)[0]) == ("<user>A<assistant>FIRST<user>B<assistant>", "second</s>")


def test_records_without_an_answer_are_skipped_and_counted(load):
    rows = [{"prompt": "p", "completion": ""}, {"text": " \n"}, {"text": "fine"}, {"instruction": "x", "output": None},
            {"messages": [{"role": "user", "content": "only a question"}]}]  # fmt: skip
    data = load("\n".join(map(json.dumps, rows)))
    assert all_shown(data) == [("f", "ine</s>")]
    assert data.n_skipped == 4 and "4 samples skipped" in data.report()[-1] and "data:1" in data.report()[-1]


def test_an_array_much_larger_than_the_buffer(load):
    rows = [{"prompt": f"{i} [{{", "completion": 'x\\"]}' * (i % 50)} for i in range(3000)]
    rows[1500]["completion"] = "鱼" * BLOCK
    data = load(json.dumps(rows, indent=1, ensure_ascii=False), n_ctx=10 * BLOCK)
    kept = [row for row in rows if row["completion"]]
    assert len(data) == len(kept)
    for i in (0, 700, len(data) - 1):
        assert shown(data[i]) == (kept[i]["prompt"], kept[i]["completion"] + "</s>")


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}), min_size=1),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    layout=st.sampled_from(["array", "lines"]),
)
def test_any_text_survives(tmp_path_factory, rows, indent, ascii_only, layout):
    path = tmp_path_factory.mktemp("any") / "data"
    rows = [*rows, {"prompt": "", "completion": "end"}]
    dumped = [json.dumps(row, indent=indent, ensure_ascii=ascii_only) for row in rows]
    text = "[" + ",".join(dumped) + "]" if layout == "array" else "\n".join(dumped)
    path.write_bytes(text.encode())
    data = open_data([path], Encoder(ByteTokenizer(), 1 << 16))
    usable = [row for row in rows if row["completion"].strip()]
    assert len(data) == len(usable)
    for i, row in enumerate(usable):
        ids = ByteTokenizer().encode(row["prompt"]) + ByteTokenizer().encode(row["completion"])
        assert data[i].ids.tolist()[: len(ids)] == ids


GOOD = '{"text": "good"}\n'
BAD = {
    GOOD * 2 + '{"text": "no brace"\n' + GOOD: "data:3: broken JSON: Expecting ',' delimiter at column",
    GOOD + '{"text": "a" "b"}\n': "data:2: broken JSON",
    GOOD + "just words\n": "data:2: broken JSON: Expecting value at column 1, near 'just words'",
    GOOD + "[1, 2]\n": "data:2: wanted a JSON object",
    GOOD + '{"queries": "q", "answer": "a"}': 'data:2: missing keys: wanted "messages", "conversations", "prompt" and '
    '"completion", "instruction" and "output", "question" and "answer", "input" and "output", "chosen" and "rejected", '
    'or "text"; got "queries", "answer"',
    "{}": "data:1: missing keys",
    '{"prompt": "p", "completion": {"a": 5}}': 'data:1: "completion"[0] has no "role" and "content"',
    '{"prompt": "p", "completion": [5]}': 'data:1: "completion" is a list, wanted text',
    '{"prompt": ["p"], "completion": "c"}': 'data:1: "prompt" is a list, wanted text',
    '{"text": "\\ud83d"}': 'data:1: "text" holds half a character',
    '{"messages": []}': 'data:1: "messages" is empty or no list',
    '{"messages": "hello"}': 'data:1: "messages" is text, wanted a list, or JSON of one as text',
    "{\"messages\": \"[{'role': 'user'}]\"}": 'data:1: "messages" is text that is a list as Python writes it',
    '{"messages": [{"role": "user"}]}': 'data:1: "messages"[0] has no "role" and "content"',
    '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}': "only text can be trained",
    "{text: 'javascript'}": "data:1: broken JSON: Expecting property name",
    '[\n{"text": "a"},\n{"text": "b",}\n]': "data:3: broken JSON",
    '[\n{"text": "a"},\nnull]': "data:3: wanted a JSON object",
    '["a", "b"]': "data:1: wanted a JSON object",
    '[{"text": "a"},\n{"text": "cut o': "data:2: broken JSON: Unterminated string",
    '[{"text": "a"}': "data:1: the array is not closed",
    '[{"text": "a"}]\n{"text": "b"}': "data:2: text after the array's end",
    "[" + "[" * 100000: "nested too deeply",
    '{"text": ' + "[" * 100000: "nested too deeply",
    "[]": "no usable sample",
    b'{"text": "a"}\n{"text": "\xff"}': "data:2: byte 0xff is not UTF-8",
    b'[{"text": "a"},\n{"text": "\xff"}]': "data:2: byte 0xff is not UTF-8",
    '[\n {"text": "a"},\n' + '{"text": "鱼", broken 中文中文中文中文中文中文中文中文中文中文}]': "data:3: broken JSON",
}


@pytest.mark.parametrize("content", BAD, ids=range(len(BAD)))
def test_bad_json_is_one_clear_line(load, content):
    with pytest.raises(LlamacyError) as caught:
        load(content)
    assert BAD[content] in str(caught.value) and "\n" not in str(caught.value)


def test_messages_need_a_chat_template(load):
    with pytest.raises(LlamacyError, match="this model has none"):
        load('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}', render=None)


@pytest.mark.parametrize("text", ["[1] A footnote, and words.", "{ curly } words", "# ### Instruction", "[note] words"])
def test_text_that_only_begins_like_json_is_text(load, text):
    assert shown(load(text)[0]) == (text[0], text[1:])

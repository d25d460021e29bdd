"""Every shape that a record may have, one row each: what is asked, what is learnt, and what is said of the rest."""

import json

import pytest

from llamacy.errors import LlamacyError
from llamacy.train import shapes, turns
from llamacy.train.data import Encoder, open_data
from tests.train.fakes import ByteTokenizer, shown


def chatml(messages, add_generation_prompt, tools=None, mood="", **more):
    assert not more
    text = f"<tools>{json.dumps(tools)}" if tools else ""
    for m in messages:
        calls = "".join(json.dumps(call["function"]) for call in m.get("tool_calls", []))
        text += f"<|{m['role']}|>{m.get('content', '')}{calls}<|im_end|>\n"
    return text + mood + ("<|assistant|>" if add_generation_prompt else "")


@pytest.fixture
def load(tmp_path):
    def load_rows(*rows, **options):
        path = tmp_path / "data"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
        return open_data([path], Encoder(ByteTokenizer(), 4096), render=chatml, **options)

    return load_rows


def marked(sample):
    """Return a sample's text with the parts that are learnt in [ ]."""
    text, inside = "", False
    for token, flag in zip(sample.ids.tolist(), sample.trained.tolist(), strict=True):
        text += "[" if flag and not inside else "]" if inside and not flag else ""
        text, inside = text + ByteTokenizer().decode([token]), flag
    return text + ("]" if inside else "")


def instruct(question, extra=None, answer="5</s>"):
    return (
        f"### Instruction:\n{question}\n" + (f"### Input:\n{extra}\n" if extra else "") + f"### Response:\n[{answer}]"
    )


U, A = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CHAT = "<|user|>hi<|im_end|>\n<|assistant|>[yo<|im_end|>]\n"
TALK2 = [U, A, {"role": "user", "content": "bye"}, {"role": "assistant", "content": "cu"}]
SECOND = "<|user|>hi<|im_end|>\n<|assistant|>yo<|im_end|>\n<|user|>bye<|im_end|>\n<|assistant|>[cu<|im_end|>]\n"
CALL = {"name": "f", "arguments": {"x": 1}}
TOOL = {"type": "function", "function": {"name": "f"}}
CALLED = '<|user|>hi<|im_end|>\n<|assistant|>[{"name": "f", "arguments": {"x": 1}}<|im_end|>]\n'

ROWS = {
    # texts
    "text": ({"text": "all"}, "a[ll</s>]"),
    "prompt, completion": ({"prompt": "p", "completion": "c"}, "p[c</s>]"),
    "prompt, response": ({"prompt": "p", "response": "c"}, "p[c</s>]"),
    "capitals": ({"Prompt": "p", "COMPLETION": "c"}, "p[c</s>]"),
    "a whole number": ({"prompt": "p", "completion": 5}, "p[5</s>]"),
    "a fraction as written": ('{"prompt": "p", "completion": 1.50}', "p[1.50</s>]"),
    "true": ({"prompt": "p", "completion": True}, "p[true</s>]"),
    "thousands of digits": ('{"prompt": "p", "completion": ' + "7" * 5000 + "}", "p[" + "7" * 4095 + "]"),
    "system beside a prompt": ({"system": "S", "prompt": "p", "completion": "c"}, "S\n\np[c</s>]"),
    # questions
    "alpaca": ({"instruction": "2+3", "input": "", "output": "5"}, instruct("2+3")),
    "alpaca with input": ({"instruction": "Add.", "input": "2 3", "output": "5"}, instruct("Add.", "2 3")),
    "dolly": ({"instruction": "Add.", "context": "2 3", "response": 5, "category": ""}, instruct("Add.", "2 3")),
    "question, answer": ({"question": "2+3", "answer": "5"}, instruct("2+3")),
    "question, context, answer": ({"question": "Add.", "context": "2 3", "answer": "5"}, instruct("Add.", "2 3")),
    "query, response": ({"query": "2+3", "response": "5"}, instruct("2+3")),
    "input, output": ({"input": "2+3", "output": 5}, instruct("2+3")),
    "inputs, targets": ({"inputs": "2+3", "targets": "5"}, instruct("2+3")),
    "system": ({"instruction": "2+3", "output": "5", "system": "Be brief."}, "Be brief.\n\n" + instruct("2+3")),
    "history": (
        {"instruction": "2+3", "output": "5", "history": [["1+1", "2"], ["2+2", "4"]]},
        instruct("1+1", answer="2</s>") + "\n" + instruct("2+2", answer="4</s>") + "\n" + instruct("2+3")),
    "history of messages, and system": (
        {"system": "S", "instruction": "2+3", "output": "5", "history": [U, A]},
        "S\n\n" + instruct("hi", answer="yo</s>") + "\n" + instruct("2+3")),
    # conversations
    "messages": ({"messages": [U, A]}, CHAT),
    "sharegpt": ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, CHAT),
    "conversations with roles": ({"conversations": [U, A]}, CHAT),
    "bot": ({"messages": [{"role": "Human", "content": "hi"}, {"role": "Bot", "content": "yo"}]}, CHAT),
    "model": ({"messages": [{"role": "USER", "content": "hi"}, {"role": "model", "content": "yo"}]}, CHAT),
    "a list alone": ([U, A], CHAT),
    "texts in turn": ({"conversation": ["hi", "yo"]}, CHAT),
    "messages as text": ({"messages": json.dumps([U, A])}, CHAT),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, "i"]}, A]}, CHAT),
    "a number said": ({"messages": [U, {"role": "assistant", "content": 4}]}, CHAT.replace("yo", "4")),
    "system apart": ({"system": "S", "messages": [U, A]}, "<|system|>S<|im_end|>\n" + CHAT),
    "weight 0": ({"messages": [U, {**A, "weight": 0}, *TALK2[2:]]}, SECOND),
    "train false": ({"messages": [U, {**A, "train": False}, *TALK2[2:]]}, SECOND),
    "train true": ({"messages": [U, {**A, "train": True, "weight": 1}]}, CHAT),
    "trl's prompt and completion": ({"prompt": TALK2[:3], "completion": TALK2[3:]}, SECOND),
    "one message as completion": ({"prompt": TALK2[:3], "completion": TALK2[3]}, SECOND),
    "a text behind messages": ({"prompt": TALK2[:3], "completion": "cu"}, SECOND),
    "messages behind a text": ({"prompt": "hi", "completion": [A]}, CHAT),
    "chat_template_kwargs": ({"messages": [U, A], "chat_template_kwargs": {"mood": "!"}}, None),
    # tools
    "tools": ({"messages": [U, A], "tools": [TOOL]}, f"<tools>[{json.dumps(TOOL)}]" + CHAT),
    "tools as text": ({"messages": [U, A], "tools": json.dumps([TOOL])}, f"<tools>[{json.dumps(TOOL)}]" + CHAT),
    "functions": ({"messages": [U, A], "functions": [{"name": "f"}]}, f"<tools>[{json.dumps(TOOL)}]" + CHAT),
    "a call": ({"messages": [U, {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]}]}, CALLED),
    "a call without content": ({"messages": [U, {"role": "assistant", "tool_calls": [{"function": CALL}]}]}, CALLED),
    "calls as text": ({"messages": [U, {"role": "assistant", "tool_calls": json.dumps([{"function": CALL}])}]}, CALLED),
    "function_call": ({"messages": [U, {"role": "assistant", "content": None, "function_call": CALL}]}, CALLED),
    "sharegpt's call": ({"conversations": [
        {"from": "human", "value": "hi"}, {"from": "function_call", "value": json.dumps(CALL)}]}, CALLED),
    "what a tool said": ({"conversations": [U, {"from": "observation", "value": "7"}, A]},
                         CHAT.replace("<|assistant|>", "<|tool|>7<|im_end|>\n<|assistant|>")),
    # preferences
    "a pair": ({"prompt": "p", "chosen": "c", "rejected": "r"}, "p[c</s>]"),
    "a pair of conversations": ({"chosen": TALK2, "rejected": [*TALK2[:3], U]}, SECOND),
    "a pair of messages": ({"prompt": TALK2[:3], "chosen": TALK2[3:], "rejected": [A]}, SECOND),
    "a pair with the prompt again": ({"prompt": TALK2[:3], "chosen": TALK2, "rejected": TALK2}, SECOND),
    "a pair of answers": ({"question": "2+3", "chosen": "5", "rejected": "6"}, instruct("2+3")),
    "a prompt that both begin with": ({"chosen": "Q: x A: yes", "rejected": "Q: x A: no"}, "Q: x A:[ yes</s>]"),
}  # fmt: skip


@pytest.mark.parametrize("shape", ROWS)
def test_each_shape_is_asked_and_learnt_as_its_row_says(load, shape):
    row, wanted = ROWS[shape]
    if wanted is None:
        wanted = "<|user|>hi<|im_end|>\n!<|assistant|>"
        with pytest.raises(LlamacyError, match="no usable sample"):  # this template writes the mood behind everything
            load(row)
        return
    data = load(row)
    assert [marked(data[i]) for i in range(len(data))] == [wanted]
    said = data.report()[1:]
    expected = [shapes.PREFERRED] if shape.startswith(("a pair", "a prompt that")) else []
    assert [line.partition(": 1, the first at")[0] for line in said if "longer than" not in line] == expected


def test_a_sharegpt_file_of_many_is_read_by_its_own_keys(load):
    rows = [ROWS[name] for name in ("sharegpt", "messages", "alpaca", "text", "a pair")]
    assert [marked(sample) for sample in load(*[row for row, _ in rows])] == [wanted for _, wanted in rows]


# ---- what is said ----

SAID = {
    "unused keys": ([{"text": "a b", "id": 3, "note": "x"}, {"text": "c d", "id": 4, "note": None}],
                    'not used: "id" in 2 records, "note" in 1 record, the first at data:1'),
    "the same key twice": ([{"text": "a b", "Text": "c"}], 'not used: "Text" in 1 record, the first at data:1'),
    "history beside messages": ([{"messages": [U, A], "history": [["a", "b"]]}], 'not used: "history" in 1 record'),
    "images": ([{"messages": [U, A], "images": ["x.png"]}], 'not used: "images" in 1 record'),
    "a system message of its own": ([{"system": "T", "messages": [{"role": "system", "content": "S"}, U, A]}],
                                    shapes.TWO_SYSTEMS),
    "an unwanted answer": ([{"text": "ok ok"}, {"prompt": "p", "completion": "c", "label": False}], shapes.UNWANTED),
    "empty answers": ([{"messages": TALK2}, {"messages": [*TALK2[:3], {**A, "content": ""}]}], turns.EMPTY),
    "thoughts": ([{"messages": [U, {**A, "reasoning_content": "hm"}]}], turns.UNSEEN.format("reasoning_content")),
    "names": ([{"messages": [{**U, "name": "Ann"}, A]}], turns.UNSEEN.format("name")),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_is_not_used_is_said_once_with_its_count(tmp_path, load, case):
    rows, wanted = SAID[case]
    report = [line.replace(f"{tmp_path}/", "") for line in load(*rows).report()]
    assert sum(line.startswith(wanted) for line in report) == 1


def test_reading_samples_again_counts_nothing_again(load):
    data = load({"text": "a b", "id": 1})
    before = data.report()
    data[0], data[0]
    assert data.report() == before


def test_empty_answers_are_taught_where_that_is_asked(load):
    rows = [
        {"prompt": "p", "completion": ""},
        {"messages": [U, {**A, "content": ""}]},
        {"instruction": "q", "output": None},
    ]
    with pytest.raises(LlamacyError, match="no usable sample: of 3"):
        load(*rows)
    assert [marked(sample) for sample in load(*rows, keep_empty=True)] == [
        "p[</s>]", "<|user|>hi<|im_end|>\n<|assistant|>[<|im_end|>]\n", instruct("q", answer="</s>")]  # fmt: skip


BAD = {
    "half a weight": ({"messages": [U, {**A, "weight": 0.5}]}, '"messages"[1]."weight" is 0.5, wanted 0 or 1'),
    "tools that are none": ({"messages": [U, A], "tools": 5}, '"tools" is 5, wanted a list of objects'),
    "calls that are none": (
        {"messages": [U, {**A, "tool_calls": "[1]"}]},
        '"tool_calls" is [1], wanted a list of objects',
    ),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image"}]}, A]}, "only text can be trained"),
    "history that is none": (
        {"instruction": "q", "output": "a", "history": [["x"]]},
        "wanted pairs of question and answer",
    ),
    "history beside a prompt": (
        {"prompt": "q", "completion": "a", "history": [["x", "y"]]},
        '"history" beside "prompt"',
    ),
    "a call without a name": (
        {"messages": [U, {"role": "function_call", "content": "{}"}]},
        "is no call of a function",
    ),
    "an answer that is a list": ({"question": "q", "answer": ["a"]}, '"answer" is a list, wanted text'),
    "an answer that is an object": ({"question": "q", "answer": {"text": "a"}}, 'has no "role" and "content"'),
    "a pair without a prompt": ({"chosen": "b", "rejected": ["b"]}, 'missing keys: wanted "prompt" beside "chosen"'),
    "half a character": ({"messages": [U, {**A, "content": "\ud83d"}]}, "half a character"),
    "arguments for the template": ({"messages": [U, A], "chat_template_kwargs": [1]}, "wanted an object"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_learnt_is_one_clear_line(load, case):
    row, wanted = BAD[case]
    with pytest.raises(LlamacyError) as caught:
        load({"text": "good one"}, row)
    assert wanted in str(caught.value) and "data:2: " in str(caught.value) and "\n" not in str(caught.value)


WRAPPED = {
    "data": {"data": [{"text": "one"}, {"text": "two"}]},
    "others around it": {
        "version": "1.0 {[",
        "n": [1, {"data": 2}],
        "data": [{"text": "one"}, {"text": "two"}],
        "end": "]",
    },
    "rows": {"rows": [{"text": "one"}, {"text": "two"}]},
    "conversations in it": {"data": [[U, A], [U, A]]},
    "one list": [U, A, *TALK2[2:]],
    "lists": [[U, A], [U, A]],
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("case", WRAPPED)
def test_records_inside_an_object_and_lists_of_lists(load, case, indent):
    value = WRAPPED[case]
    data = load(json.dumps(value, indent=indent))
    if case == "one list":
        assert marked(data[0]) == SECOND.replace(">yo<|im_end|>", ">[yo<|im_end|>]") and len(data) == 1
    elif case in ("lists", "conversations in it"):
        assert [marked(sample) for sample in data] == [CHAT, CHAT]
    else:
        assert [shown(sample) for sample in data] == [("o", "ne</s>"), ("t", "wo</s>")]
    if case == "others around it":
        assert '"version" in 1 record' in data.report()[-1] and '"end" in 1' in data.report()[-1]


def test_lists_of_messages_a_line_each(load):
    assert [marked(sample) for sample in load([U, A], [U, A])] == [CHAT, CHAT]


def test_an_object_around_records_that_is_cut_off_is_told(load):
    for text in ('{"data": [{"text": "one"}', '{"data": [{"text": "one"}]', '{"data": [{"text": "one"}], "x": '):
        with pytest.raises(LlamacyError, match=r"data:1: (the array is not closed|the object around|broken JSON)"):
            load(text)

"""Conversations as chat templates write them: tokens and what is learnt, as transformers has them (recorded by
tests/peers/record_chat.py), in every form that the data may have, and in time that grows with their length alone.
"""

import json
from pathlib import Path

import pytest

from llamacy.default_model import default_model
from llamacy.errors import LlamacyError
from llamacy.formats.model_file import open_model
from llamacy.text import chat
from llamacy.text.tokenizer import Tokenizer
from llamacy.train import turns
from llamacy.train.conversations import Conversation
from llamacy.train.data import Encoder, open_data
from tests.peers.record_chat import TEMPLATES

DATA = Path(__file__).parents[1] / "data" / "chat"
RECORDS = {row["name"]: row for row in map(json.loads, (DATA / "records.jsonl").read_text("utf-8").splitlines())}
EXPECTED = json.loads((DATA / "expected.json").read_text())


@pytest.fixture(scope="module")
def metadata():
    try:
        path = default_model()
    except LlamacyError as error:
        pytest.skip(str(error))
    with open_model(path) as file:
        yield dict(file.metadata)


@pytest.fixture(scope="module")
def models(metadata):
    """template -> (tokenizer with its special tokens, render)."""
    found = {}
    for name, (special, bos, eos, _) in TEMPLATES.items():
        tokens = [*metadata["tokenizer.ggml.tokens"], *special]
        kinds = [*metadata["tokenizer.ggml.token_type"], *[3] * len(special)]
        own = {
            "tokens": tokens,
            "token_type": kinds,
            "bos_token_id": tokens.index(bos),
            "eos_token_id": tokens.index(eos),
        }
        tokenizer = Tokenizer.from_metadata(metadata | {f"tokenizer.ggml.{key}": value for key, value in own.items()})
        source = DATA / f"{name}.jinja"
        template = chat.template_for(metadata, str(source) if source.exists() else None)
        found[name] = tokenizer, renderer(template, bos, eos)
    return found


def renderer(template, bos, eos):
    def render(messages, add_generation_prompt, **variables):
        return chat.render(
            messages, template, bos=bos, eos=eos, add_generation_prompt=add_generation_prompt, **variables
        )

    return render


def sharegpt(record):
    """The same record with ShareGPT's keys and names, as far as it has any."""
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}
    rows = []
    for message in record["messages"]:
        row = {"from": names[message["role"]], "value": message["content"]}
        rows.append(row | {key: value for key, value in message.items() if key not in ("role", "content")})
    return {**record, "conversations": rows, "messages": None}


def capitals(record):
    names = {"system": "System", "user": "HUMAN", "assistant": "Assistant", "tool": "Tool"}
    rows = [{**message, "role": names[message["role"]]} for message in record["messages"]]
    return {"Messages": rows} | {key: value for key, value in record.items() if key != "messages"}


def as_text(record):
    """Lists as JSON text, as data sets keep what differs from record to record."""
    tools = {"tools": json.dumps(record["tools"])} if "tools" in record else {}
    return {**record, "messages": json.dumps(record["messages"]), **tools}


def system_apart(record):
    first, *rest = record["messages"]
    return {**record, "system": first["content"], "messages": rest} if first["role"] == "system" else record


def with_text_arguments(record):
    """OpenAI's form: the arguments of a call as JSON text."""
    messages = []
    for message in record["messages"]:
        calls = []
        for call in message.get("tool_calls", []):
            arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            calls.append({**call, "function": {**call["function"], "arguments": arguments}})
        messages.append({**message, **({"tool_calls": calls} if calls else {})})
    return {**record, "messages": messages}


FORMS = {
    "messages": lambda record: record,
    "a bare list": lambda record: record["messages"] if "tools" not in record else record,
    "sharegpt": sharegpt,
    "capitals": capitals,
    "json text": as_text,
    "system apart": system_apart,
    "parts": lambda record: {**record, "messages": [
        {**m, "content": [{"type": "text", "text": m["content"]}] if m["content"] else m["content"]}
        for m in record["messages"]]},
    "text arguments": with_text_arguments,
    "null keys": lambda record: {**record, "messages": [{"name": None, "x": None, **m} for m in record["messages"]]},
}  # fmt: skip


def answers(sample):
    """Return [[begin, end], ...] of what is trained in a sample."""
    edges, inside = [], False
    for at, flag in enumerate([*sample.trained.tolist(), False]):
        if flag != inside:
            edges.append(at)
            inside = flag
    return [edges[i : i + 2] for i in range(0, len(edges), 2)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("template", EXPECTED)
def test_tokens_and_answers_are_those_of_transformers(tmp_path, models, template, form):
    tokenizer, render = models[template]
    path = tmp_path / "data.jsonl"
    for name, expected in EXPECTED[template].items():
        path.write_text(json.dumps(FORMS[form](RECORDS[name])) + "\n", encoding="utf-8")
        if not expected or not expected["answers"]:
            with pytest.raises(
                LlamacyError, match=r"data\.jsonl:1: " + ("no usable" if expected else "the chat template")
            ):
                open_data([path], Encoder(tokenizer, 4096), render=render)
            continue
        sample = open_data([path], Encoder(tokenizer, 4096), render=render)[0]
        assert sample.ids.tolist() == expected["ids"], name
        joined = []
        for begin, end in expected["answers"]:
            joined = (
                [*joined[:-1], [joined[-1][0], end]] if joined and joined[-1][1] == begin else [*joined, [begin, end]]
            )
        assert answers(sample) == joined, name


def test_recorded_facts_are_of_every_template_and_record():
    assert EXPECTED.keys() == TEMPLATES.keys()
    assert all(table.keys() == RECORDS.keys() for table in EXPECTED.values())
    assert sum(row is not None for table in EXPECTED.values() for row in table.values()) == 59


# ---- what is not learnt is said ----

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def pieces(messages, template=CHATML, learn=None, keep_empty=False, **variables):
    """Return (pieces, remarks) of a conversation."""
    talk = Conversation(messages, learn or [None] * len(messages), variables)
    remarks = []
    render = renderer(chat.Template(template, "of-the-test"), "<s>", "</s>")
    return turns.pieces(talk, render, keep_empty, remarks.append), remarks


def said(*rows):
    return [{"role": role, "content": content} for role, content in rows]


def learnt(found):
    return [text for text, part in found if part]


TALK = said(("user", "A"), ("assistant", "b"), ("user", "C"), ("assistant", "d"))
REWRITES = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.upper() }}")
SAID = {
    "nothing": (TALK, {}, ["b<|im_end|>\n", "d<|im_end|>\n"], []),
    "not to be learnt": (TALK, {"learn": [None, False, None, None]}, ["d<|im_end|>\n"], []),
    "a question to be learnt": (
        TALK, {"learn": [True, False, None, True]}, ["d<|im_end|>\n"], [turns.NOT_THE_ASSISTANTS]),
    "an empty answer": (said(("user", "a"), ("assistant", " ")), {}, [], [turns.EMPTY]),
    "an empty answer that is taught": (
        said(("user", "a"), ("assistant", "")), {"keep_empty": True}, ["<|im_end|>\n"], []),
    "rewritten": (TALK, {"template": REWRITES}, ["d<|im_end|>\n"],
                  [turns.UNSEEN.format("content"), turns.REWRITTEN]),
    "tools that are not written": (TALK, {"tools": [{"function": {"name": "zz"}}]}, ["b<|im_end|>\n", "d<|im_end|>\n"],
                                   [turns.UNSEEN_TOOLS]),
    "a call that is not written": (
        [*TALK[:1], {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "zz"}}]}], {}, [],
        [turns.UNSEEN.format("tool_calls"), turns.NOT_WRITTEN]),
    "thoughts that are not written": ([*TALK[:3], {**TALK[3], "reasoning_content": "hm"}], {},
                                      ["b<|im_end|>\n", "d<|im_end|>\n"], [turns.UNSEEN.format("reasoning_content")]),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_is_not_learnt_or_written_is_told(case):
    messages, how, wanted, remarks = SAID[case]
    found, told = pieces(messages, **how)
    assert learnt(found) == wanted
    assert told == remarks


def test_a_turn_that_is_not_learnt_stays_so_where_prompts_are(models):
    tokenizer, _ = models["smollm2"]
    found, _ = pieces(TALK, learn=[None, False, None, None])
    from llamacy.train.samples import Record

    sample, _ = Encoder(tokenizer, 512, mask_prompt=False).encode(Record(found, closed=True))
    text = tokenizer.decode([i for i, t in zip(sample.ids, sample.trained, strict=True) if not t], special=True)
    assert text == "<|im_start|>b<|im_end|>\n"  # the first token is never predicted


# ---- long ones ----


def counting(template, **values):
    """Return (a render, the list of how many messages each of its calls wrote)."""
    inner, calls = renderer(chat.Template(template, "of-the-test"), "<s>", "</s>"), []

    def render(messages, add_generation_prompt, **variables):
        calls.append(len(messages))
        return inner(messages, add_generation_prompt, **variables)

    return render, calls


def long_talk(n, tools=False):
    talk = said(("system", "S"))
    for i in range(n // 2):
        talk += said(("user", f"question {i}"), ("assistant", f"answer {i}"))
        if tools and i % 3 == 0:
            talk += said(("tool", f"found {i}"), ("assistant", f"so {i}"))
    return talk


def chain(n):
    """One question, then calls and results only."""
    rows = [row for i in range(n // 2) for row in (("assistant", f"call {i}"), ("tool", f"r {i}"))]
    return said(("user", "do it"), *rows, ("assistant", "done"))


LONG = {
    "questions and answers": (CHATML, long_talk(120)),
    "tools": (CHATML, long_talk(80, tools=True)),
    "a chain of calls": (CHATML, chain(200)),
    "thoughts dropped": ((DATA / "qwen3.jinja").read_text(), long_talk(200)),
    "qwen2.5": ((DATA / "qwen2_5.jinja").read_text(), long_talk(60, tools=True)),
    "llama 3": ((DATA / "llama3.jinja").read_text(), long_talk(60)),
    "rewritten": (REWRITES, long_talk(60)),
    "told how many": (CHATML + "{{ messages | length }}", long_talk(60)),
    "counted": (CHATML.replace("{{ m.content }}", "{{ loop.index }} {{ m.content }}"), long_talk(60)),
    "strict": ((DATA / "gemma.jinja").read_text(), long_talk(60)[1:]),
}


@pytest.mark.parametrize("case", LONG)
def test_long_conversations_are_cut_as_short_ones(monkeypatch, case):
    template, talk = LONG[case]
    learn = [None] * len(talk)
    render, calls = counting(template)
    found = turns.pieces(Conversation(talk, learn), render, False, lambda text: None)
    walked = sum(calls)
    monkeypatch.setattr(turns, "LONG", 10**9)
    calls.clear()
    assert found == turns.pieces(Conversation(talk, learn), render, False, lambda text: None)
    if case in ("questions and answers", "tools", "a chain of calls", "thoughts dropped"):
        assert walked < sum(calls) / 3


def test_the_work_grows_with_the_length_alone():
    work = []
    for n in (200, 400):
        render, calls = counting(CHATML)
        found = turns.pieces(Conversation(long_talk(n), [None] * (n + 1)), render, False, lambda text: None)
        assert len(learnt(found)) == n // 2
        work.append(sum(calls))
    assert work[1] < 2.3 * work[0]

"""Requests' fields about sampling, grammars and limits: each is honoured, or refused by name; what is used is said."""

import json
import threading
import time

import pytest

from llamacy.cli.sampling_flags import Format
from llamacy.generate.samplers import DEFAULT_ORDER
from llamacy.generate.samplers.params import LIMITS, SamplingParams
from llamacy.generate.text_limits import TextLimits
from tests.generate.fakes import FakeModel
from tests.server.service import ask, error_of, events, post, serving


@pytest.fixture(scope="module")
def service():
    with serving() as running:
        yield running


def settings_of(service, **data):
    return post(service, "/completion", **{"prompt": "ab", "n_predict": 1, **data})["generation_settings"]


def test_every_sampling_field_is_honoured_and_reported(service):
    values = {name: {int: 2, float: 0.5}[kind] for name, (kind, *_) in LIMITS.items()} | {"dry_base": 1.5, "seed": 7}
    values |= {"samplers": ["min_p", "temperature"], "dry_sequence_breakers": ["."], "ignore_eos": True}
    found = settings_of(service, **values)
    assert {name: found[name] for name in values} == values
    plain = settings_of(service)
    defaults = SamplingParams()
    assert {name: plain[name] for name in LIMITS if name != "seed"} == {
        name: getattr(defaults, name) for name in LIMITS if name != "seed"
    }
    assert plain["samplers"] == list(DEFAULT_ORDER) and plain["dry_sequence_breakers"] == ["\n", ":", '"', "*"]
    assert plain["grammar"] == "" and "json_schema" not in plain


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["top_k", "temperature"], ["top_k", "temperature"]),
        ("kt", ["top_k", "temperature"]),
        ("top_k;temp", ["top_k", "temperature"]),
        ([], []),
    ],
)
def test_samplers_in_all_their_forms(service, value, expected):
    assert settings_of(service, samplers=value)["samplers"] == expected


def texts(service, path="/completion", **data):
    """Return the answers' texts for a few seeds."""
    return [post(service, path, prompt="abcab", n_predict=12, seed=seed, **data)["content"] for seed in range(3)]


@pytest.mark.parametrize(
    "data",
    [
        {"mirostat": 1, "mirostat_tau": 0.1},
        {"mirostat": 2, "mirostat_tau": 0.1},
        {"dry_multiplier": 50.0, "dry_allowed_length": 0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"top_n_sigma": 0.01},
        {"dynatemp_range": 5.0, "temperature": 5.0},
        {"samplers": ["top_k"], "top_k": 1},
        {"min_keep": 200, "top_k": 0},
        {"repetition_penalty": 50.0},
    ],
)
def test_a_field_changes_the_text(service, data):
    assert texts(service, **data) != texts(service)


def test_a_chat_takes_them_too(service):
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 8, "seed": 1}
    plain = post(service, "/v1/chat/completions", **body)["choices"][0]["message"]["content"]
    for data in ({"top_n_sigma": 0.01}, {"samplers": "k", "top_k": 1}, {"grammar": 'root ::= "yes"'}):
        assert post(service, "/v1/chat/completions", **body, **data)["choices"][0]["message"]["content"] != plain
    assert post(service, "/v1/completions", prompt="a", grammar='root ::= "yes"')["choices"][0]["text"] == "yes"


WRONG = [
    ({"samplers": ["top_k", "best"]}, "samplers: wanted names of penalties, dry, "),
    ({"samplers": "kq"}, "samplers: wanted names of "),
    ({"samplers": 5}, "samplers: wanted a list of names, got 5"),
    ({"samplers": [5]}, "samplers: wanted names of "),
    ({"dry_sequence_breakers": "x"}, "dry_sequence_breakers: wanted a list, got 'x'"),
    ({"dry_sequence_breakers": []}, "dry_sequence_breakers: wanted a list of at least one string"),
    ({"dry_sequence_breakers": [1]}, "dry_sequence_breakers[0]: wanted a string, got 1"),
    ({"mirostat": 3}, "mirostat: wanted a whole number at least 0 and at most 2, got 3"),
    ({"xtc_probability": 2}, "xtc_probability: wanted a number at least 0 and at most 1, got 2"),
    ({"min_keep": -1}, "min_keep: wanted a whole number at least 0, got -1"),
    ({"id_slot": 2}, "id_slot: wanted at most 1, got 2"),
    ({"id_slot": "x"}, "id_slot: wanted a whole number"),
    ({"post_sampling_probs": 1}, "post_sampling_probs: wanted true or false, got 1"),
    ({"n_cmpl": 0}, "n_cmpl: wanted a whole number at least 1"),
    ({"n_indent": -1}, "n_indent: wanted a whole number at least 0"),
    ({"response_fields": "content"}, "response_fields: wanted a list"),
    ({"grammar": 5}, "grammar: wanted a string, got 5"),
    ({"grammar": "root ::= ("}, "grammar: line 1, column 10: this parenthesis is not closed"),
    ({"grammar": "root ::= x", "json_schema": {}}, "grammar and json_schema: wanted one of them"),
    ({"image_data": [{"data": ""}]}, "image_data: not supported"),
    ({"speculative.n_max": 5}, "speculative.n_max: not supported"),
    ({"adaptive_target": 0.5}, "adaptive_target: not supported"),
    ({"grammar_lazy": True}, "grammar_lazy: not supported"),
    ({"tfs_z": 0.5}, "tfs_z: not supported"),
    ({"best_of": 2}, "best_of: not supported"),
    ({"stop_token_ids": [5]}, "stop_token_ids: not supported"),
    ({"return_progress": 1}, "return_progress: wanted true or false, got 1"),
]


@pytest.mark.parametrize(("data", "message"), WRONG)
def test_what_is_wrong_or_not_built_is_named(service, data, message):
    status, found = error_of(service, "POST", "/completion", {"prompt": "a", "n_predict": 1, **data})
    assert status == 400 and found.startswith(message)


def test_fields_that_ask_for_nothing_are_taken(service):
    nothing = {"image_data": [], "tfs_z": 1.0, "best_of": 1, "adaptive_target": -1.0, "speculative.n_max": 0}
    nothing |= {
        "tools": None,
        "user": "x",
        "n_cache_reuse": 256,
        "metadata": {"a": 1},
        "grammar": "",
        "modalities": ["text"],
    }
    assert settings_of(service, **nothing)["n_predict"] == 1


def test_a_grammar_s_text(service):
    answer = post(service, "/completion", prompt="a", grammar='root ::= [0-9]{3} | "x"', seed=4)
    assert answer["content"].isdigit() or answer["content"] == "x"
    assert answer["stop_type"] == "eos" and answer["generation_settings"]["grammar"] == 'root ::= [0-9]{3} | "x"'
    answer = post(service, "/completion", prompt="a", json_schema={"const": [1]})
    assert (answer["content"], answer["generation_settings"]["json_schema"]) == ("[1]", {"const": [1]})


def test_a_grammar_that_cannot_be_followed_fails_alone(service):
    bad = {"prompt": "a", "grammar": 'root ::= [a-z] root "b" | [a-z] root "c" | ""', "n_predict": 200}
    status, message = error_of(service, "POST", "/completion", bad)
    assert status == 400 and "too ambiguous" in message
    assert post(service, "/completion", prompt="a", n_predict=1)["tokens_predicted"] == 1


def test_probabilities_after_sampling(service):
    data = {"prompt": "ab", "n_predict": 3, "n_probs": 5, "post_sampling_probs": True, "seed": 1}
    answer = post(service, "/completion", **data, top_k=2, min_p=0)
    for entry in answer["completion_probabilities"]:
        assert set(entry) == {"id", "token", "bytes", "prob", "top_probs"}
        assert 1 <= len(entry["top_probs"]) <= 2 and sum(e["prob"] for e in entry["top_probs"]) == pytest.approx(1)
        assert entry["prob"] in [e["prob"] for e in entry["top_probs"]]
    greedy = post(service, "/completion", **data, temperature=0)["completion_probabilities"]
    assert all(entry["prob"] == 1 and len(entry["top_probs"]) == 1 for entry in greedy)
    parts = events(service, "/completion", **data)
    assert "top_probs" in parts[0]["completion_probabilities"][0]
    status, message = error_of(service, "POST", "/v1/completions", {**data, "logprobs": 2})
    assert status == 400 and message.startswith("post_sampling_probs: wanted only in /completion")


def test_logprobs_is_another_name_for_n_probs(service):
    answer = post(service, "/completion", prompt="ab", n_predict=1, logprobs=3)
    assert len(answer["completion_probabilities"][0]["top_logprobs"]) == 3


def test_several_completions_of_a_prompt(service):
    answers = post(service, "/completion", prompt="ab", n_predict=6, n_cmpl=3, seed=5)
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert len({answer["content"] for answer in answers}) > 1
    assert [answer["generation_settings"]["seed"] for answer in answers] == [5, 6, 7]
    assert len(post(service, "/completion", prompt=["ab", "cd"], n_predict=1, n=2)) == 4
    assert isinstance(post(service, "/completion", prompt="ab", n_predict=1, n=1), dict)


def test_response_fields_pick_and_unnest(service):
    fields = ["content", "generation_settings/n_predict", "timings/nothing", "missing"]
    answer = post(service, "/completion", prompt="ab", n_predict=2, response_fields=fields)
    assert set(answer) == {"content", "generation_settings/n_predict"}
    assert answer["generation_settings/n_predict"] == 2
    last = events(service, "/completion", prompt="ab", n_predict=2, response_fields=["stop_type"])[-1]
    assert last == {"stop_type": "limit"}


def test_timings_with_every_piece(service):
    parts = events(service, "/completion", prompt="ab", n_predict=4, timings_per_token=True, ignore_eos=True)
    counts = [part["timings"]["predicted_n"] for part in parts[:-1]]
    assert counts == sorted(counts) and counts[0] >= 1
    assert "timings" not in events(service, "/completion", prompt="ab", n_predict=4)[0]


def test_progress_of_a_prompt():
    """After each part of a prompt: how much of it is in the cache, what was there before included."""
    with serving(batch_size=16, n_slots=1) as service:
        data = {"prompt": "a" * 39, "n_predict": 1, "return_progress": True}
        found = [
            part["prompt_progress"] for part in events(service, "/completion", **data) if "prompt_progress" in part
        ]
        assert [(p["total"], p["cache"], p["processed"]) for p in found] == [(40, 0, 16), (40, 0, 32), (40, 0, 40)]
        assert all(p["time_ms"] > 0 for p in found)
        data["prompt"] += "b" * 8
        parts = events(service, "/v1/completions", **data)
        found = [part["prompt_progress"] for part in parts if "prompt_progress" in part]
        assert [(p["total"], p["cache"], p["processed"]) for p in found] == [(48, 40, 48)]
        assert "prompt_progress" not in post(service, "/completion", **data)
        assert not any("prompt_progress" in part for part in events(service, "/completion", prompt="c", n_predict=1))


def test_a_slot_of_one_s_own(service):
    """Who asks for a slot gets that one, and waits for it while others pass."""
    for wanted in (1, 0, 1):
        assert post(service, "/completion", prompt="ab", n_predict=1, id_slot=wanted)["id_slot"] == wanted
    service.session.gate.clear()
    found = []

    def run(name, **data):
        found.append((name, post(service, "/completion", prompt=name, n_predict=1, **data)["id_slot"]))

    threads = [threading.Thread(target=run, args=(f"p{i}",), kwargs={"id_slot": 1}) for i in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(service.engine._queue) < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    other = threading.Thread(target=run, args=("q",))
    other.start()
    time.sleep(0.1)
    service.session.gate.set()
    for thread in [*threads, other]:
        thread.join(10)
    assert sorted(found) == [("p0", 1), ("p1", 1), ("q", 0)]


def test_n_discard_of_a_context_shift():
    """A full context drops as many tokens as asked for instead of half."""
    for n_discard, expected in ((0, 16), (5, 5)):
        with serving(n_ctx=32, n_slots=1, context_shift=True) as service:
            lengths = []
            slot = service.engine.slots[0]
            shift = slot._shift

            def watched(slot=slot, shift=shift, lengths=lengths):
                before = len(slot.history)
                done = shift()
                lengths.append(before - len(slot.history))
                return done

            slot._shift = watched
            post(service, "/completion", prompt="a", n_predict=40, n_discard=n_discard, ignore_eos=True, seed=1)
            assert lengths[0] == expected


def test_a_prompt_that_takes_too_long():
    class Slow(FakeModel):
        def new_session(self, **more):
            session = super().new_session(**more)
            step = session.step
            session.step = lambda *args, **kwargs: (time.sleep(0.02), step(*args, **kwargs))[1]
            return session

    with serving(Slow(), n_slots=1, batch_size=4) as service:
        answer = post(service, "/completion", prompt="a" * 100, t_max_prompt_ms=50)
        assert (answer["stop_type"], answer["content"], answer["tokens_predicted"]) == ("limit", "", 0)
        assert post(service, "/completion", prompt="a" * 20, t_max_prompt_ms=-1, n_predict=2)["tokens_predicted"] == 2


def test_lines_with_too_few_blanks_end_the_text():
    answer = b"if x:\n    one\n    two\nthree"
    with serving(FakeModel(answer=answer, prompt_length=2)) as service:
        found = post(service, "/completion", prompt="a", n_indent=4, temperature=0)
        assert (found["content"], found["stop_type"]) == ("if x:\n    one\n    two\n", "limit")
        found = post(service, "/completion", prompt="a", temperature=0)
        assert found["content"] == answer.decode()
        parts = events(service, "/completion", prompt="a", n_indent=4, temperature=0)
        assert "".join(part["content"] for part in parts) == "if x:\n    one\n    two\n"


@pytest.mark.parametrize("cut", [1, 2, 5, 100])
def test_limits_do_not_depend_on_how_a_text_is_cut(cut):
    text = "a\n  b\n\t c\n \nd"
    for n_indent, expected in ((0, text), (1, "a\n  b\n\t c\n \n"), (2, "a\n  b\n\t c\n "), (3, "a\n  ")):
        limits = TextLimits(n_indent)
        assert "".join(limits.feed(text[i : i + cut]) for i in range(0, len(text), cut)) == expected
        assert limits.is_over == (expected != text)


def test_the_time_is_looked_at_where_a_line_ends():
    now = [0.0]
    limits = TextLimits(seconds=1.0, clock=lambda: now[0])
    assert limits.feed("a\n") == "a\n" and not limits.is_over
    now[0] = 2.0
    assert limits.feed("b") == "b" and not limits.is_over
    assert limits.feed("c\nd") == "c\nd" and limits.is_over and limits.feed("e") == ""


def test_the_server_s_own_defaults():
    defaults = {
        "temperature": 0.0,
        "top_k": 3,
        "samplers": ("top_k", "temperature"),
        "n_predict": 2,
        "ignore_eos": True,
    }
    defaults |= {"logit_bias": ((97, 50.0),)}
    with serving(defaults=defaults) as service:
        answer = post(service, "/completion", prompt="x")
        found = answer["generation_settings"]
        assert {name: found[name] for name in ("temperature", "top_k", "samplers", "n_predict", "logit_bias")} == {
            "temperature": 0.0,
            "top_k": 3,
            "samplers": ["top_k", "temperature"],
            "n_predict": 2,
            "logit_bias": [[97, 50.0]],
        }
        assert answer["content"] == "aa"
        assert post(service, "/completion", prompt="x", n_predict=3, logit_bias=[[98, 50]])["content"] == "bbb"
        assert post(service, "/completion", prompt="x", n_predict=-1)["tokens_predicted"] == 2
        assert post(service, "/v1/completions", prompt="x")["usage"]["completion_tokens"] == 2
        shown = json.loads(json.dumps(ask(service, "GET", "/props")[1]))["default_generation_settings"]["params"]
        assert shown["top_k"] == 3 and shown["samplers"] == ["top_k", "temperature"]


def test_the_server_s_own_grammar():
    with serving(format=Format("grammar", 'root ::= "yes"')) as service:
        for _ in range(2):
            answer = post(service, "/completion", prompt="a")
            assert (answer["content"], answer["generation_settings"]["grammar"]) == ("yes", 'root ::= "yes"')
        assert post(service, "/v1/completions", prompt="a")["choices"][0]["text"] == "yes"
        assert post(service, "/completion", prompt="a", json_schema={"const": 1})["content"] == "1"
        assert post(service, "/completion", prompt="a", grammar='root ::= "no"')["content"] == "no"
        assert post(service, "/completion", prompt="a", grammar="", n_predict=4)["content"] != "yes"

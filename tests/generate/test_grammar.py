"""Constrained text: the automaton against Python's json and re, masks against trying every token, and the sampler."""

import json
import re
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacy.errors import LlamacyError
from llamacy.generate import automaton as automata
from llamacy.generate.automaton import Automaton
from llamacy.generate.constraint import Constraint, TokenTable
from llamacy.generate.engine import Engine
from llamacy.generate.gbnf import gbnf
from llamacy.generate.grammar import Ref, Star, Words, alt, compact, lit, optional, repeat, seq, some
from llamacy.generate.json_grammar import json_object, json_schema
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams
from tests.generate.fakes import BOS, EOS, N_VOCAB, FakeModel, FakeTokenizer

# Expressions beside the regular expression that says the same.
PAIRS = [
    (lit("abc"), "abc"),
    (seq(lit("a"), alt(lit("b"), lit("bc"), seq()), lit("c")), "a(b|bc|)c"),
    (Star(some("ab")), "[ab]*"),
    (seq(Star(lit("ab")), optional(lit("a"))), "(ab)*a?"),
    (repeat(some("a", None), 2, 4), "a{2,4}"),
    (repeat(alt(lit("a"), lit("bb")), 1), "(a|bb)+"),
    (repeat(lit("a"), 0, 0), ""),
]


@pytest.mark.parametrize(("expression", "pattern"), PAIRS)
@given(text=st.text("abc", max_size=7))
def test_the_automaton_is_the_regular_expression(expression, pattern, text):
    automaton = Automaton({}, expression)
    state = automaton.run(0, text.encode())
    assert automaton.may_end(state) == bool(re.fullmatch(pattern, text))


def test_rules_that_call_themselves():
    automaton = Automaton({"p": alt(seq(lit("("), Ref("p"), lit(")")), lit(""))}, Ref("p"))
    for text, fits in [("", True), ("()", True), ("((()))", True), ("(()", False), ("())", False)]:
        assert automaton.may_end(automaton.run(0, text.encode())) == fits
    assert automaton.must_end(automaton.run(0, b"()")) and not automaton.must_end(automaton.run(0, b"(("))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(json_values, st.booleans(), st.sampled_from([None, 2]))
def test_any_json_object_is_accepted(value, ascii, indent):
    text = json.dumps({"v": value}, ensure_ascii=ascii, indent=indent).encode("utf-8", "replace")
    automaton = ANY
    state = automaton.run(0, text)
    assert automaton.must_end(state)
    for end in range(len(text)):
        assert not automaton.may_end(automaton.run(0, text[:end]))


ANY = json_object()


@settings(max_examples=300, deadline=None)
@given(st.text('{}[]",:\\ \n\x00ae1-.0unltrfs\u00e9', max_size=14))
def test_what_is_accepted_is_json(text):
    if ANY.may_end(ANY.run(0, text.encode())):
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("number", ["0", "-0", "10", "1.5", "1e5", "1.25E-3", "-7.0e+12"])
def test_numbers(number):
    automaton = json_schema({"type": "number"})
    assert automaton.may_end(automaton.run(0, number.encode()))
    for wrong in ("0" + number[1:] + "x", "+" + number, "." + number, number + "."):
        assert not automaton.may_end(automaton.run(0, wrong.encode()))


@pytest.mark.parametrize("data", [b'{"\xc3', b'{"\xe6\x97', b'{"\xf0\x9f\x98'])
def test_a_character_may_be_unfinished_but_not_wrong(data):
    assert ANY.run(0, data) != ANY.DEAD
    assert ANY.run(0, data + b'"') == ANY.DEAD and ANY.run(0, b'{"\xc0\x80') == ANY.DEAD
    assert ANY.run(0, b'{"\xed\xa0\x80') == ANY.DEAD and ANY.run(0, b'{"\n') == ANY.DEAD


SCHEMAS = [
    ({"type": "string"}, ['"a"', '""'], ["1", "a", '"a']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"日本語"', r'"\n\u00e9"'], ['"a"', '"abcd"']),
    ({"type": "integer"}, ["0", "-5", "123"], ["1.5", "01", "-"]),
    ({"type": ["integer", "null"]}, ["5", "null"], ["true"]),
    ({"enum": ["red", 5, None]}, ['"red"', "5", "null"], ['"blue"', "6"]),
    ({"const": {"a": [1]}}, ['{"a": [1]}'], ["{}"]),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ["[true]", "[ true, false]"],
     ["[]", "[true,true,true]", "[1]"]),
    ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    ({"prefixItems": [{"type": "integer"}, {"type": "string"}]}, ['[1, "a"]'], ["[1]", '["a", 1]']),
    (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}, "c": {"type": "null"}}, "required": ["b"]},
        ['{"b": 1}', '{"a": 1, "b": [2]}', '{"a":1,"b":2,"c":null}', '{"b": "x", "c": null}'],
        ["{}", '{"a": 1}', '{"b": 1, "a": 1}', '{"b": 1, "d": 1}', '{"b": 1,}', '{,"b": 1}'],
    ),
    ({"properties": {"a": {}, "b": {}}}, ["{}", '{"b": 1}', '{"a": 1}'], ['{"c": 1}', '{"a": 1,}']),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"x": 1, "y": 2}'], ['{"x": "a"}']),
    ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a": 1}']),
    ({"anyOf": [{"type": "null"}, {"type": "object", "properties": {}}]}, ["null", '{"a": 1}'], ["1"]),
    ({"allOf": [{"type": "integer"}]}, ["1"], ["null"]),
    (
        {"$ref": "#/$defs/node", "$defs": {"node": {"required": ["v"], "properties": {
            "v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}}}},
        ['{"v": 1}', '{"v": 1, "next": {"v": 2, "next": {"v": 3}}}'],
        ['{"v": 1, "next": {}}', '{"next": {"v": 1}}'],
    ),
    (True, ["1", "null", "{}"], [""]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "right", "wrong"), SCHEMAS)
def test_schemas(schema, right, wrong):
    automaton = json_schema(schema)
    for text in right:
        assert automaton.may_end(automaton.run(0, text.encode())), text
    for text in wrong:
        assert not automaton.may_end(automaton.run(0, text.encode())), text


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a": {"not": {"pattern": "x"}}}}, "schema.a.not: 'pattern' is not supported in what must not"),
        ({"type": "date"}, "schema.type: wanted one of object, array"),
        ({"type": [["string"]]}, "schema.type: wanted one of"),
        ({"$ref": "http://x/y"}, "schema.$ref: wanted a reference inside the schema"),
        ({"$ref": "#/$defs/nothing"}, "schema.$ref: '#/$defs/nothing' is not in the schema"),
        ({"$ref": "#"}, "schema.$ref: the schema refers to itself without end"),
        ({"anyOf": []}, "schema.anyOf: wanted a list of schemas"),
        ({"enum": 5}, "schema.enum: wanted a list of values"),
        ({"type": "string", "maxLength": 10**9}, "schema.maxLength: wanted a whole number from 0 to 1000000"),
        (
            {"properties": {"a": {}}, "required": ["b"], "additionalProperties": False},
            "schema.required: 'b' is not among",
        ),
        ([1], "schema: wanted a schema object, got list"),
    ],
)
def test_schemas_that_cannot_be_followed_are_named(schema, message):
    with pytest.raises(LlamacyError) as caught:
        json_schema(schema)
    assert str(caught.value).startswith(message)


keywords = ["type", "properties", "required", "items", "prefixItems", "enum", "$ref", "anyOf", "allOf", "minItems",
            "additionalProperties", "maxLength", "const"]  # fmt: skip
odd = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["string", "object", "#", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*keywords, "a"]), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(odd)
def test_any_schema_works_or_is_refused(schema):
    try:
        automaton = json_schema(schema)
    except LlamacyError:
        return
    automaton.step(0, ord("{"))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_mask_is_what_trying_every_token_gives(data):
    table, automaton = (
        TokenTable(FakeTokenizer(), N_VOCAB),
        data.draw(st.sampled_from([ANY, json_schema(SCHEMAS[9][0])])),
    )
    constraint = Constraint(automaton, table)
    for _ in range(data.draw(st.integers(0, 12))):
        mask = constraint.mask()
        assert mask.tolist() == [constraint.allows(id) for id in range(N_VOCAB)]
        usable = [id for id in np.flatnonzero(mask) if id not in FakeTokenizer.eog_ids]
        if not usable:
            assert constraint.is_over
            break
        constraint.accept(int(data.draw(st.sampled_from(usable))))


def test_a_forgotten_state_is_found_again(monkeypatch):
    table, text = TokenTable(FakeTokenizer(), N_VOCAB), b'{"a": [1, {"b": "cde"}]}'
    constraint = Constraint(json_object(), table)
    monkeypatch.setattr(automata, "MAX_STATES", 3)
    for byte in text:
        assert constraint.allows(byte) and constraint.mask()[byte]
        constraint.accept(byte)
    assert constraint.is_over and constraint.allows(EOS)


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("schema", [None, SCHEMAS[9][0], SCHEMAS[15][0]])
def test_generated_text_follows_the_grammar(schema, temperature):
    model = FakeModel()
    engine, table = Engine(model, n_ctx=2000, n_slots=3), TokenTable(model.tokenizer, N_VOCAB)
    automaton = json_object() if schema is None else json_schema(schema)
    for seed in range(8):
        found = []
        constraint = Constraint(automaton, table)
        request = Request(
            [BOS, seed],
            SamplingParams(temperature=temperature, seed=seed),
            n_predict=300,
            constraint=constraint,
            on_token=lambda token, found=found: found.append(token.id),
        )
        result = engine.run(request)
        data = b"".join(model.tokenizer.token_bytes(id) for id in found)
        state = automaton.run(0, data)
        assert state != automaton.DEAD
        if result.stop_type == "eos":
            assert isinstance(json.loads(data), dict)
        else:
            assert result.stop_type == "limit" and not automaton.must_end(state)


WORDS = ["", "a", "ab", "abc", "abd", "b", "bca", "日本", "日曜"]


@given(st.lists(st.sampled_from(WORDS), min_size=4, max_size=8), st.text("abcd日本曜", max_size=4))
def test_many_literals_are_the_same_as_their_alternatives(words_, text):
    """With what follows each, in any order and also twice."""
    parts = [seq(lit(word), alt(lit("d"), lit(""))) for word in words_]
    node = compact(alt(*parts))
    assert any(isinstance(part, Words) for part in (node, *getattr(node, "parts", ()))) or "" in words_
    automaton = Automaton({}, node)
    state = automaton.run(0, text.encode())
    assert automaton.may_end(state) == any(text in (word, word + "d") for word in words_)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"const": f"{i * 7919 % 3000:05} and some more text for it"} for i in range(3000)]},
        {"enum": [f"word {i * 104729}" for i in range(5000)]},
        {"type": "object", "properties": {f"key {i * 7919}": {"type": "integer"} for i in range(1000)}},
    ],
    ids=["anyOf", "enum", "properties"],
)
def test_large_schemas_take_little_work(schema):
    """What froze a server for half a minute is some thousand looks at expressions now, for the whole text."""
    automaton = json_schema(schema)
    constraint = Constraint(automaton, TokenTable(FakeTokenizer(), N_VOCAB))
    work, text = 0, b""
    random = np.random.default_rng(1)
    for _ in range(200):
        before = constraint._work
        usable = [id for id in np.flatnonzero(constraint.mask()) if id < 256]
        work += before - constraint._work
        if not usable:
            break
        constraint.accept(int(random.choice(usable)))
        text += bytes([constraint._tokens[-1]])
    assert work < 60_000
    value = json.loads(text) if constraint.is_over else None
    words_ = schema.get("enum", [one["const"] for one in schema.get("anyOf", [])])
    assert value is None or (value.keys() <= schema["properties"].keys() if not words_ else value in words_)


def test_members_are_those_of_the_schema_in_its_order():
    automaton = json_schema({"properties": {f"k{i}": {"type": "null"} for i in range(12)}, "required": ["k3", "k7"]})
    for keys, fits in [
        ((3, 7), True), ((0, 3, 4, 7, 11), True), (range(12), True), ((3,), False), ((7, 3), False), ((0, 7), False),
        ((3, 3, 7), False), ((3, 7, 12), False), ((), False),
    ]:  # fmt: skip
        text = "{" + ", ".join(f'"k{i}": null' for i in keys) + "}"
        assert automaton.may_end(automaton.run(0, text.encode())) == fits, text


def test_too_large_a_grammar_is_refused():
    with pytest.raises(LlamacyError, match="more than 50000 parts"):
        json_schema(
            {"anyOf": [{"type": ["string", "integer", "boolean"], "minLength": i % 1000} for i in range(60_000)]}
        )


class SlowTable(TokenTable):
    """Takes its time for each mask."""

    def allowed(self, automaton, state):
        time.sleep(0.03)
        return super().allowed(automaton, state)


@pytest.mark.parametrize("drafts", [0, 4])
def test_texts_are_the_same_when_masks_come_late(drafts):
    """The engine goes on with others meanwhile; no token, reason or count differs."""

    def texts(table_class):
        model = FakeModel()
        engine = Engine(model, n_ctx=60, n_slots=4, draft_lookup=drafts)
        table, results = table_class(model.tokenizer, N_VOCAB), []
        for i, grammar in enumerate(["a{3}", "[a-c]{5}", "aaaa|bbb", "[a-e]*", None]):
            rule = grammar and gbnf("root ::= " + re.sub("([a-e]+)(?![^[]*])", r'"\1"', grammar).replace('""', ""))
            constraint = rule and Constraint(rule, table)
            found = []
            params = SamplingParams(temperature=1, seed=i)
            on_token = lambda token, found=found: found.append(token.id)  # noqa: E731
            request = Request([BOS, i], params, n_predict=5, constraint=constraint, on_token=on_token)
            engine.submit(request)
            results.append((request, found))
        while not all(request.result for request, _ in results):
            engine.step()
        engine.close()
        return [(r.result.stop_type, r.result.timings.predicted_n, found) for r, found in results]

    assert texts(SlowTable) == texts(TokenTable)


def test_a_slow_mask_holds_up_nobody_else():
    model = FakeModel()
    engine, table = Engine(model, n_ctx=400, n_slots=2), TokenTable(model.tokenizer, N_VOCAB)
    gate = threading.Event()
    constraint = Constraint(gbnf('root ::= "a" [b-z]+'), table)
    slow = Request([BOS], constraint=constraint)
    engine.submit(slow)
    original = table.allowed
    table.allowed = lambda *args: gate.wait(10) and original(*args)
    free = Request([BOS], SamplingParams(ignore_eos=True), n_predict=100)
    engine.submit(free)
    for _ in range(150):
        engine.step()
    assert free.result.stop_type == "limit" and slow.timings.predicted_n == 1
    gate.set()
    while slow.timings.predicted_n < 5:
        engine.step()
    engine.close()

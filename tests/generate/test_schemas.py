"""What a schema's keywords allow, against Python's own numbers, dates, addresses and patterns; what is refused."""

import datetime
import ipaddress
import json
import re
import uuid

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llamacy.errors import RequestError
from llamacy.generate.json_grammar import json_schema


def fits(automaton, text):
    return automaton.may_end(automaton.run(0, text.encode("utf-8", "surrogatepass")))


def samples(automaton, n, size=60):
    """Yield texts of the grammar, n drawn byte by byte; those that do not end by themselves are left out."""
    random = np.random.default_rng(5)
    for _ in range(n):
        state, text = 0, bytearray()
        for _ in range(size):
            if automaton.may_end(state) and random.random() < 0.3:
                break
            usable = [byte for byte in range(256) if automaton.step(state, byte) != automaton.DEAD]
            if not usable:
                break
            text.append(int(random.choice(usable)))
            state = automaton.step(state, text[-1])
        if automaton.may_end(state):
            yield text.decode()


bounds = st.none() | st.integers(-120, 1200)


@settings(max_examples=150, deadline=None)
@given(bounds, bounds, st.booleans(), st.booleans(), st.lists(st.integers(-1300, 1300), min_size=20, max_size=20))
def test_integers_within_bounds(low, high, strict_low, strict_high, values):
    schema = {"type": "integer"}
    schema |= {} if low is None else {"exclusiveMinimum" if strict_low else "minimum": low}
    schema |= {} if high is None else {"exclusiveMaximum" if strict_high else "maximum": high}
    first = -(10**9) if low is None else low + strict_low
    last = 10**9 if high is None else high - strict_high
    if first > last:
        with pytest.raises(RequestError, match="no integer"):
            json_schema(schema)
        return
    automaton = json_schema(schema)
    for value in [*values, first, last, first - 1, last + 1, 0]:
        if abs(value) <= 10**9:
            assert fits(automaton, str(value)) == (first <= value <= last), value
    assert not fits(automaton, "007") and not fits(automaton, "5.0")


decimals = st.decimals(-30, 300, places=2).map(float) | st.integers(-5, 20).map(float)


@settings(max_examples=200, deadline=None)
@given(st.none() | decimals, st.none() | decimals, st.booleans(), st.booleans(), st.lists(decimals, max_size=20))
@example(0.0, 0.0, False, False, [0.0])
@example(0.5, 0.75, True, True, [0.5, 0.75, 0.6])
@example(-0.5, 0.25, False, True, [-0.5, 0.25, 0.0])
def test_numbers_within_bounds(low, high, strict_low, strict_high, values):
    schema = {"type": "number"}
    schema |= {} if low is None else {"exclusiveMinimum" if strict_low else "minimum": low}
    schema |= {} if high is None else {"exclusiveMaximum" if strict_high else "maximum": high}

    def inside(value):
        above = low is None or (value > low if strict_low else value >= low)
        return above and (high is None or (value < high if strict_high else value <= high))

    try:
        automaton = json_schema(schema)
    except RequestError:
        assert not any(map(inside, values))
        return
    near = [x + d for x in (low, high) if x is not None for d in (-1, -0.01, 0, 0.01, 1)]
    for value in [*values, *near]:
        for text in {f"{value:.4f}", f"{value:.4f}".rstrip("0").rstrip(".")} - {"-0", "-0.0000"}:
            if low is not None or high is not None:
                assert fits(automaton, text) == inside(float(text)), text
    assert all(inside(float(text)) for text in samples(automaton, 10))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 10, 250])
def test_multiples(step):
    automaton = json_schema({"type": "integer", "multipleOf": step})
    within = json_schema({"type": "integer", "multipleOf": step, "minimum": -20, "maximum": 1000})
    for value in range(-30, 1030):
        assert fits(automaton, str(value)) == (value % step == 0), value
        assert fits(within, str(value)) == (value % step == 0 and -20 <= value <= 1000), value


def test_steps_of_numbers():
    cents = json_schema({"type": "number", "multipleOf": 0.01})
    assert fits(cents, "1.25") and fits(cents, "-3") and not fits(cents, "1.255") and not fits(cents, "1e5")
    fives = json_schema({"type": "number", "multipleOf": 5})
    assert fits(fives, "15") and not fits(fives, "12")


PATTERNS_AND_TEXTS = [
    (r"^a+$", ["", "a", "aaa", "ab", "ba"]),
    (r"b", ["", "b", "abc", "ac"]),
    (r"^(foo|ba[rz])\d{2,3}$", ["foo12", "bar123", "baz1", "foo1234", "qux12"]),
    (r"^[A-Z]{3}-\d+$", ["ABC-1", "abc-1", "ABCD-1", "ABC-"]),
    (r"^\w+@\w+\.com$", ["a@b.com", "a@b_com", "@b.com"]),
    (r"^[^\s]*$", ["", "ab", "a b", "a\tb", "日本"]),
    (r"^.$", ["a", "日", "\n", "", "ab", '"', "\\"]),
    (r"^\u00e9\x41?$", ["é", "éA", "A"]),
    (r"^a|b$", ["ab", "xb", "ax", "xx"]),
    (r"^(?:a(?<n>b)?){2}$", ["aa", "abab", "aba", "a"]),
    (r'^"\\$', ['"\\', '"', "\\"]),
    (r"^[-+]?[0-9]*\.?[0-9]+$", ["1", "-1.5", "+.5", "1.", ""]),
    (r"^a{2}b{1,}c{0,1}$", ["aab", "aabbc", "ab", "aabcc"]),
    (r"", ["", "x"]),
    (r"^\{x\}\/", ["{x}/", "{x}/y", "x"]),
]


@pytest.mark.parametrize(("pattern", "texts"), PATTERNS_AND_TEXTS)
def test_patterns(pattern, texts):
    automaton = json_schema({"type": "string", "pattern": pattern})
    twin = re.compile(pattern.replace("(?<", "(?P<").replace("$", r"\Z"), re.ASCII)
    for text in texts:
        assert fits(automaton, json.dumps(text, ensure_ascii=False)) == bool(twin.search(text)), text
    for text in samples(automaton, 20):
        assert twin.search(json.loads(text)), text


@pytest.mark.parametrize(
    "pattern",
    [r"(?=a)", r"(?!a)", r"(?<=a)b", r"(a)\1", r"\bword", "a(", "a)", "[a", "[b-a]", "*a", "a{3,2}", "a^b", "(a$)",
     r"\p{L}", "[]", "\\", "a++", r"\u{110000}", r"\ud800", "x{99999}"],
)  # fmt: skip
def test_patterns_that_are_not_regular_are_refused(pattern):
    with pytest.raises(RequestError, match=r"^schema.pattern: "):
        json_schema({"type": "string", "pattern": pattern})


@settings(max_examples=100, deadline=None)
@given(st.text(r"ab(|)[]*+?{}1,\^$.-d", max_size=8))
def test_any_pattern_works_or_is_refused(pattern):
    try:
        automaton = json_schema({"type": "string", "pattern": pattern})
    except RequestError:
        return
    try:
        twin = re.compile(pattern)
    except (re.error, OverflowError):
        assume(False)
    for text in samples(automaton, 3, 30):
        value = json.loads(text)
        assume("\n" not in value)
        assert twin.search(value), (pattern, value)


def whole(pattern):
    return lambda text: re.fullmatch(pattern, text, re.S)[0]


def clock(kind):
    return lambda text: kind.fromisoformat(re.sub(r"\.\d+", "", text).replace("Z", "+00:00"))


CHECKS = {
    "date": datetime.date.fromisoformat,
    "date-time": clock(datetime.datetime),
    "time": clock(datetime.time),
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "email": whole(r"[^@\s]+@[^@\s]+\.[a-z]+"),
    "duration": whole(r"P(?=.)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?"),
    "hostname": whole(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.?)+"),
    "uri": whole(r"[a-z][a-z0-9+.-]*://\S+"),
    "json-pointer": whole(r"(/([^~/]|~[01])*)*"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_formats(name):
    found = 0
    for text in samples(json_schema({"type": "string", "format": name}), 120):
        value = json.loads(text)
        if not value.startswith("0000"):  # Python's calendar begins with year 1
            CHECKS[name](value)
            found += 1
    assert found > 1


def test_dates_are_those_of_the_calendar():
    automaton = json_schema({"type": "string", "format": "date"})
    for year in (1900, 1996, 2000, 2023, 2024, 2100):
        for month in range(14):
            for day in (0, 1, 28, 29, 30, 31, 32):
                try:
                    datetime.date(year, month, day)
                    valid = True
                except ValueError:
                    valid = False
                assert fits(automaton, f'"{year}-{month:02}-{day:02}"') == valid


NULL, A = {"type": "null"}, {"k": {"const": "a"}}
A1 = {"properties": {"a": {"const": 1}}, "required": ["a"]}
CASES = [
    ({"type": "string", "minimum": 3, "properties": {"a": 1}}, ['"a"'], ["1"]),
    ({"type": "object", "properties": {"a": {}}, "required": ["a", "b"]}, ['{"a": 1, "b": []}'], ['{"a": 1}']),
    ({"required": ["x"], "additionalProperties": NULL}, ['{"x": null}'], ["{}", '{"x": 1}']),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}},
     ["[1]", '[1, "a", "b"]'], ["[]", '["a"]', "[1, 2]"]),
    ({"prefixItems": [{"type": "integer"}, {}], "items": False}, ["[1, null]"], ["[1, 2, 3]", "[1]"]),
    ({"items": [NULL], "additionalItems": False}, ["[null]"], ["[null, 1]"]),
    ({"prefixItems": [NULL], "minItems": 3}, ["[null, 1, 2]", "[null, 1, 2, 3]"], ["[null, 1]"]),
    ({"allOf": [{"type": "object", "properties": {"a": NULL}, "required": ["a"]},
                {"properties": {"b": NULL}, "required": ["b"]}]},
     ['{"a": null, "b": null}'], ['{"a": null}', '{"b": null}']),
    ({"allOf": [{"$ref": "#/$defs/x"}, {"minimum": 5}], "$defs": {"x": {"type": "integer", "maximum": 9}}},
     ["5", "9"], ["4", "10"]),
    ({"$ref": "#/$defs/x", "description": "text", "$defs": {"x": NULL}}, ["null"], ["1"]),
    ({"$ref": "#/$defs/x", "maxLength": 2, "$defs": {"x": {"type": "string"}}}, ['"ab"'], ['"abc"']),
    ({"type": "object", "properties": A, "required": ["k"],
      "anyOf": [{"properties": {"x": NULL}, "required": ["x"]}, {"required": ["y"]}]},
     ['{"k": "a", "x": null}', '{"k": "a", "y": 1}'], ['{"k": "a"}', '{"k": "b", "y": 1}']),
    ({"oneOf": [{"type": "object", "properties": A, "required": ["k"]},
                {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"]}],
      "discriminator": {"propertyName": "k"}}, ['{"k": "a"}', '{"k": "b"}'], ['{"k": "c"}']),
    ({"enum": [1, "a", None, 12], "type": "integer", "minimum": 5}, ["12"], ["1", '"a"', "null"]),
    ({"const": 5, "title": "x", "x-mine": 1}, ["5"], ["6"]),
    ({"type": "integer", "nullable": True}, ["5", "null"], ["true"]),
    ({"type": "string", "format": "password"}, ['"x"'], ["1"]),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[]", "[1]"], ["[1, 1]"]),
    ({"type": "string", "maxLength": 1}, ['"a"', r'"\ud83d\ude00"', r'"\u00e9"'], [r'"\ud83d"', '"ab"']),
    ({"patternProperties": {"^x": NULL}, "additionalProperties": False}, ['{"xa": null}', "{}"], ['{"a": null}']),
    ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, ["{}"], ['{"b": 1}']),
    ({"type": ["string", "null"], "enum": ["a", None]}, ['"a"', "null"], ["1"]),
    ({"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": NULL}}, ['{"a": null}'], ['{"a": 1}']),
    ({"type": "number", "exclusiveMinimum": True, "minimum": 1}, ["1.5"], ["1"]),
    ({"type": "integer", "minimum": 0.5, "maximum": 3.0}, ["1", "3"], ["0", "4"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES, ids=[json.dumps(case[0])[:60] for case in CASES])
def test_keywords(schema, right, wrong):
    automaton = json_schema(schema)
    for text in right:
        assert fits(automaton, text), text
    for text in wrong:
        assert not fits(automaton, text), text


STR, INT = {"type": "string"}, {"type": "integer"}
KIND = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "x": INT, "y": INT}, "required": ["kind"]}
IS_A = {"properties": {"kind": {"const": "a"}}}
OBJECT, LETTERS = {"type": "object"}, "abcdefghij"
# Keywords about other keywords and schemas, in the shapes of JSON Schema's own tests.
CONDITIONS = [
    ({"not": INT}, ['"a"', "null", "[]", "{}", "true"], ["1", "-5"]),
    ({"not": {"type": ["integer", "boolean"]}}, ['"a"'], ["1", "true"]),
    ({**INT, "not": {"const": 5}}, ["4", "6", "55", "-5"], ["5"]),
    ({**INT, "not": {"enum": [0, 7]}}, ["1", "-1", "70"], ["0", "7"]),
    ({**INT, "not": {"minimum": 5}}, ["4"], ["5"]),
    ({"type": "boolean", "not": {"const": True}}, ["false"], ["true"]),
    ({**STR, "not": {"enum": ["", "ab", 'q"']}}, ['"a"', '"abc"', '"b"', '"q"'],
     ['""', '"ab"', '"\\u0061b"', '"q\\""']),
    ({"enum": ["a", "b", 1], "not": {"const": "a"}}, ['"b"', "1"], ['"a"']),
    ({"not": {"not": NULL}}, ["null"], ["1"]),
    ({"not": {"anyOf": [INT, NULL]}}, ['"a"'], ["1", "null"]),
    ({"not": {"allOf": [{"type": ["integer", "null"]}, {"type": ["string", "integer"]}]}}, ["null", '"a"'], ["1"]),
    ({**OBJECT, "not": {"required": ["a"]}}, ["{}", '{"b": 1}'], ['{"a": 1}', r'{"\u0061": 1}']),
    ({**OBJECT, "properties": {"a": {}}, "not": {"properties": {"a": INT}}}, ['{"a": "x"}'], ["{}", '{"a": 1}']),
    ({"type": "array", "not": {"items": INT}}, ['["a"]', '[1, "a"]'], ["[]", "[1]"]),
    ({"type": "array", "not": {"maxItems": 1}}, ["[1, 2]"], ["[1]"]),
    ({**KIND, "if": IS_A, "then": {"required": ["x"]}, "else": {"required": ["y"]}},
     ['{"kind": "a", "x": 1}', '{"kind": "b", "y": 1}'], ['{"kind": "a"}', '{"kind": "b", "x": 1}']),
    ({**OBJECT, "properties": {"kind": {"enum": [*LETTERS]}, **dict.fromkeys(LETTERS, NULL)}, "required": ["kind"],
      "allOf": [{"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": {"required": [kind]}}
                for kind in LETTERS]},
     ['{"kind": "c", "c": null}', '{"kind": "j", "a": null, "j": null}'],
     ['{"kind": "c"}', '{"kind": "c", "d": null}']),
    ({**KIND, "allOf": [{"if": IS_A, "then": {"properties": {"x": {"minimum": 5}}}},
                        {"if": {"not": IS_A}, "then": {"properties": {"x": {"maximum": 5}}}}]},
     ['{"kind": "a", "x": 6}', '{"kind": "b", "x": 4}'], ['{"kind": "a", "x": 4}', '{"kind": "b", "x": 6}']),
    ({**INT, "if": {"minimum": 10}, "then": {"multipleOf": 10, "maximum": 90}}, ["9", "30"], ["15", "100"]),
    ({**INT, "if": True, "then": {"maximum": 3}, "else": {"minimum": 9}}, ["3"], ["9"]),
    ({**KIND, "dependentRequired": {"x": ["y"]}}, ['{"kind": "a"}', '{"kind": "a", "x": 1, "y": 1}'],
     ['{"kind": "a", "x": 1}']),
    ({**KIND, "dependentSchemas": {"x": {"properties": {"kind": {"const": "b"}}}}}, ['{"kind": "b", "x": 1}'],
     ['{"kind": "a", "x": 1}']),
    ({**KIND, "dependencies": {"y": ["x"], "x": {"required": ["y"]}}}, ['{"kind": "a", "x": 1, "y": 1}'],
     ['{"kind": "a", "x": 1}', '{"kind": "a", "y": 1}']),
    ({**OBJECT, "propertyNames": {"pattern": "^x"}}, ['{"xa": 1}', "{}"], ['{"a": 1}', '{"xa": 1, "b": 1}']),
    ({**OBJECT, "properties": {"ab": {}, "x": {}}, "propertyNames": {"maxLength": 1}}, ['{"x": 1}'], ['{"ab": 1}']),
    ({"type": "array", "contains": {"const": 5}}, ["[5]", "[1, 5, null]"], ["[]", "[1]"]),
    ({"type": "array", "items": INT, "contains": {"minimum": 5}, "minContains": 2}, ["[5, 1, 9]"], ["[5, 1]", "[5]"]),
    ({"type": "array", "items": INT, "contains": {"minimum": 5}, "maxContains": 1}, ["[5, 1]", "[5]"],
     ["[5, 6]", "[1]"]),
    ({"type": "array", "items": INT, "contains": {"const": 1}, "minItems": 2, "maxItems": 3}, ["[1, 2]", "[2, 3, 1]"],
     ["[1]", "[2, 3, 4]", "[1, 2, 3, 4]", "[2, 3]"]),
    ({"type": "array", "contains": INT, "minContains": 0}, ["[]", '["a"]'], ["1"]),
    ({"type": "array", "items": {"enum": ["a", "b", "b", 1.0, 1]}, "uniqueItems": True},
     ['["a", "b"]', '["b", 1.0]', "[]"],
     ['["a", "a"]', "[1, 1]", "[1.0, 1]"]),
    ({"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 2}, ["[true, false]"],
     ["[true]", "[true, true]", "[true, false, true]"]),
    ({"type": "array", "items": {**INT, "minimum": 1, "maximum": 3}, "uniqueItems": True},
     ["[3, 1]"], ["[1, 1]", "[4]"]),
    ({"oneOf": [INT, {"type": "number", "minimum": 2}]}, ["1", "-5"], ["1.5", "3"]),
    ({"oneOf": [{"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}]}, ['{"a": 1}'], ["{}"]),
    ({"oneOf": [{"enum": ["b", True]}, {"properties": {"a": {}}, "required": ["a"]}]}, ['{"a": 1}'], ["true", '"b"']),
    # Between parts: what one of them does not name is of its own "all others".
    ({"allOf": [{**OBJECT, "additionalProperties": INT}, {"properties": {"a": {}}}]}, ['{"a": 1}'], ['{"a": "x"}']),
    ({"allOf": [{"prefixItems": [{"minimum": 3, **INT}]}], "items": {"minimum": 5, **INT}}, ["[5, 5]"], ["[3, 5]"]),
    ({"allOf": [{**OBJECT, "properties": {"a": INT}}, {**OBJECT, "unevaluatedProperties": False}]},
     ["{}"], ['{"a": 1}']),
    ({"type": "array", "$ref": "#/$defs/x", "$defs": {"x": {"type": ["array", "number", "integer"]}}}, ["[]"], ["1"]),
    # What has no value has none wherever it is referred to.
    ({**OBJECT, "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#/$defs/x"}, "c": {}},
      "$defs": {"x": {"type": "array", "const": 0}}}, ['{"c": 1}'], ['{"b": 0}', '{"a": 0}']),
    ({"anyOf": [NULL, {"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}],
      "$defs": {"x": {**OBJECT, "properties": {"y": {"$ref": "#/$defs/y"}, "z": False}, "required": ["z"]},
                "y": {**OBJECT, "properties": {"x": {"$ref": "#/$defs/x"}}}}}, ["null", "{}"], ['{"x": {}}']),
    ({"allOf": [{**STR, "nullable": True}, STR]}, ['"a"'], ["null"]),
    ({"$ref": "#/$defs/a%25b", "$defs": {"a%b": NULL}}, ["null"], ["1"]),
    ({"anyOf": [{**INT, "minimum": 5, "maximum": 4}, NULL]}, ["null"], ["5"]),
    ({"type": "number", "maximum": 18446744073709551615}, ["18446744073709551615", "-1.5"], ["18446744073709551616"]),
    ({"type": "number", "maximum": 10**400, "minimum": -1.7e308}, ["5"], ['"a"']),
    ({"type": "number", "multipleOf": 1, "const": 2}, ["2"], ["3"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "right", "wrong"), CONDITIONS, ids=[json.dumps(case[0])[:60] for case in CONDITIONS]
)
def test_conditions(schema, right, wrong):
    test_keywords(schema, right, wrong)


def test_schemas_in_each_other_take_no_more_than_their_size():
    """What was made again for each level took twice the work of the one inside."""
    schema = {"type": "integer"}
    for _ in range(40):
        schema = {"anyOf": [schema, {"type": "object", "properties": {"a": schema["type"] and {"type": "null"}}}]} | {
            "title": "", "type": ["integer", "object"]
        }  # fmt: skip
    assert fits(json_schema(schema), "5")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "schema: uniqueItems is not supported"),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "schema.oneOf: the schemas 0 and 1 may both be valid"),
        ({"not": {}}, "schema: no value is valid under its conditions"),
        ({"not": {"const": [1]}}, "schema.not: arrays and objects with something in them"),
        ({"not": {"multipleOf": 2}}, "schema.not: 'multipleOf' is not supported in what must not hold"),
        ({"if": {"format": "date"}, "then": {}}, "schema.if: 'format' is not supported in what must not hold"),
        ({"$dynamicRef": "#x"}, "schema: the keyword '$dynamicRef' is not supported here"),
        ({"type": "array", "contains": {}, "uniqueItems": True}, "schema: uniqueItems, contains and prefixItems"),
        ({"type": "string", "maxLength": 3, "not": {"const": "ab"}}, "schema: what a string must not be"),
        (
            {"$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
            "#/$defs/a: the schema is nested too deeply",
        ),
        (
            {"properties": {}, "if": A1, "then": {}, "unevaluatedProperties": False},
            "schema: 'unevaluatedProperties' is",
        ),
        ({"minimum": 10**41}, "schema.minimum: wanted at most 10 ** 40"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "schema: pattern is not supported together with"),
        ({"type": "string", "format": "regex"}, "schema.format: 'regex' is not supported"),
        ({"type": "integer", "multipleOf": 0.3}, "schema.multipleOf: wanted a whole number above 0"),
        ({"type": "number", "multipleOf": 0.3}, "schema.multipleOf: wanted a whole number above 0"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "schema: no integer is from 5 to 4"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "schema: minLength 3 is above maxLength 2"),
        ({"allOf": [{"type": "string"}, NULL]}, "schema.allOf: no value is 'string' and 'null' at once"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "schema.allOf: two schemas that differ in 'pattern'"),
        ({"type": "object", "minProperties": 2}, "schema.minProperties: not supported above 1"),
        ({"properties": {"a": {}}, "minProperties": 1}, "schema: minProperties and maxProperties are not supported"),
        ({"enum": ["a"], "type": "integer"}, "schema.enum: none of the values is valid"),
        ({"properties": {"a": False}, "required": ["a"]}, "schema.a: no value is valid, but the member is required"),
        ({"const": "\ud800"}, "schema.const: half a surrogate pair"),
        ({"type": "integer", "minimum": "5"}, "schema.minimum: wanted a number"),
        ({"$ref": "#/$defs/a", "minimum": 1, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "schema.$ref: the schema refers"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(schema, message):
    with pytest.raises(RequestError) as caught:
        json_schema(schema)
    assert str(caught.value).startswith(message)

"""The grammar of JSON, and of the JSON that a schema describes.

White space is at most one space or a line break with indentation, and numbers have at most 16 digits: a model that is
free to write either without end does so.
"""

import json

from llamacy.errors import RequestError
from llamacy.generate.automaton import Automaton
from llamacy.generate.grammar import (
    EMPTY,
    Alt,
    Later,
    Ref,
    alt,
    check_size,
    compact,
    lit,
    optional,
    repeat,
    seq,
    some,
    words,
)

DIGIT, SIGN = some("0123456789"), optional(some("-+"))
TAIL = some(0x80, 0xBF)
# One character of UTF-8 beyond ASCII: no overlong forms, no surrogates (RFC 3629, table 3-7 of Unicode).
BEYOND_ASCII = alt(
    seq(some(0xC2, 0xDF), TAIL),
    seq(some(0xE0, 0xE0), some(0xA0, 0xBF), TAIL),
    seq(some(0xE1, 0xEC), TAIL, TAIL),
    seq(some(0xED, 0xED), some(0x80, 0x9F), TAIL),
    seq(some(0xEE, 0xEF), TAIL, TAIL),
    seq(some(0xF0, 0xF0), some(0x90, 0xBF), TAIL, TAIL),
    seq(some(0xF1, 0xF3), TAIL, TAIL, TAIL),
    seq(some(0xF4, 0xF4), some(0x80, 0x8F), TAIL, TAIL),
)
PLAIN = some("".join(chr(code) for code in range(0x20, 0x80) if chr(code) not in '"\\'))
ESCAPE = seq(lit("\\"), alt(some('"\\/bfnrt'), seq(lit("u"), *[some("0123456789abcdefABCDEF")] * 4)))
CHAR = alt(PLAIN, BEYOND_ASCII, ESCAPE)
STRING = seq(lit('"'), repeat(CHAR, 0), lit('"'))
INTEGER = seq(optional(lit("-")), alt(lit("0"), seq(some("123456789"), repeat(DIGIT, 0, 15))))
NUMBER = seq(
    INTEGER, optional(seq(lit("."), repeat(DIGIT, 1, 16))), optional(seq(some("eE"), SIGN, repeat(DIGIT, 1, 3)))
)
SPACE = alt(EMPTY, lit(" "), seq(lit("\n"), repeat(some(" \t"), 0, 20)))
BOOLEAN, NULL = alt(lit("true"), lit("false")), lit("null")


def _separated(open_, item, close, low=0, high=None):
    """Return `open_`, from `low` to `high` items with commas between them, `close`."""
    more = seq(lit(","), SPACE, item, SPACE)
    some_items = seq(item, SPACE, repeat(more, max(low - 1, 0), None if high is None else max(high - 1, 0)))
    body = EMPTY if high == 0 else some_items if low else optional(some_items)
    return seq(lit(open_), SPACE, body, lit(close))


def _member(key, value):
    return seq(key, SPACE, lit(":"), SPACE, value)


VALUE = Ref("value")
OBJECT, ARRAY = _separated("{", _member(STRING, VALUE), "}"), _separated("[", VALUE, "]")
RULES = {"value": alt(OBJECT, ARRAY, STRING, NUMBER, BOOLEAN, NULL)}

# Keywords that say nothing about which values are valid.
NOTES = {"title", "description", "default", "examples", "format", "deprecated", "readOnly", "writeOnly", "strict"}
NOTES |= {"$schema", "$id", "$comment", "$defs", "definitions"}
# type: (the grammar of any such value, keywords that narrow it)
TYPES = {
    "object": (OBJECT, {"properties", "required", "additionalProperties"}),
    "array": (ARRAY, {"items", "prefixItems", "minItems", "maxItems"}),
    "string": (STRING, {"minLength", "maxLength"}),
    "number": (NUMBER, set()),
    "integer": (INTEGER, set()),
    "boolean": (BOOLEAN, set()),
    "null": (NULL, set()),
}
MAX_REPEATS = 1000
MAX_DEPTH = 100


def json_object():
    """Return the Automaton of any JSON object."""
    return Automaton(RULES, OBJECT)


def json_schema(schema):
    """Return the Automaton of the JSON that `schema` describes; RequestError names a keyword that is not supported."""
    converter = _Converter(schema)
    root = converter.convert(schema, "schema", 0)
    check_size([*converter.rules.values(), root])
    return Automaton(RULES | {name: compact(node) for name, node in converter.rules.items()}, compact(root))


class _Converter:
    """Turns a schema into expressions; a $ref becomes a rule, so that schemas may refer to themselves."""

    def __init__(self, whole):
        self.whole, self.rules = whole, {}

    def convert(self, schema, where, depth):
        if depth > MAX_DEPTH:
            raise RequestError(f"{where}: the schema is nested too deeply")
        if schema is True or schema == {}:
            return VALUE
        if not isinstance(schema, dict):
            raise RequestError(f"{where}: wanted a schema object, got {type(schema).__name__}")
        for key, method in (
            ("$ref", self._ref),
            ("const", self._const),
            ("enum", self._enum),
            ("anyOf", self._any_of),
            ("oneOf", self._any_of),
            ("allOf", self._all_of),
        ):
            if key in schema:
                self._only(schema, {key, "type"}, where)
                return method(schema[key], f"{where}.{key}", depth + 1)
        types = schema.get("type") or [self._guess(schema, where)]
        types = types if isinstance(types, list) else [types]
        if not all(name is None or isinstance(name, str) for name in types):
            raise RequestError(f"{where}.type: wanted one of {', '.join(TYPES)} or a list of those")
        known = set().union(*(TYPES[name][1] for name in types if name in TYPES))
        self._only(schema, known | {"type"}, where)
        return Alt(tuple(self._typed(name, schema, where, depth + 1) for name in types))

    def _only(self, schema, known, where):
        wrong = sorted(set(schema) - known - NOTES)
        if wrong:
            raise RequestError(f"{where}: the keyword {wrong[0]!r} is not supported here")

    def _guess(self, schema, where):
        """Return the type that a schema without one is about."""
        for name, (_, keys) in TYPES.items():
            if keys & set(schema):
                return name
        self._only(schema, {"type"}, where)
        return None

    def _typed(self, name, schema, where, depth):
        if name is None:
            return VALUE
        if name not in TYPES:
            raise RequestError(f"{where}.type: wanted one of {', '.join(TYPES)}, got {name!r:.60}")
        narrowed = {"object": self._object, "array": self._array, "string": self._string}.get(name)
        if narrowed is None or not TYPES[name][1] & set(schema):
            return TYPES[name][0]
        return narrowed(schema, where, depth)

    def _ref(self, target, where, depth):
        if not isinstance(target, str) or not target.startswith("#"):
            raise RequestError(f"{where}: wanted a reference inside the schema (#/...), got {target!r:.60}")
        name = f"ref {target}"
        if name not in self.rules:
            self.rules[name] = VALUE  # holds the place while the schema refers to itself
            self.rules[name] = self.convert(self._find(target, where), target, depth)
            if self._loops(name, self.rules[name]):
                raise RequestError(f"{where}: the schema refers to itself without end")
        return Ref(name)

    def _find(self, target, where):
        found = self.whole
        for part in filter(None, target[1:].split("/")):
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise RequestError(f"{where}: {target!r:.60} is not in the schema")
            found = found[key]
        return found

    def _loops(self, name, node):
        """Say whether an expression can come to the rule `name` again without a byte in between."""
        if isinstance(node, Ref):
            return node.name == name or (node.name != "value" and self._loops(name, self.rules[node.name]))
        return isinstance(node, Alt) and any(self._loops(name, part) for part in node.parts)

    def _const(self, value, where, depth):
        return lit(json.dumps(value, ensure_ascii=False))

    def _enum(self, values, where, depth):
        if not isinstance(values, list) or not values:
            raise RequestError(f"{where}: wanted a list of values")
        return Alt(tuple(self._const(value, where, depth) for value in values))

    def _any_of(self, schemas, where, depth):
        if not isinstance(schemas, list) or not schemas:
            raise RequestError(f"{where}: wanted a list of schemas")
        return Alt(tuple(self.convert(schema, f"{where}[{i}]", depth) for i, schema in enumerate(schemas)))

    def _all_of(self, schemas, where, depth):
        if not isinstance(schemas, list) or len(schemas) != 1:
            raise RequestError(f"{where}: more than one schema at once is not supported")
        return self.convert(schemas[0], f"{where}[0]", depth)

    def _count(self, schema, key, where):
        value = schema.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_REPEATS
        ):
            raise RequestError(f"{where}.{key}: wanted a whole number from 0 to {MAX_REPEATS}, got {value!r:.60}")
        return value

    def _string(self, schema, where, depth):
        low, high = self._count(schema, "minLength", where) or 0, self._count(schema, "maxLength", where)
        return seq(lit('"'), repeat(CHAR, low, high), lit('"'))

    def _array(self, schema, where, depth):
        low, high = self._count(schema, "minItems", where) or 0, self._count(schema, "maxItems", where)
        item = (
            self.convert(schema.get("items", True), f"{where}.items", depth)
            if schema.get("items") is not False
            else None
        )
        if "prefixItems" not in schema:
            return _separated("[", item or VALUE, "]", low, 0 if item is None else high)
        if not _is_list_of(object, schema["prefixItems"]):
            raise RequestError(f"{where}.prefixItems: wanted a list of schemas")
        if low or high is not None or item not in (None, VALUE):
            raise RequestError(f"{where}.prefixItems: not supported together with items, minItems or maxItems")
        parts = [self.convert(part, f"{where}.prefixItems", depth) for part in schema["prefixItems"]]
        spaced = [seq(lit(",") if i else EMPTY, SPACE, part, SPACE) for i, part in enumerate(parts)]
        return seq(lit("["), *spaced, lit("]"))

    def _object(self, schema, where, depth):
        """Members come in the schema's order; others only where additionalProperties allows them and none are named."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        more = schema.get("additionalProperties", not properties)
        if not isinstance(properties, dict) or not _is_list_of(str, required):
            raise RequestError(f"{where}: wanted properties as an object and required as a list")
        missing = [key for key in required if key not in properties]
        if missing:
            raise RequestError(f"{where}.required: {missing[0]!r:.60} is not among the properties")
        if not properties:
            value = self.convert(more, f"{where}.additionalProperties", depth) if more else None
            return _separated("{", _member(STRING, value or VALUE), "}", 0, None if value else 0)
        keys = [json.dumps(key, ensure_ascii=False).encode() for key in properties]
        values = [compact(self.convert(part, f"{where}.{key}", depth)) for key, part in properties.items()]
        return _Members(keys, values, [key in required for key in properties]).object()


def _is_list_of(kind, value):
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


class _Members:
    """An object's members in their order, some of them required; what may follow one is made when a text is there."""

    def __init__(self, keys, values, required):
        self._keys, self._required = keys, required
        # behind a key: its value, and what may follow that
        self._thens = [
            seq(SPACE, lit(":"), SPACE, value, SPACE, Later(self._after, i + 1)) for i, value in enumerate(values)
        ]

    def object(self):
        """Return the expression of the object."""
        members, may_end = self._from(0)
        return seq(lit("{"), SPACE, alt(members, lit("}")) if may_end else members)

    def _after(self, at):
        """Return what may follow the members before `at`, of which there is one."""
        members, may_end = self._from(at)
        more = [] if members is None else [seq(lit(","), SPACE, members)]
        return alt(*more, lit("}")) if may_end else more[0]

    def _from(self, at):
        """Return (the next member, of all up to the next required one; whether the object may end instead)."""
        end = next((i for i in range(at, len(self._keys)) if self._required[i]), None)
        last = len(self._keys) if end is None else end + 1
        pairs = [(self._keys[i], self._thens[i]) for i in range(at, last)]
        return words(pairs) if pairs else None, end is None

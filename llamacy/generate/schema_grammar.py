"""JSON schemas as expressions: the JSON that they describe, or a part of it, and nothing beside it.

Members come in the schema's order. What cannot be kept is refused by name; keywords about another type than a value's
say nothing, as JSON Schema has it, nor do annotations and names that it does not know.
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
    compact,
    lit,
    repeat,
    seq,
    words,
)
from llamacy.generate.json_grammar import (
    ARRAY,
    BOOLEAN,
    COUNTED,
    NULL,
    OBJECT,
    RULES,
    SPACE,
    STRING,
    VALUE,
    member,
    separated,
)
from llamacy.generate.regex_grammar import pattern_string
from llamacy.generate.schema_formats import PATTERNS, REFUSED
from llamacy.generate.schema_merge import exclude, is_note, merged
from llamacy.generate.schema_numbers import integers, numbers

MAX_REPEATS = 1_000_000
MAX_DEPTH = 100
MAX_SCHEMAS = 50_000  # looked at, for one schema
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
# type: keywords about its values
TYPES = {
    "object": {"properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties",
               "unevaluatedProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": BOUNDS,
    "integer": BOUNDS,
    "boolean": set(),
    "null": set(),
}  # fmt: skip
# Keywords that are not built: those about one type matter where that type may come.
UNBUILT = {
    **dict.fromkeys(("not", "if", "then", "else", "$dynamicRef", "$recursiveRef"), None),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies", "propertyNames"), "object"),
    **dict.fromkeys(("contains", "minContains", "maxContains"), "array"),
}
COMBINING = ("$ref", "allOf", "anyOf", "oneOf", "const", "enum")
OPEN = (True, {})


class Converter:
    """Turns a schema into expressions; a $ref becomes a rule, so that schemas may refer to themselves."""

    def __init__(self, whole, rules):
        self.whole, self.rules, self._n = whole, rules, 0
        self._names = f"{len(rules)} "  # so that rules of several schemas are apart

    def convert(self, schema, where, depth):
        """Return the expression of a schema's values."""
        self._n += 1
        if depth > MAX_DEPTH or self._n > MAX_SCHEMAS:
            what = "nested too deeply" if depth > MAX_DEPTH else f"too large, more than {MAX_SCHEMAS} parts"
            raise RequestError(f"{where}: the schema is {what}")
        if schema in OPEN and not isinstance(schema, int) or schema is True:
            return VALUE
        if not isinstance(schema, dict):
            what = "false: no value is valid" if schema is False else type(schema).__name__
            raise RequestError(f"{where}: wanted a schema object, got {what}")
        if schema.get("nullable") is True:
            rest = {key: value for key, value in schema.items() if key != "nullable"}
            return alt(self.convert(rest, where, depth + 1), NULL)
        key = next((key for key in COMBINING if key in schema), None)
        if key is None:
            return self._by_type(schema, where, depth)
        rest = {name: value for name, value in schema.items() if name != key and not is_note(name)}
        return getattr(self, "_" + key.lstrip("$").lower())(schema[key], rest, f"{where}.{key}", depth + 1)

    def _ref(self, target, rest, where, depth):
        if not isinstance(target, str) or not target.startswith("#"):
            raise RequestError(f"{where}: wanted a reference inside the schema (#/...), got {target!r:.60}")
        found = self._find(target, where)
        if rest:
            return self.convert(merged(self._resolved(found, where), rest, where), where, depth)
        name = f"ref {self._names}{target}"
        if name not in self.rules:
            self.rules[name] = VALUE  # holds the place while the schema refers to itself
            self.rules[name] = self.convert(found, target, depth)
            if self._loops(name, self.rules[name]):
                raise RequestError(f"{where}: the schema refers to itself without end")
        return Ref(name)

    def _resolved(self, schema, where, depth=0):
        """Return a schema without a $ref at its top."""
        if depth > MAX_DEPTH:
            raise RequestError(f"{where}: the schema refers to itself without end")
        if not isinstance(schema, dict) or "$ref" not in schema:
            return schema
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        target = schema["$ref"]
        if not isinstance(target, str) or not target.startswith("#"):
            raise RequestError(f"{where}: wanted a reference inside the schema (#/...), got {target!r:.60}")
        return merged(self._resolved(self._find(target, where), where, depth + 1), rest, where)

    def _find(self, target, where):
        found = self.whole
        for part in filter(None, target[1:].split("/")):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise RequestError(f"{where}: {target!r:.60} is not in the schema")
        return found

    def _loops(self, name, node):
        """Say whether an expression can come to the rule `name` again without a byte in between."""
        if isinstance(node, Ref):
            return node.name == name or (node.name != "value" and self._loops(name, self.rules.get(node.name, EMPTY)))
        return isinstance(node, Alt) and any(self._loops(name, part) for part in node.parts)

    def _const(self, value, rest, where, depth):
        return self._enum([value], rest, where, depth)

    def _enum(self, values, rest, where, depth):
        if not isinstance(values, list) or not values:
            raise RequestError(f"{where}: wanted a list of values")
        texts = [json.dumps(value, ensure_ascii=False) for value in values]
        if rest and set(rest) != {"type"} or (rest and not all(_is_a(v, rest["type"]) for v in values)):
            # Those that the other keywords allow as well.
            rules = {}
            others = Automaton(RULES | rules | self.rules, self.convert(rest, where, depth)) if rest else None
            texts = [text for text in texts if others.may_end(others.run(0, text.encode("utf-8", "replace")))]
            if not texts:
                raise RequestError(f"{where}: none of the values is valid under the keywords beside it")
        if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
            raise RequestError(f"{where}: half a surrogate pair is no character")
        return alt(*map(lit, texts))

    def _anyof(self, schemas, rest, where, depth):
        if not isinstance(schemas, list) or not schemas:
            raise RequestError(f"{where}: wanted a list of schemas")
        found, refused = [], None
        for i, schema in enumerate(schemas):
            name = f"{where}[{i}]"
            try:
                part = merged(rest, self._resolved(schema, name), name) if rest else schema
            except RequestError as error:  # this one cannot hold beside the rest: others may
                refused = error
                continue
            found.append(self.convert(part, name, depth))
        if not found:
            raise refused
        return Alt(tuple(found))

    def _oneof(self, schemas, rest, where, depth):
        if isinstance(schemas, list) and len(schemas) <= 100:
            plain = [self._resolved(schema, where) for schema in schemas]
            for i, schema in enumerate(plain):
                for j in range(i):
                    if not exclude(schema, plain[j]):
                        what = f"the schemas {j} and {i} may both be valid for a value: make them differ, or use anyOf"
                        raise RequestError(f"{where}: {what}")
        elif isinstance(schemas, list):
            raise RequestError(f"{where}: wanted at most 100 schemas, got {len(schemas)}; use anyOf")
        return self._anyof(schemas, rest, where, depth)

    def _allof(self, schemas, rest, where, depth):
        if not isinstance(schemas, list) or not schemas:
            raise RequestError(f"{where}: wanted a list of schemas")
        found = rest
        for i, schema in enumerate(schemas):
            part = self._resolved(schema, f"{where}[{i}]")
            if not isinstance(part, (dict, bool)):
                raise RequestError(f"{where}[{i}]: wanted a schema object, got {type(part).__name__}")
            found = merged(found, part, where)
        return self.convert(found, where, depth)

    def _by_type(self, schema, where, depth):
        types = schema.get("type")
        if types is None:
            types = [name for name, keys in TYPES.items() if keys & set(schema) and name != "integer"]
        types = types if isinstance(types, list) else [types]
        wrong = [name for name in types if not isinstance(name, str) or name not in TYPES]
        if wrong:
            what = f"{', '.join(TYPES)} or a list of those, got {str(wrong[0])[:60]!r}"
            raise RequestError(f"{where}.type: wanted one of {what}")
        for key, about in UNBUILT.items():
            if key in schema and (about is None or not types or about in types) and not _is_idle(key, schema[key]):
                raise RequestError(f"{where}: the keyword {key!r} is not supported here")
        if not types:
            return VALUE
        return Alt(tuple(getattr(self, "_" + name)(schema, where, depth + 1) for name in types))

    def _null(self, schema, where, depth):
        return NULL

    def _boolean(self, schema, where, depth):
        return BOOLEAN

    def _integer(self, schema, where, depth):
        return integers(schema, self.rules, where)

    def _number(self, schema, where, depth):
        return numbers(schema, self.rules, where)

    def _count(self, schema, key, where):
        value = schema.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_REPEATS
        ):
            raise RequestError(f"{where}.{key}: wanted a whole number from 0 to {MAX_REPEATS}, got {value!r:.60}")
        return value

    def _counts(self, schema, what, where):
        """Return (lowest, highest) of min<what> and max<what>."""
        low, high = self._count(schema, f"min{what}", where) or 0, self._count(schema, f"max{what}", where)
        if high is not None and high < low:
            raise RequestError(f"{where}: min{what} {low} is above max{what} {high}")
        return low, high

    def _string(self, schema, where, depth):
        low, high = self._counts(schema, "Length", where)
        pattern, name = schema.get("pattern"), schema.get("format")
        if name in REFUSED:
            raise RequestError(f"{where}.format: {name!r} is not supported")
        if isinstance(name, str) and name in PATTERNS:
            if pattern is not None:
                raise RequestError(f"{where}: format and pattern are not supported at once")
            pattern = f"^(?:{PATTERNS[name]})$"
            if high is not None:
                raise RequestError(f"{where}: format is not supported together with maxLength")
            if low > 1:
                raise RequestError(f"{where}: format is not supported together with minLength")
            low, high = 0, None
        if pattern is not None:
            if low or high is not None:
                raise RequestError(f"{where}: pattern is not supported together with minLength or maxLength")
            return pattern_string(pattern, f"{where}.pattern")
        return STRING if not low and high is None else seq(lit('"'), repeat(COUNTED, low, high), lit('"'))

    def _array(self, schema, where, depth):
        low, high = self._counts(schema, "Items", where)
        if schema.get("uniqueItems") and (high is None or high > 1):
            raise RequestError(f"{where}: uniqueItems is not supported, but for arrays of at most one item")
        items, firsts = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):  # drafts before 2020
            firsts, items = items, schema.get("additionalItems", True)
        if not isinstance(firsts, list):
            raise RequestError(f"{where}.prefixItems: wanted a list of schemas")
        if items is True and schema.get("unevaluatedItems") is not None:
            items = schema["unevaluatedItems"]
        if items is False:
            high = min(len(firsts), len(firsts) if high is None else high)
            if low > high:
                raise RequestError(f"{where}: wanted minItems of at most {high}")
        if not firsts and items in OPEN and not low and high is None:
            return ARRAY
        item = VALUE if items is False else self.convert(items, f"{where}.items", depth)
        if not firsts:
            return separated("[", item, "]", low, high)
        parts = [self.convert(part, f"{where}.prefixItems[{i}]", depth) for i, part in enumerate(firsts)]
        return seq(lit("["), SPACE, _tuple(parts, item, low, high), lit("]"))

    def _object(self, schema, where, depth):
        """Members come in the schema's order; others only where none are named."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not _is_list_of(str, required):
            raise RequestError(f"{where}: wanted properties as an object and required as a list")
        more = schema.get("additionalProperties", True)
        if more is True and schema.get("unevaluatedProperties") is not None:
            more = schema["unevaluatedProperties"]
        patterns = schema.get("patternProperties") or {}
        properties = dict(properties)
        for key in required:
            if key not in properties:
                properties[key] = self._unnamed(key, more, patterns, where)
        low, high = self._counts(schema, "Properties", where)
        if not properties:
            return self._free(more, patterns, low, high, where, depth)
        if low > len(set(required)) or (high is not None and high < len(properties)):
            raise RequestError(f"{where}: minProperties and maxProperties are not supported for members that are named")
        if patterns:
            self._check_patterns(properties, patterns, where)
        names = [name for name in properties if properties[name] is not False or name in required]
        keys = [json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass") for key in names]
        values = [compact(self.convert(properties[name], f"{where}.{name[:60]}", depth)) for name in names]
        return _Members(keys, values, [key in set(required) for key in names]).object()

    def _unnamed(self, key, more, patterns, where):
        """Return the schema of a member that is required but not among the properties."""
        if patterns:
            raise RequestError(f"{where}.required: {key!r:.60} is not among the properties, beside patternProperties")
        if more is False:
            raise RequestError(f"{where}.required: {key!r:.60} is not among the properties, and no others may come")
        return more

    def _check_patterns(self, properties, patterns, where):
        for pattern in patterns:
            automaton = Automaton(RULES, pattern_string(pattern, f"{where}.patternProperties"))
            for name in properties:
                if automaton.may_end(automaton.run(0, json.dumps(name, ensure_ascii=False).encode())):
                    raise RequestError(
                        f"{where}.patternProperties: {name!r:.60} is a property and fits {pattern!r:.60}"
                    )

    def _free(self, more, patterns, low, high, where, depth):
        """Return objects of members with any names."""
        if low > 1:
            raise RequestError(f"{where}.minProperties: not supported above 1 for members that are not named")
        if patterns:
            if not isinstance(patterns, dict) or len(patterns) > 1:
                raise RequestError(f"{where}.patternProperties: wanted one pattern")
            ((pattern, schema),) = patterns.items()
            key = pattern_string(pattern, f"{where}.patternProperties")
            return separated("{", member(key, self.convert(schema, f"{where}.{pattern[:60]}", depth)), "}", low, high)
        if more is False:
            if low:
                raise RequestError(f"{where}: wanted minProperties of 0 where no members may come")
            return seq(lit("{"), SPACE, lit("}"))
        if more in OPEN and not low and high is None:
            return OBJECT
        value = self.convert(more, f"{where}.additionalProperties", depth)
        return separated("{", member(STRING, value), "}", low, high)


def _is_idle(key, value):
    """Say whether a keyword that is not built asks for nothing."""
    return key.startswith("dependent") and value == {}


def _is_a(value, types):
    """Say whether a value is of a schema's type, or of one of its types."""
    types = types if isinstance(types, list) else [types]
    kinds = {
        str: ("string",), bool: ("boolean",), type(None): ("null",), list: ("array",), dict: ("object",),
        int: ("integer", "number"), float: ("number",),
    }  # fmt: skip
    found = kinds[type(value)]
    if isinstance(value, float) and value.is_integer():
        found = ("integer", "number")
    return any(name in types for name in found)


def _is_list_of(kind, value):
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _tuple(parts, item, low, high):
    """Return the inside of an array: parts in their order, as many as wanted, then any number of items."""
    comma = seq(lit(","), SPACE)
    beyond = None if high is None else max(high - len(parts), 0)
    rest = repeat(seq(comma, item, SPACE), max(low - len(parts), 0), beyond)
    for i in reversed(range(len(parts))):
        if high is not None and i >= high:
            rest = EMPTY
            continue
        here = seq(comma if i else EMPTY, parts[i], SPACE, rest)
        # All of prefixItems come: a model is to fill them; fewer only where maxItems says so.
        rest = here
    return rest


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
        parts = ([members] if members else []) + ([lit("}")] if may_end else [])
        return seq(lit("{"), SPACE, alt(*parts))

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

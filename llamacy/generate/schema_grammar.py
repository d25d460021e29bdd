"""JSON schemas as expressions: the JSON that they describe, or a part of it, and nothing beside it.

Members come in the schema's order. What cannot be kept is refused by name; keywords about another type than a value's
say nothing, as JSON Schema has it, nor do annotations and names that it does not know.
"""

import json
from urllib.parse import unquote

from llamacy.errors import RequestError
from llamacy.generate.automaton import Automaton
from llamacy.generate.grammar import (
    EMPTY,
    Alt,
    Ref,
    alt,
    compact,
    lit,
    repeat,
    seq,
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
from llamacy.generate.regex_grammar import other_strings, pattern_string
from llamacy.generate.schema_formats import PATTERNS, REFUSED
from llamacy.generate.schema_merge import (
    EXCEPT,
    SPLIT,
    Impossible,
    exclude,
    is_impossible,
    is_note,
    item_schemas,
    merged,
    same,
)
from llamacy.generate.schema_numbers import Bounds, integers, numbers
from llamacy.generate.schema_parts import Containing, Different, Members, tuple_of
from llamacy.generate.schema_split import MOST_CASES, without_conditions

MAX_REPEATS = 1_000_000
MAX_DEPTH = 100
MAX_ONE_OF = 100
MAX_SCHEMAS = 50_000  # looked at, for one schema
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
# type: keywords about its values
TYPES = {
    "object": {"properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties",
               "unevaluatedProperties", "propertyNames"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems", "contains"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": BOUNDS,
    "integer": BOUNDS,
    "boolean": set(),
    "null": set(),
}  # fmt: skip
UNBUILT = ("$dynamicRef", "$recursiveRef")
COMBINING = ("$ref", "allOf", "anyOf", "oneOf", "const", "enum")
OPEN = (True, {})
NOTHING = Alt(())
MOST_DIFFERENT = 1000  # values of which an array has each once


class Converter:
    """Turns a schema into expressions; a $ref becomes a rule, so that schemas may refer to themselves."""

    def __init__(self, whole, rules):
        self.whole, self.rules, self._n = whole, rules, 0
        self._depth = 0  # of conditions in each other
        self._names = f"{len(rules)} "  # so that rules of several schemas are apart

    def convert(self, schema, where, depth):
        """Return the expression of a schema's values."""
        self._n += 1
        if depth > MAX_DEPTH or self._n > MAX_SCHEMAS:
            what = "nested too deeply" if depth > MAX_DEPTH else f"too large, more than {MAX_SCHEMAS} parts"
            raise RequestError(f"{where:.80}: the schema is {what}")
        if schema in OPEN and not isinstance(schema, int) or schema is True:
            return VALUE
        if not isinstance(schema, dict):
            if schema is False:
                raise Impossible(f"{where}: wanted a schema object, got false: no value is valid")
            raise RequestError(f"{where}: wanted a schema object, got {type(schema).__name__}")
        if schema.get("nullable") is True:
            rest = {key: value for key, value in schema.items() if key != "nullable"}
            return alt(self.convert(rest, where, depth + 1), NULL)
        schema = self._conditions(schema, where)
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
            return self.convert(merged(rest, self._resolved(found, where), where), where, depth)
        name = f"ref {self._names}{target}"
        if name not in self.rules:
            self.rules[name] = VALUE  # holds the place while the schema refers to itself
            try:
                self.rules[name] = self.convert(found, target, depth)
            except Impossible:
                self.rules[name] = NOTHING  # for whatever refers to it by now
                raise
            if self._loops(name, self.rules[name]):
                raise RequestError(f"{where}: the schema refers to itself without end")
        if self.rules[name] is NOTHING:
            raise Impossible(f"{where}: no value is valid under {target!r:.60}")
        return Ref(name)

    def _resolved(self, schema, where, depth=0):
        """Return a schema without a $ref at its top, its conditions as alternatives."""
        return self._conditions(self._referred(schema, where, depth), where)

    def _referred(self, schema, where, depth=0):
        """Return a schema without a $ref at its top."""
        if depth > MAX_DEPTH:
            raise RequestError(f"{where}: the schema refers to itself without end")
        if not isinstance(schema, dict) or "$ref" not in schema:
            return schema
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        target = schema["$ref"]
        if not isinstance(target, str) or not target.startswith("#"):
            raise RequestError(f"{where}: wanted a reference inside the schema (#/...), got {target!r:.60}")
        return merged(rest, self._referred(self._find(target, where), where, depth + 1), where)

    def _conditions(self, schema, where):
        """Return a schema whose conditions are alternatives."""
        self._n += 1
        if self._n > MAX_SCHEMAS:
            raise RequestError(f"{where}: the schema is too large, more than {MAX_SCHEMAS} parts")
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH // 4:
                raise RequestError(f"{where}: conditions are nested too deeply, or refer to themselves")
            return without_conditions(schema, self._referred, where)
        finally:
            self._depth -= 1

    def _find(self, target, where):
        found = self.whole
        for part in filter(None, target[1:].split("/")):
            key = unquote(part).replace("~1", "/").replace("~0", "~")
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
            node = self.convert(rest, where, depth)
            others = Automaton(RULES | self.rules, node)
            texts = [text for text in texts if others.may_end(others.run(0, text.encode("utf-8", "replace")))]
            if not texts:
                raise Impossible(f"{where}: none of the values is valid under the keywords beside it")
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
                found.append(self.convert(part, name, depth))
            except Impossible as error:  # this one cannot hold beside the rest: others may
                refused = error
        if not found:
            raise refused
        return Alt(tuple(found))

    def _oneof(self, schemas, rest, where, depth):
        if not isinstance(schemas, list) or not schemas:
            raise RequestError(f"{where}: wanted a list of schemas")
        if len(schemas) > MAX_ONE_OF:
            raise RequestError(f"{where}: wanted at most {MAX_ONE_OF} schemas, got {len(schemas)}; use anyOf")
        plain = [self._resolved(schema, where) for schema in schemas]
        types = {"type": rest["type"]} if "type" in rest else {}
        around = [_merged_or_false(types, schema, where) for schema in plain]
        found = []
        for i, schema in enumerate(plain):
            others = [j for j in range(len(plain)) if j != i and not exclude(around[i], around[j])]
            try:
                parts = [self._conditions({"not": plain[j]}, where) for j in others]
            except RequestError as error:
                low, high = sorted((i, others[0]))
                what = f"the schemas {low} and {high} may both be valid for a value: make them differ, or use anyOf"
                raise RequestError(f"{where}: {what} ({error})") from None
            found.append({"allOf": [schema, *parts]} if parts else schema)
        return self._anyof(found, rest, where, depth)

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
        for key in UNBUILT:
            if key in schema:
                raise RequestError(f"{where}: the keyword {key!r} is not supported here")
        if SPLIT in schema:
            return self._split(schema, where, depth)
        if not types:
            return VALUE
        return self._first_possible([lambda n=name: getattr(self, "_" + n)(schema, where, depth + 1) for name in types])

    def _split(self, schema, where, depth):
        """Return the values for which one of each condition's alternatives holds."""
        for key in ("unevaluatedProperties", "unevaluatedItems"):
            if key in schema:
                raise RequestError(f"{where}: {key!r} is not supported beside conditions (not, if, ...)")
        cases = [{key: value for key, value in schema.items() if key != SPLIT}]
        waiting = list(schema[SPLIT])
        while waiting:
            alternatives = waiting.pop(0)
            cases = [more for case in cases for one in alternatives for more in self._beside(case, one, where)]
            if not cases:
                raise Impossible(f"{where}: no value is valid under its conditions")
            if len(cases) > MOST_CASES:
                raise RequestError(f"{where}: conditions with more than {MOST_CASES} cases are not supported")
        return self._first_possible([lambda c=case: self.convert(c, where, depth + 1) for case in cases])

    def _beside(self, case, schema, where):
        """Return [the schema of what is valid under both], nothing where it is seen that no value is."""
        parts = schema["allOf"] if isinstance(schema, dict) and set(schema) == {"allOf"} else [schema]
        try:
            for part in parts:
                case = merged(case, self._resolved(part, where), where)
                if is_impossible(case):
                    return []
        except Impossible:
            return []
        return [case]

    @staticmethod
    def _first_possible(makes):
        """Return the alternatives that there are values for; Impossible where there are none for any."""
        found, refused = [], None
        for make in makes:
            try:
                found.append(make())
            except Impossible as error:
                refused = error
        if not found:
            raise refused
        return Alt(tuple(found))

    def _possible(self, schema, where, depth):
        """Return the expression of a schema's values, None where there are none."""
        try:
            return self.convert(schema, where, depth)
        except Impossible:
            return None

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
            raise Impossible(f"{where}: min{what} {low} is above max{what} {high}")
        return low, high

    def _string(self, schema, where, depth):
        low, high = self._counts(schema, "Length", where)
        pattern, name, out = schema.get("pattern"), schema.get("format"), schema.get(EXCEPT)
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
        is_sized = low or high is not None
        if pattern is not None and is_sized:
            raise RequestError(f"{where}: pattern is not supported together with minLength or maxLength")
        if out and (is_sized or pattern is not None):
            return self._without(out, {key: value for key, value in schema.items() if key != EXCEPT}, where, depth)
        if out:
            return other_strings(out, where)
        if pattern is not None:
            return pattern_string(pattern, f"{where}.pattern")
        return seq(lit('"'), repeat(COUNTED, low, high), lit('"')) if is_sized else STRING

    def _without(self, out, schema, where, depth):
        """Return the strings of a schema, none of which is in `out`; RequestError where that takes more to say."""
        node = self._string(schema, where, depth)
        strings = Automaton(RULES | self.rules, node)
        for value in out:
            for text in {json.dumps(value, ensure_ascii=False), json.dumps(value)}:
                if strings.may_end(strings.run(0, text.encode("utf-8", "replace"))):
                    raise RequestError(f"{where}: what a string must not be is not supported beside its length or form")
        return node

    def _array(self, schema, where, depth):
        low, high = self._counts(schema, "Items", where)
        firsts, items = item_schemas(schema, where)
        if items is True and schema.get("unevaluatedItems") is not None:
            items = schema["unevaluatedItems"]
        unique = schema.get("uniqueItems") is True and (high is None or high > 1)
        least, most = self._contained(schema, where)
        if (unique or least or most is not None) and (firsts or unique and (least or most is not None)):
            raise RequestError(f"{where}: uniqueItems, contains and prefixItems are not supported at once")
        if unique:
            return self._different(items, low, high, where, depth)
        if least or most is not None:
            other = items if most is None else {"allOf": [items, {"not": schema["contains"]}]}
            wanted = self._possible({"allOf": [items, schema["contains"]]}, f"{where}.contains", depth)
            other = self._possible(other, f"{where}.items", depth)
            if high is not None and least > high or wanted is None and least or low and wanted is other is None:
                raise Impossible(f"{where}: no array has so many items under contains")
            if most is not None and other is None and low > most:
                raise Impossible(f"{where}: no array has so many items under contains")
            return Containing(wanted, other, least, most, low, high).array()
        if not firsts and items in OPEN and not low and high is None:
            return ARRAY
        parts = [self._possible(part, f"{where}.prefixItems[{i}]", depth) for i, part in enumerate(firsts)]
        parts = parts[: parts.index(None)] if None in parts else parts
        item = self._possible(items, f"{where}.items", depth) if len(parts) == len(firsts) else None
        if item is None:
            high = min(len(parts), len(parts) if high is None else high)
            if low > high:
                raise Impossible(f"{where}: wanted minItems of at most {high}")
        item = item or VALUE
        return (
            seq(lit("["), SPACE, tuple_of(parts, item, low, high), lit("]"))
            if parts
            else (separated("[", item, "]", low, high))
        )

    def _contained(self, schema, where):
        """Return how many items `contains` wants: (at least, at most or None)."""
        if "contains" not in schema:
            return 0, None
        least = self._count(schema, "minContains", where)
        most = self._count(schema, "maxContains", where)
        least = 1 if least is None else least
        if most is not None and most < least:
            raise Impossible(f"{where}: minContains {least} is above maxContains {most}")
        return least, most

    def _different(self, items, low, high, where, depth):
        """Return the arrays of items of which there are few, each once at most."""
        found = []
        for value in self._values(items, where):
            if not any(same(value, other) for other in found):
                found.append(value)
        node = self._possible(items, f"{where}.items", depth)
        strings = node and Automaton(RULES | self.rules, node)
        texts = [json.dumps(value, ensure_ascii=False) for value in found if strings]
        texts = [text for text in texts if strings.may_end(strings.run(0, text.encode("utf-8", "replace")))]
        if low > len(texts):
            raise Impossible(f"{where}: wanted minItems of at most {len(texts)}, with uniqueItems")
        return Different(texts, low, high).array()

    def _values(self, items, where):
        """Return all values that items may have."""
        items = self._resolved(items, where)
        if isinstance(items, dict):
            if "const" in items:
                return [items["const"]]
            if isinstance(items.get("enum"), list):
                return items["enum"][: MOST_DIFFERENT + 1]
            if items.get("type") in ("boolean", "null"):
                return [False, True, None]
            if items.get("type") == "integer":
                low, high = Bounds(items, where).whole()
                if None not in (low, high) and high - low < MOST_DIFFERENT:
                    return list(range(low, high + 1))
        raise RequestError(
            f"{where}: uniqueItems is not supported, but for items that are listed (enum, bounds of integers)"
        )

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
        out = [name for name in properties if properties[name] is False and name not in required]
        allowed = schema.get("propertyNames", True)
        if len(out) == len(properties):
            return self._free(more, patterns, low, high, out, allowed, where, depth)
        if low > len(set(required)) or (high is not None and high < len(properties)):
            raise RequestError(f"{where}: minProperties and maxProperties are not supported for members that are named")
        if patterns:
            self._check_patterns(properties, patterns, where)
        values = self._members(properties, allowed, where, depth)
        if not set(required) <= set(values):
            missing = next(name for name in required if name not in values)
            raise Impossible(f"{where}.{missing[:60]}: no value is valid, but the member is required")
        keys = [json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass") for key in values]
        return Members(keys, [*values.values()], [key in set(required) for key in values]).object()

    def _members(self, properties, allowed, where, depth):
        """Return {name: expression of its values} of the properties that may be there."""
        found = {name: self._possible(part, f"{where}.{name[:60]}", depth) for name, part in properties.items()}
        found = {name: compact(node) for name, node in found.items() if node is not None}
        if allowed in OPEN:
            return found
        node = self._allowed_names(allowed, (), f"{where}.propertyNames", depth)
        texts = Automaton(RULES | self.rules, node)
        fits = {name: texts.run(0, json.dumps(name, ensure_ascii=False).encode()) for name in found}
        return {name: node for name, node in found.items() if texts.may_end(fits[name])}

    def _allowed_names(self, allowed, out, where, depth):
        """Return the names that members may have, as strings."""
        if allowed in OPEN and not out:
            return STRING
        parts = [{"type": "string"}, allowed, {EXCEPT: list(out)} if out else True]
        return self.convert({"allOf": parts}, where, depth)

    def _unnamed(self, key, more, patterns, where):
        """Return the schema of a member that is required but not among the properties."""
        if patterns:
            raise RequestError(f"{where}.required: {key!r:.60} is not among the properties, beside patternProperties")
        if more is False:
            raise Impossible(f"{where}.required: {key!r:.60} is not among the properties, and no others may come")
        return more

    def _check_patterns(self, properties, patterns, where):
        for pattern in patterns:
            automaton = Automaton(RULES, pattern_string(pattern, f"{where}.patternProperties"))
            for name in properties:
                if automaton.may_end(automaton.run(0, json.dumps(name, ensure_ascii=False).encode())):
                    raise RequestError(
                        f"{where}.patternProperties: {name!r:.60} is a property and fits {pattern!r:.60}"
                    )

    def _free(self, more, patterns, low, high, out, allowed, where, depth):
        """Return objects of members with any names but those in `out`, as far as propertyNames allows them."""
        if more is not False and not isinstance(more, dict) and more is not True:
            raise RequestError(f"{where}.additionalProperties: wanted a schema")
        if low > 1:
            raise RequestError(f"{where}.minProperties: not supported above 1 for members that are not named")
        if patterns:
            if not isinstance(patterns, dict) or len(patterns) > 1:
                raise RequestError(f"{where}.patternProperties: wanted one pattern")
            if out or allowed not in OPEN:
                raise RequestError(f"{where}.patternProperties: not supported beside propertyNames or false properties")
            ((pattern, schema),) = patterns.items()
            key = pattern_string(pattern, f"{where}.patternProperties")
            return separated("{", member(key, self.convert(schema, f"{where}.{pattern[:60]}", depth)), "}", low, high)
        if more is False:
            if low:
                raise Impossible(f"{where}: wanted minProperties of 0 where no members may come")
            return seq(lit("{"), SPACE, lit("}"))
        if more in OPEN and allowed in OPEN and not (low or out) and high is None:
            return OBJECT
        try:
            key = self._allowed_names(allowed, out, f"{where}.propertyNames", depth)
            value = self.convert(more, f"{where}.additionalProperties", depth)
        except Impossible:
            return self._free(False, patterns, low, high, out, True, where, depth)
        return separated("{", member(key, value), "}", low, high)


def _merged_or_false(a, b, where):
    try:
        return merged(a, b, where)
    except Impossible:
        return False


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

"""Conditions in JSON schemas (not, if, dependentRequired, ...) as alternatives, one of which must hold for a value.

What is not valid under a schema is said by schemas of its own, of which each allows values that the schema does not: at
most those, so that nothing wrong is valid in the end. What cannot be said so is refused by name.
"""

from itertools import product

from llamacy.errors import RequestError
from llamacy.generate.schema_merge import EXCEPT, SPLIT, is_note

TYPES = ("object", "array", "string", "number", "boolean", "null")
CONDITIONS = ("not", "if", "dependentRequired", "dependentSchemas", "dependencies")
MAX_DEPTH = 20
MOST = 64  # alternatives of one schema
MOST_CASES = 256  # of all conditions of one


def without_conditions(schema, resolve, where):
    """Return a schema with SPLIT, lists of alternatives, in place of CONDITIONS; resolve(schema): without a $ref."""
    if not isinstance(schema, dict) or not any(key in schema for key in CONDITIONS):
        return schema
    found = {key: value for key, value in schema.items() if key not in (*CONDITIONS, "then", "else")}
    splits = list(schema.get(SPLIT, ()))
    if "not" in schema:
        splits.append(Negation(resolve, f"{where}.not").of(schema["not"]))
    if "if" in schema and ("then" in schema or "else" in schema):
        cases = Negation(resolve, f"{where}.if").of(schema["if"])
        splits.append(
            [{"allOf": [schema["if"], schema.get("then", True)]}]
            + [{"allOf": [case, schema.get("else", True)]} for case in cases]
        )
    for key in ("dependentRequired", "dependentSchemas", "dependencies"):
        given = schema.get(key, {})
        if not isinstance(given, dict):
            raise RequestError(f"{where}.{key}: wanted an object")
        for name, then in given.items():
            there = {"required": [name]}
            then = {"required": then} if isinstance(then, list) else then
            splits.append([{"properties": {name: False}}, {"allOf": [there, then]}])
    return found | ({SPLIT: splits} if splits else {})


def combinations(splits, where):
    """Yield lists of schemas, of each split one."""
    n = 1
    for alternatives in splits:
        n *= max(len(alternatives), 1)
        if n > MOST_CASES:
            raise RequestError(f"{where}: conditions with more than {MOST_CASES} cases are not supported")
    return map(list, product(*splits))


class Negation:
    """Says what is not valid under a schema: of() is a list of schemas, each by itself.

    Of additionalProperties nothing is said: members beside those that are named are not made.
    """

    def __init__(self, resolve, where):
        self._resolve, self._where = resolve, where

    def of(self, schema, depth=0):
        if isinstance(schema, bool):
            return [] if schema else [True]
        if depth > MAX_DEPTH:
            raise RequestError(f"{self._where}: the schema is nested too deeply")
        schema, found = self._resolve(schema, self._where), []
        if isinstance(schema, bool):
            return self.of(schema)
        if not isinstance(schema, dict):
            raise RequestError(f"{self._where}: wanted a schema object, got {type(schema).__name__}")
        for key, value in schema.items():
            if is_note(key):
                continue
            made = getattr(self, "_" + key.lower(), None) if isinstance(key, str) and key in NEGATED else None
            if made is not None:
                found += made(value, schema, depth + 1)
            elif not isinstance(key, str) or key in REFUSED:
                name = key if isinstance(key, str) else key[0]
                raise RequestError(f"{self._where}: {name!r} is not supported in what must not hold")
        if len(found) > MOST:
            raise RequestError(f"{self._where}: wanted at most {MOST} cases, got {len(found)}")
        return found

    def _type(self, value, schema, depth):
        types = value if isinstance(value, list) else [value]
        # Numbers that are no integers cannot be told from the others: none at all.
        types = [*types, "number"] if "integer" in types else types
        rest = [name for name in TYPES if name not in types]
        return [{"type": rest}] if rest else []

    def _const(self, value, schema, depth):
        return self._enum([value], schema, depth)

    def _enum(self, values, schema, depth):
        if not isinstance(values, list):
            raise RequestError(f"{self._where}.enum: wanted a list of values")
        kinds = {kind: [value for value in values if type(value) is kind] for kind in (str, bool, list, dict)}
        if any(kinds[list]) or any(kinds[dict]):
            raise RequestError(f"{self._where}: arrays and objects with something in them are not supported as values")
        numbers = sorted({value for value in values if isinstance(value, (int, float)) and type(value) is not bool})
        types = ["string", "array", "object"] + ["null"] * (None not in values)
        types += ["boolean"] * (not kinds[bool]) + ["number"] * (not numbers)
        others = {"type": types} | ({EXCEPT: kinds[str]} if kinds[str] else {})
        others |= {"minItems": 1} if kinds[list] else {}
        others |= {"minProperties": 1} if kinds[dict] else {}
        found = [others] + [{"enum": [value]} for value in (False, True) if kinds[bool] and value not in kinds[bool]]
        below = [{"exclusiveMaximum": number} for number in numbers] + [{}]
        above = [{}] + [{"exclusiveMinimum": number} for number in numbers]
        between = [{"type": "number", **x, **y} for x, y in zip(above, below, strict=True)]
        return found + between if numbers else found

    def _properties(self, value, schema, depth):
        if not isinstance(value, dict):
            raise RequestError(f"{self._where}.properties: wanted an object")
        return [
            {"type": "object", "required": [name], "properties": {name: part}}
            for name, one in value.items()
            for part in self.of(one, depth)
        ]

    def _required(self, value, schema, depth):
        return [{"type": "object", "properties": {name: False}} for name in value]

    def _items(self, value, schema, depth):
        if isinstance(value, list) or "prefixItems" in schema:
            raise RequestError(f"{self._where}: items one by one are not supported in what must not hold")
        return [{"type": "array", "contains": part} for part in self.of(value, depth)]

    def _bound(self, kind, key, value, by):
        """Return what is beyond a bound: `by` from it."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RequestError(f"{self._where}: wanted a number, got {value!r:.60}")
        return [{"type": kind, key: value + by}] if kind == "number" or value + by >= 0 else []

    def _not(self, value, schema, depth):
        return [value]

    def _allof(self, value, schema, depth):
        return [part for one in self._list(value) for part in self.of(one, depth)]

    def _anyof(self, value, schema, depth):
        parts = [self.of(one, depth) for one in self._list(value)]
        return [{"allOf": chosen} for chosen in combinations(parts, self._where)]

    def _list(self, value):
        if not isinstance(value, list) or not value:
            raise RequestError(f"{self._where}: wanted a list of schemas")
        return value


def _beyond(kind, key, by):
    return lambda self, value, schema, depth: self._bound(kind, key, value, by)


for _what, _kind in (("Length", "string"), ("Items", "array"), ("Properties", "object")):
    setattr(Negation, f"_min{_what.lower()}", _beyond(_kind, f"max{_what}", -1))
    setattr(Negation, f"_max{_what.lower()}", _beyond(_kind, f"min{_what}", 1))
for _key, _other in (("inimum", "aximum"), ("aximum", "inimum")):
    setattr(Negation, f"_m{_key}", _beyond("number", f"exclusiveM{_other}", 0))
    setattr(Negation, f"_exclusivem{_key}", _beyond("number", f"m{_other}", 0))
NEGATED = {
    *("type", "const", "enum", "properties", "required", "items", "not", "allOf", "anyOf"),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
REFUSED = {
    *("multipleOf", "pattern", "format", "uniqueItems", "contains", "minContains", "maxContains", "prefixItems"),
    *("patternProperties", "propertyNames", "unevaluatedProperties", "unevaluatedItems"),
    *("additionalItems", "oneOf", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"),
    *("$dynamicRef", "$recursiveRef", "nullable"),
}

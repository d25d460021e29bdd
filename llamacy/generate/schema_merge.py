"""Several JSON schemas that hold at once (allOf, keywords beside $ref and anyOf) as one; do two exclude each other?"""

from llamacy.errors import RequestError

ANNOTATIONS = {
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "strict"),
    *("$schema", "$id", "id", "$comment", "$defs", "definitions", "$anchor", "$vocabulary", "discriminator", "xml"),
    *("externalDocs", "contentEncoding", "contentMediaType", "contentSchema", "enumNames", "markdownDescription"),
}
LARGEST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
SMALLEST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
PAIRED = ("additionalProperties", "items")  # both of them hold


def is_note(key):
    """Say whether a keyword says nothing about which values are valid."""
    return key in ANNOTATIONS or key.startswith("x-")


def merged(a, b, where):
    """Return the schema of what is valid under both; RequestError where that cannot be said in one."""
    if a is True or b is True:
        return a if b is True else b
    if a is False or b is False:
        raise RequestError(f"{where}: no value is valid under false")
    if not isinstance(a, dict) or not isinstance(b, dict):
        raise RequestError(f"{where}: wanted schema objects")
    found = dict(a)
    for key, value in b.items():
        if is_note(key) or key not in found:
            found.setdefault(key, value)
        elif found[key] != value:
            found[key] = _both(key, found[key], value, where)
    _close(found, a, b)
    return found


def _both(key, x, y, where):
    if key == "type":
        return _types(x, y, where)
    if key in ("properties", "required", "enum") and (type(x) is not type(y) or not isinstance(x, (dict, list))):
        raise RequestError(f"{where}.{key}: wanted lists or objects")
    if key == "properties":
        return x | {name: merged(x[name], part, where) if name in x else part for name, part in y.items()}
    if key == "required":
        return [*x, *(name for name in y if name not in x)]
    if key == "enum":
        return [value for value in x if any(same(value, other) for other in y)]
    if key in LARGEST and _are_numbers(x, y):
        return max(x, y)
    if key in SMALLEST and _are_numbers(x, y):
        return min(x, y)
    if key in PAIRED:
        return merged(x, y, where) if x is not False and y is not False else False
    if key == "allOf":
        return [*x, *y]
    if key == "uniqueItems":
        return x or y
    if key in ("anyOf", "oneOf", "$ref"):
        return x if x == y else _refused(key, where)
    return _refused(key, where)


def _refused(key, where):
    raise RequestError(f"{where}: two schemas that differ in {key!r} are not supported at once")


def _are_numbers(x, y):
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (x, y))


def _types(x, y, where):
    x, y = (value if isinstance(value, list) else [value] for value in (x, y))
    found = [name for name in x if name in y]
    if "integer" in x + y and "number" in x + y and "integer" not in found:
        found.append("integer")
    if not found:
        raise RequestError(f"{where}: no value is {x[0]!r:.20} and {y[0]!r:.20} at once")
    return found if len(found) > 1 else found[0]


def _close(found, a, b):
    """Where one schema allows no other members, drop those that only the other one names."""
    for closed in (a, b):
        if closed.get("additionalProperties") is False:
            mine = closed.get("properties", {})
            found["properties"] = {name: part for name, part in found.get("properties", {}).items() if name in mine}
            found.setdefault("required", [])
            found["additionalProperties"] = False


def same(a, b):
    """Say whether two JSON values are equal: true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (dict, list)) and type(a) is type(b) and len(a) == len(b):
        pairs = zip(a, b, strict=True) if isinstance(a, list) else ((a[key], b.get(key, ...)) for key in a)
        return all(same(x, y) for x, y in pairs)
    return a == b


def _values(schema):
    """Return the values that a schema lists, None where it lists none."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


KINDS = {str: "string", bool: "boolean", type(None): "null", list: "array", dict: "object"}


def _kinds(schema):
    """Return the types that a schema's values may have, None where it does not say."""
    values, types = _values(schema), schema.get("type")
    if values is not None:
        return {KINDS.get(type(value), "number") for value in values}
    if types is None:
        return {"object"} if "properties" in schema else None
    return set(types if isinstance(types, list) else [types])


def exclude(a, b):
    """Say whether no value can be valid under both schemas, as far as their types, values and members show it."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a is False or b is False
    x, y = _kinds(a), _kinds(b)
    if x is not None and y is not None:
        x, y = ({"number", "integer"} & kinds and kinds | {"number", "integer"} or kinds for kinds in (x, y))
        if not x & y:
            return True
    x, y = _values(a), _values(b)
    if x is not None and y is not None:
        return not any(same(value, other) for value in x for other in y)
    if _kinds(a) != {"object"} or _kinds(b) != {"object"}:
        return False
    x, y = a.get("properties", {}), b.get("properties", {})
    shared = set(a.get("required", ())) & set(b.get("required", ()))
    if any(exclude(x.get(name, {}), y.get(name, {})) for name in shared):
        return True
    return any(
        p.get("additionalProperties") is False and set(q.get("required", ())) - set(p.get("properties", {}))
        for p, q in ((a, b), (b, a))
    )

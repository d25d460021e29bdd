"""Several JSON schemas that hold at once (allOf, keywords beside $ref and anyOf) as one; do two exclude each other?"""

from llamacy.errors import RequestError

ANNOTATIONS = {
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "strict"),
    *("$schema", "$id", "id", "$comment", "$defs", "definitions", "$anchor", "$vocabulary", "discriminator", "xml"),
    *("externalDocs", "contentEncoding", "contentMediaType", "contentSchema", "enumNames", "markdownDescription"),
}
LARGEST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
SMALLEST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
ARRAYS = ("items", "prefixItems", "additionalItems", "unevaluatedItems")
# Of a schema within the converter: lists of alternatives of which one must hold; strings that are not valid.
SPLIT, EXCEPT = ("conditions",), ("strings that are out",)
CONTAINS, IF = ("contains", "minContains", "maxContains"), ("if", "then", "else")
TOGETHER = (*CONTAINS, *IF)
SEVERAL = ("not", "dependentRequired", "dependentSchemas", "dependencies")
# What looks at the same value through other schemas, which unevaluated* see as well.
APPLYING = ("$ref", "allOf", "anyOf", "oneOf", "if", *SEVERAL, "contains", SPLIT)


class Impossible(RequestError):
    """No value is valid under a schema."""


def is_note(key):
    """Say whether a keyword says nothing about which values are valid."""
    return key in ANNOTATIONS or (isinstance(key, str) and key.startswith("x-"))


def as_part(schema, where):
    """Return a schema as it is among others that hold for the same value: what is unevaluated in it is of no others."""
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key, more in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        value = found.pop(key, True)
        more = "additionalItems" if isinstance(found.get(more), list) else more
        if value is True or value == {} or found.get(more, True) is not True:
            continue
        if any(name in schema for name in APPLYING):
            raise RequestError(f"{where}: {key!r} beside other schemas is not supported in one of several")
        found[more] = value
    return found


def merged(a, b, where):
    """Return the schema of what is valid under both, b a part of a (see as_part); RequestError where that is not built.

    Impossible where nothing is.
    """
    b = as_part(b, where)
    if a is True or b is True:
        return a if b is True else b
    if a is False or b is False:
        raise Impossible(f"{where}: no value is valid under false")
    if not isinstance(a, dict) or not isinstance(b, dict):
        raise RequestError(f"{where}: wanted schema objects")
    found = dict(a)
    for key, value in b.items():
        if key in TOGETHER or key in ARRAYS or key in ("properties", "additionalProperties"):
            continue
        if is_note(key) or key not in found:
            found.setdefault(key, value)
        elif key in SEVERAL and not same(found[key], value):
            found["allOf"] = [*found.get("allOf", ()), {key: value}]
        elif not same(found[key], value):
            found[key] = _both(key, found[key], value, where)
    if a and not (a.get("nullable") and b.get("nullable")):
        found.pop("nullable", None)
    _leave_out(found, where)
    _merge_groups(found, a, b, where)
    _merge_arrays(found, a, b, where)
    _merge_members(found, a, b, where)
    return found


def _leave_out(found, where):
    """Take strings that are out away from values that are listed; Impossible where none is left."""
    values = _values(found)
    if EXCEPT not in found or values is None:
        return
    left = [value for value in values if not isinstance(value, str) or value not in found[EXCEPT]]
    if not left:
        raise Impossible(f"{where}: none of the values may be")
    if "const" not in found:
        found["enum"] = left


def is_impossible(schema):
    """Say whether a schema wants a member that has no value."""
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return schema is False or any(properties.get(name) is False for name in schema.get("required", ()))


def _merge_groups(found, a, b, where):
    """Set what keywords say together with others: of one side, or of both apart."""
    for names in (CONTAINS, IF):
        theirs = {key: b[key] for key in names if key in b}
        if names[0] not in theirs:
            continue
        if names[0] not in a:
            for key in names:
                found.pop(key, None)
            found.update(theirs)
        elif not same({key: a[key] for key in names if key in a}, theirs):
            if names is CONTAINS:
                _refused("contains", where)
            found["allOf"] = [*found.get("allOf", ()), theirs]


def alike(a, b, where):
    """Return the schema of what is valid under both, neither a part of the other; False where nothing is."""
    try:
        return merged(as_part(a, where), b, where)
    except Impossible:
        return False


def _merge_arrays(found, a, b, where):
    """Set what is said of items: each place has those of both sides."""
    if not any(key in a or key in b for key in ARRAYS):
        return
    (xs, x), (ys, y) = (item_schemas(schema, where) for schema in (a, b))
    firsts = []
    for i in range(max(len(xs), len(ys))):
        both = alike(xs[i] if i < len(xs) else x, ys[i] if i < len(ys) else y, where)
        if both is False:
            found["maxItems"] = min(found.get("maxItems", i), i)
            break
        firsts.append(both)
    for key in ("prefixItems", "additionalItems"):
        found.pop(key, None)
    found.update({"items": alike(x, y, where)} | ({"prefixItems": firsts} if firsts else {}))


def item_schemas(schema, where):
    """Return an array's (schemas of the first items, of all others)."""
    firsts, items = schema.get("prefixItems", []), schema.get("items", True)
    if isinstance(items, list):  # drafts before 2020
        firsts, items = items, schema.get("additionalItems", True)
    if not isinstance(firsts, list):
        raise RequestError(f"{where}.prefixItems: wanted a list of schemas")
    return firsts, items


def _merge_members(found, a, b, where):
    """Set what is said of members: where one side does not name one, what it says of all others holds."""
    xs, ys = a.get("properties", {}), b.get("properties", {})
    x, y = a.get("additionalProperties", True), b.get("additionalProperties", True)
    if not isinstance(xs, dict) or not isinstance(ys, dict):
        raise RequestError(f"{where}.properties: wanted an object")
    if xs or ys:
        changed = ys if y is True else {**xs, **ys}
        found["properties"] = xs | {name: alike(xs.get(name, x), ys.get(name, y), where) for name in changed}
    if x is not True or y is not True:
        found["additionalProperties"] = alike(x, y, where)


def _both(key, x, y, where):
    if key == "type":
        return _types(x, y, where)
    if key in ("required", "enum", "allOf") and not (isinstance(x, list) and isinstance(y, list)):
        raise RequestError(f"{where}.{key}: wanted lists")
    if key == "required":
        return [*x, *(name for name in y if name not in x)]
    if key == "enum" and (found := [value for value in x if any(same(value, other) for other in y)]):
        return found
    if key in ("enum", "const"):
        raise Impossible(f"{where}.{key}: no value is in both")
    if key in LARGEST and _are_numbers(x, y):
        return max(x, y)
    if key in SMALLEST and _are_numbers(x, y):
        return min(x, y)
    if key in ("allOf", SPLIT, EXCEPT):
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
    wide = [[*names, "integer"] if "number" in names else names for names in (x, y)]
    found = [name for name in dict.fromkeys(wide[0]) if name in wide[1]]
    if not found:
        raise Impossible(f"{where}: no value is {x[0]!r:.20} and {y[0]!r:.20} at once")
    found = [name for name in found if name != "integer" or "number" not in found]
    return found if len(found) > 1 else found[0]


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
        return None
    found = set(types if isinstance(types, list) else [types])
    return {"number" if name == "integer" else name for name in found}


def _made(schema):
    """Return the types of the values that are made for a schema: of its keywords', where it says nothing else."""
    found = _kinds(schema)
    is_plain = set(schema) <= {"properties", "required", "additionalProperties"} | ANNOTATIONS
    return {"object"} if found is None and is_plain and "properties" in schema else found


def exclude(a, b):
    """Say whether no value that is made for schema a is valid under b, as far as types, values and members show it."""
    if _apart(a, b, _made):
        return True
    if not isinstance(a, dict) or not isinstance(b, dict):
        return False
    if _made(a) != {"object"} or None not in (_values(a), _values(b)):
        return False
    xs, ys = a.get("properties", {}), b.get("properties", {})
    shared = set(a.get("required", ())) & set(b.get("required", ()))
    if any(_apart(xs.get(name, {}), ys.get(name, {})) for name in shared):
        return True
    return any(
        p.get("additionalProperties") is False and set(q.get("required", ())) - set(p.get("properties", {}))
        for p, q in ((a, b), (b, a))
        if "patternProperties" not in p
    )


def _apart(a, b, kinds=_kinds):
    """Say whether no value is valid under both schemas, by their types (kinds(a): a's) and values."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a is False or b is False
    x, y = kinds(a), _kinds(b)
    if x is not None and y is not None and not x & y:
        return True
    x, y = _values(a), _values(b)
    return x is not None and y is not None and not any(same(value, other) for value in x for other in y)

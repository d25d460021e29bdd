"""JSON schemas against JSON Schema's own tests and validator: what a grammar makes is valid, nothing fails open.

The tests come with jsonschema's sources. Of what is valid a grammar may allow less (members in an order, formats kept,
one way to write a number, the type that keywords are about), never more.
"""

import json
import random
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
JUDGE = Path(__file__).resolve().with_name("judge.py")
# content*: what a string contains is a note since 2019, and the older drafts' tests of it are optional
LEFT_OUT = ("content",)
N_SCHEMAS = 6000
VALUES = [0, 1, 2, 5, -3, 1.5, True, False, None, "a", "b", "ab", "", [], {}, [1], ["a"], {"a": 1}]
NAMES = "abcd"
TYPES = ["object", "array", "string", "number", "integer", "boolean", "null"]


@pytest.fixture(scope="module")
def judge():
    """Ask for what the grammar of a schema says."""
    with subprocess.Popen(
        [ROOT / ".venv" / "bin" / "python", JUDGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:

        def ask(schema, texts=(), n=0):
            print(json.dumps({"schema": schema, "texts": list(texts), "n": n}), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The folder of JSON Schema's own tests, as jsonschema's source distribution has it."""
    folder = tmp_path_factory.mktemp("suite")
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    version = metadata.version("jsonschema")
    done = subprocess.run(
        [*command, "--no-binary", "jsonschema", "-d", folder, f"jsonschema=={version}"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"jsonschema's sources cannot be had: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(next(folder.glob("jsonschema*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("jsonschema-*")) / "json" / "tests"


@pytest.mark.parametrize("draft", ["draft2020-12", "draft2019-09", "draft7", "draft6", "draft4"])
def test_the_suite(suite, judge, draft):
    right = narrow = refused = 0
    for path in sorted((suite / draft).rglob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            if path.stem in LEFT_OUT:
                continue
            datas = [test["data"] for test in group["tests"]]
            texts = [json.dumps(data, ensure_ascii=False) for data in datas]
            said = judge(group["schema"], texts)
            if "refused" in said:
                refused += 1
                assert ": " in said["refused"]
                continue
            for test, is_taken in zip(group["tests"], said["fits"], strict=True):
                assert test["valid"] or not is_taken, (path.name, group["description"], test["description"])
                right += test["valid"] and is_taken
                narrow += test["valid"] and not is_taken
    assert right > 200 and right > 0.9 * narrow and refused < right / 2, (right, narrow, refused)


def test_what_is_made_is_valid(judge):
    """Schemas of all keywords in each other, made by chance: each text of a grammar is valid under its schema."""
    chance, made, taken = random.Random(3), 0, 0
    for _ in range(N_SCHEMAS):
        schema = {**_schema(chance), "$defs": {"x": _schema(chance, 2), "y": _schema(chance, 2)}}
        said = judge(schema, n=6)
        taken += "samples" in said
        validator = jsonschema.Draft202012Validator(schema)
        for text in said.get("samples", ()):
            try:
                assert validator.is_valid(json.loads(text)), (text, json.dumps(schema))
                made += 1
            except RecursionError:  # the validator's, for schemas that refer to themselves without end
                break
    assert taken > N_SCHEMAS / 4 and made > N_SCHEMAS


def _schema(chance, depth=0):
    """Return an object that is a schema, of any keywords."""

    def is_so(share):
        return chance.random() < share

    def part():
        if depth > 2:
            kinds = [{}, {"type": chance.choice(TYPES[2:])}, {"const": chance.choice(VALUES)}]
            return chance.choice(kinds)
        return chance.choice([True, False]) if is_so(0.05) else _schema(chance, depth + 1)

    def parts():
        return [part() for _ in range(chance.randint(1, 3))]

    def names(most):
        return chance.sample(NAMES, chance.randint(0, most))

    def number():
        return chance.choice([0, 1, -2, 5, 1.5, -0.25, 10])

    # share, keyword, what it may be, for each kind of schema
    members = [
        (0.8, "properties", lambda: {name: part() for name in names(3)}),
        (0.5, "required", lambda: names(2)),
        (0.4, "additionalProperties", part),
        (0.1, "unevaluatedProperties", part),
        (0.1, "minProperties", lambda: chance.randint(0, 2)),
        (0.1, "maxProperties", lambda: chance.randint(0, 3)),
        (0.1, "patternProperties", lambda: {chance.choice(["^a", "b", "."]): part()}),
        (0.1, "propertyNames", lambda: chance.choice([{"pattern": "^a"}, {"enum": ["a", "b"]}, {"maxLength": 1}])),
        (0.1, "dependentRequired", lambda: {chance.choice(NAMES): names(1)}),
        (0.1, "dependentSchemas", lambda: {chance.choice(NAMES): part()}),
    ]
    items = [
        (0.7, "items", part),
        (0.3, "prefixItems", parts),
        (0.2, "minItems", lambda: chance.randint(0, 2)),
        (0.2, "maxItems", lambda: chance.randint(0, 3)),
        (0.2, "uniqueItems", lambda: True),
        (0.2, "contains", part),
        (0.1, "minContains", lambda: chance.randint(0, 2)),
        (0.1, "maxContains", lambda: chance.randint(0, 2)),
        (0.1, "unevaluatedItems", part),
    ]
    # Decimal steps are left out: the validator takes 0.6 for no multiple of 0.1.
    numbers = [(0.3, f"{kind}imum", number) for kind in ("min", "max", "exclusiveMin", "exclusiveMax")]
    numbers.append((0.2, "multipleOf", lambda: chance.choice([1, 2, 3, 0.5])))
    texts = [
        (0.3, "minLength", lambda: chance.randint(0, 2)),
        (0.3, "maxLength", lambda: chance.randint(0, 3)),
        (0.2, "pattern", lambda: chance.choice(["^a", "b$", "^[ab]+$", "."])),
    ]
    kinds = {"object": members, "array": items, "number": numbers, "string": texts}
    kind, found = chance.choice([*kinds, "object", "values", "types", "several", "condition", "ref"]), {}
    for name, keywords in kinds.items():
        if name == kind or is_so(0.08):
            found |= {"type": name} if is_so(0.7) else {}
            found |= {keyword: make() for share, keyword, make in keywords if is_so(share)}
    if kind == "values":
        found["enum"] = chance.choices(VALUES, k=chance.randint(1, 3))
    if kind == "types":
        found["type"] = chance.sample(TYPES, chance.randint(1, 3))
    if kind == "several" or is_so(0.12):
        found[chance.choice(["allOf", "anyOf", "oneOf"])] = parts()
    if kind == "condition" or is_so(0.06):
        found |= {"if": part()} | {key: part() for key in ("then", "else") if is_so(0.7)}
    if kind == "ref":
        found["$ref"] = "#/$defs/" + chance.choice("xy")
    if is_so(0.07):
        found["not"] = part()
    return found

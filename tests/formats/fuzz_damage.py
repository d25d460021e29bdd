"""Ways to damage a file: bytes anywhere, values of JSON, words of a template, fields of a checkpoint."""

import copy
import json
import struct
import tempfile
from pathlib import Path

import numpy as np

from llamacy.train.checkpoint import load_checkpoint, save_checkpoint

NUMBERS = [0, 1, 2, 3, 4, 5, 31, 32, 33, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
NUMBERS += [2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1]
STRANGE = [
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    1e308,
    0.5,
    2**70,
    10**400,
    float("nan"),
    float("inf"),
    "x",
    "",
    "\0",
    "\x1b[2J",
]
STRANGE += ["é" * 5000, [], {}, [[]], {"a": {}}, ["a", 1], {"": None}, "\u2581", "(a+)+", "\\p{L}"]
# What templates are made of, and what makes them long, deep or endless.
WORDS = ["{%", "%}", "{{", "}}", "{#", "-%}", "for m in messages", "endfor", "if", "endif", "else", "set x ="]
WORDS += ["range(99999)", "'x' * 10**9", "messages", "['content']", "| tojson", "|join", "(" * 300, "~", "**"]
WORDS += [
    "9" * 5000,
    "loop.index",
    "break",
    "raise_exception('no')",
    "macro f(a)",
    "endmacro",
    "namespace()",
    "x.y.z",
    "\n",
    "\x1b",
    "caller()",
]
WORDS += [
    "{% for a in range(999) %}{% for b in range(999) %}x{% endfor %}{% endfor %}",
    "lipsum()",
    "strftime_now('%Y')",
]
WORDS += [
    "self",
    "cycler",
    "include 'x'",
    "import 'y' as z",
    "recursive",
    "filter upper",
    "generation",
    "[x for x in y]",
]


def damage(rng, content):
    """Return `content` damaged in one to four ways, mostly near its beginning, where headers are."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        size = len(content)
        reach = rng.choice([64, 512, size, size])
        place = rng.randrange(max(1, min(reach, size))) if size else 0
        kind = rng.randrange(8)
        if kind == 0:
            content[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and size:
            content[place % size] ^= 1 << rng.randrange(8)
        elif kind in (2, 3):
            number = rng.choice([*NUMBERS, size, size - place, size + 1, rng.getrandbits(64)])
            letter = rng.choice("HIQ")
            raw = struct.pack("<" + letter, number & (1 << 8 * struct.calcsize(letter)) - 1)
            place -= place % len(raw) if rng.random() < 0.5 else 0
            content[place : place + len(raw)] = raw
        elif kind == 4:
            del content[place:]
        elif kind == 5:
            del content[place : place + rng.choice([1, 4, 8, 40])]
        elif kind == 6:
            content[place:place] = rng.randbytes(rng.choice([1, 4, 8, 40]))
        else:
            start = rng.randrange(max(1, size))
            length = rng.choice([4, 8, 30, 200])
            content[place : place + length] = content[start : start + length]
    return bytes(content)


def damage_json(rng, content):
    """Return JSON text with one to three values exchanged for others, left out, doubled or buried."""
    whole = [json.loads(content)]
    for _ in range(rng.choice([1, 1, 2, 3])):
        _damage_value(rng, whole)
    return json.dumps(whole[0]).encode()


def _damage_value(rng, whole):
    """Change one value inside the one-element list `whole`."""
    holders, waiting = [], [whole]
    while waiting:
        one = waiting.pop()
        inner = one.values() if isinstance(one, dict) else one
        holders += [one] if one else []
        waiting += [value for value in inner if isinstance(value, (dict, list))]
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    kind = rng.randrange(7)
    if kind == 0 and holder is not whole:
        del holder[key]
    elif kind == 1:
        other = rng.choice(holders)
        holder[key] = copy.deepcopy(rng.choice(list(other.values()) if isinstance(other, dict) else other))
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice([*holder, "later", ""])] = copy.deepcopy(rng.choice(STRANGE))
    elif kind == 3 and isinstance(holder[key], list) and holder[key]:
        holder[key] = (holder[key] * rng.choice([2, 3, 500]))[:2000]
    elif kind == 4:
        for _ in range(rng.choice([1, 2, 40])):
            holder[key] = {"a": holder[key]} if rng.random() < 0.5 else [holder[key]]
    else:
        holder[key] = copy.deepcopy(rng.choice(STRANGE))


def damage_header(rng, content):
    """Return a safetensors file whose JSON header was damaged; places in the data stay as they were."""
    (length,) = struct.unpack_from("<Q", content)
    raw = damage_json(rng, content[8 : 8 + length])
    return struct.pack("<Q", len(raw)) + raw + content[8 + length :]


def damage_words(rng, content):
    """Return text with pieces cut, moved, doubled or put in."""
    text = content.decode()
    for _ in range(rng.choice([1, 1, 2, 4])):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        b = min(b, a + rng.choice([1, 5, 40]))
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:a] + text[b:]
        elif kind == 1:
            text = text[:b] + text[a:b] * rng.choice([1, 1, 50]) + text[b:]
        else:
            text = text[:a] + " " + rng.choice(WORDS) + " " + (text[a:] if kind == 2 else text[b:])
    return text.encode("utf-8", "replace")


def damage_checkpoint(rng, content):
    """Return a checkpoint, its digest as it should be, with its values, its arrays or its version changed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.gguf"
        path.write_bytes(content)
        values, arrays = load_checkpoint(path)
        if rng.random() < 0.7:
            values = json.loads(damage_json(rng, json.dumps(values)))
        else:
            name = rng.choice(sorted(arrays))
            array = arrays[name]
            flipped = array.copy()
            if flipped.size:
                flipped.view(np.uint8).flat[rng.randrange(flipped.nbytes)] ^= 1 << rng.randrange(8)
            arrays |= {
                rng.choice([name, name, "other"]): rng.choice(
                    [flipped, array[:-1], array.astype(np.float64), array.view(np.int32), array.reshape(1, -1)]
                )
            }
            if rng.random() < 0.2:
                del arrays[name]
        save_checkpoint(path, values, arrays)
        return path.read_bytes()

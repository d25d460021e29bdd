"""Damaged files against every reader: `python -m tests.formats.fuzz 100000 [SEED]`.

Each round takes a good file, damages it (bytes, numbers, lengths, cuts, repeats) and opens it as everything that it
could be. Whatever is not a result or a LlamacyError of one line is a failure: the file is kept and the round printed,
so that `python -m tests.formats.fuzz 1 SEED:ROUND` repeats it. The process may take 100 MB more than it has at the
start: an allocation of another order than the file's few kilobytes is a MemoryError; no round may take ten seconds.
"""

import faulthandler
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from llamacy.cli.info import describe, report_lines
from llamacy.errors import LlamacyError
from llamacy.formats.adapter import Adapter, LoraPair, load_adapter, save_adapter
from llamacy.formats.model_file import open_model
from tests.formats.build import Gguf, every_value, legacy

SECONDS = 10
ADDRESSES = 100 << 20
NUMBERS = [0, 1, 2, 3, 4, 5, 31, 32, 33, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
NUMBERS += [2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1]


def gguf_sample(version):
    file = Gguf(version)
    every_value(file)
    file.key("general.architecture", 8, "llama").key("general.alignment", 4, 32)
    file.tensor("a", (32, 3), 2, bytes(range(54))).tensor("b", (5,), 0, bytes(20)).tensor("c", (), 1, b"ab")
    return file.bytes()


def adapter_sample(folder, format):
    """Return name -> bytes of a small adapter's files."""
    rng = np.random.default_rng(0)
    pairs = {}
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight", "token_embd.weight"):
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8), (8, 2)))
        pairs[name] = LoraPair(a, b, 2.0)
    norms = {"output_norm.weight": np.ones(8, np.float32)} if format == "ggla" else {}
    metadata = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 2}
    path = folder / format
    save_adapter(path, Adapter("llama", pairs, 4.0, metadata, norms=norms), format)
    return {p.name: p.read_bytes() for p in (path.iterdir() if path.is_dir() else [path])}


def samples(folder):
    """Return a list of dicts file name -> bytes: one good file (or folder) of each kind."""
    found = [{"m.gguf": gguf_sample(version)} for version in (1, 2, 3)]
    found += [{"m.bin": legacy(*kind)[0]} for kind in (("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 3))]
    # As a matrix type that older versions convert.
    zeros = lambda size: lambda values: bytes(values.size // 32 * size)  # noqa: E731
    found += [{"m.bin": legacy("ggjt", 1, 3, zeros(24))[0]}, {"m.bin": legacy("ggjt", 2, 8, zeros(36))[0]}]
    found += [adapter_sample(folder, format) for format in ("gguf", "ggla", "peft", "mlx")]
    return found


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
    """Return JSON text with one value exchanged for another kind of value."""
    found = json.loads(content)
    holders = [found] + [value for value in found.values() if isinstance(value, dict)]
    holder = rng.choice([holder for holder in holders if holder])
    strange = [None, True, -1, 0, 1e308, 2**70, "x", "", [], {}, [[]], "\0", {"a": {}}, ["a", 1], float("nan"), 3]
    holder[rng.choice(list(holder))] = rng.choice(strange)
    return json.dumps(found).encode()


def read_everything(path):
    """Open `path` as a model, an adapter and for bin/info, and touch all of what is found."""
    results = [_outcome(task, path) for task in (_as_model, _as_adapter, _as_info)]
    return "ok" if "ok" in results else "refused"


def _outcome(task, path):
    try:
        task(path)
    except LlamacyError as error:
        message = str(error)
        assert message and message.isprintable(), f"not one printable line: {message!r}"
        assert len(message) < 2000, f"{len(message)} characters: {message[:200]!r}"
        return "refused"
    return "ok"


def _as_model(path):
    with open_model(path) as model:
        for value in model.metadata.values():
            _touch(value)
        for name, info in model.tensors.items():
            data = model.data(name)
            assert data.shape == (info.n_rows, info.row_bytes) and data.nbytes == info.nbytes
            int(data.sum())


def _touch(value):
    if isinstance(value, np.ndarray):
        value.tobytes()
    elif not isinstance(value, (str, bool, int, float)):
        for item in value:
            _touch(item)


def _as_adapter(path):
    adapter = load_adapter(path)
    if adapter.hf_rows:
        metadata = {"general.architecture": "llama", "llama.attention.head_count": 2}
        adapter = adapter.bound(metadata)
    for pair in adapter.pairs.values():
        assert pair.a.dtype == pair.b.dtype == np.float32
        assert pair.a.shape[0] == pair.b.shape[1] == pair.rank > 0
        assert isinstance(pair.scale, float)


def _as_info(path):
    for line in report_lines(describe(os.fspath(path))):
        assert line.isprintable(), repr(line)


def run(rounds, seed, only=None):
    """Do `rounds` rounds; return how many files were still readable. Raises what should not have been raised."""
    readable = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        kinds = samples(folder)
        for round_ in range(rounds) if only is None else [only]:
            rng = random.Random(f"{seed}:{round_}")
            files = dict(rng.choice(kinds))
            victim = rng.choice(sorted(files))
            as_json = victim.endswith(".json") and rng.random() < 0.7
            files[victim] = (damage_json if as_json else damage)(rng, files[victim])
            place = folder / "x"
            place.mkdir(exist_ok=True)
            for name, content in files.items():
                (place / name).write_bytes(content)
            target = place if len(files) > 1 else place / victim
            signal.alarm(SECONDS)
            try:
                readable += read_everything(target) == "ok"
            except BaseException:
                _keep(files, seed, round_)
                raise
            signal.alarm(0)
            for name in files:
                (place / name).unlink()
    return readable


def _keep(files, seed, round_):
    kept = Path(tempfile.mkdtemp(prefix="llamacy-fuzz-"))
    for name, content in files.items():
        (kept / name).write_bytes(content)
    print(f"fuzz: round {seed}:{round_} failed, its files are in {kept}", file=sys.stderr)


def _too_long(*_):
    raise TimeoutError(f"a file took more than {SECONDS} seconds")


def _limit_memory():
    """Let the process have ADDRESSES bytes of addresses more than now, where the system tells how many it has."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESSES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main(argv):
    """Run as a command: rounds, then a seed or SEED:ROUND."""
    rounds = int(argv[0]) if argv else 1000
    seed, _, only = (argv[1] if len(argv) > 1 else "1").partition(":")
    faulthandler.enable()
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, _too_long)
    _limit_memory()
    start = time.monotonic()
    readable = run(rounds, seed, int(only) if only else None)
    print(f"fuzz: {rounds} damaged files, {readable} still readable, no failure, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

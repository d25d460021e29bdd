"""Damaged files against every reader: `python -m tests.formats.fuzz 100000 [SEED]`.

Each round takes a good file, damages it (bytes, numbers, lengths, cuts, repeats) and opens it as everything that it
could be: a model (also run for one token), an adapter, a Hugging Face folder to convert, a vocabulary, a file for
bin/info. Whatever is not a result or a LlamacyError of one line is a failure: the file is kept and the round printed,
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
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.hf_folder import HfFolder, is_model_folder
from llamacy.formats.imatrix import read_imatrix
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.model.from_hf import model_from_hf
from llamacy.text.tokenizer import Tokenizer
from tests.formats.build import Gguf, every_value, legacy
from tests.model import hf
from tests.model.tiny import write_llama
from tests.text import hf_files

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
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight", "token_embd.weight", "output.weight"):
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8), (8, 2)))
        pairs[name] = LoraPair(a, b, 2.0)
    norms = {"output_norm.weight": np.ones(8, np.float32)} if format == "ggla" else {}
    metadata = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 2}
    path = folder / format
    save_adapter(path, Adapter("llama", pairs, 4.0, metadata, norms=norms), format)
    return {p.name: p.read_bytes() for p in (path.iterdir() if path.is_dir() else [path])}


TINY = twin.Config(n_vocab=97, n_embd=16, n_head=2, n_head_kv=1, n_ff=32, n_layer=1)


def hf_samples(folder):
    """Two small Hugging Face folders: a byte-level tokenizer.json and two shards; a tokenizer.model."""
    weights = twin.random_weights(TINY, 1)
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    hf.write_folder(folder / "hf1", TINY, weights, "BF16", shards=2, rope_scaling=rope, eos_token_id=[2, 3])
    parsed = hf.tokenizer_json(90) | {"added_tokens": [{"id": 95, "content": "<end>", "special": True}]}
    parsed["model"] |= {"merges": [["\u0100", "\u0101"]], "ignore_merges": True}
    parsed["pre_tokenizer"] = hf_files.PRE_TOKENIZERS["llama-bpe"]
    settings = {"eos_token": {"content": "<end>"}, "chat_template": [{"name": "default", "template": "x"}]}
    settings["added_tokens_decoder"] = {"95": {"content": "<end>", "special": True}}
    (folder / "hf1" / "tokenizer.json").write_text(json.dumps(parsed))
    (folder / "hf1" / "tokenizer_config.json").write_text(json.dumps(settings))
    hf.write_folder(folder / "hf2", TINY, weights)
    (folder / "hf2" / "tokenizer.json").unlink()
    words = {"tokens": ["<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "b", "ab"], "scores": [-i for i in range(8)]}
    words = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    words["tokenizer.ggml.token_type"] = [2, 3, 3, 6, 1, 1, 1, 1]
    (folder / "hf2" / "tokenizer.model").write_bytes(hf_files.sentencepiece(words))
    return [{p.name: p.read_bytes() for p in (folder / name).iterdir()} for name in ("hf1", "hf2")]


def model_samples(folder):
    """A small llama that runs, a split one, a vocabulary with merges, and an importance matrix."""
    path = folder / "llama.gguf"
    write_llama(path, TINY, twin.random_weights(TINY, 1), lambda name: "Q8_0" if "ffn_down" in name else "F16")
    with open_model(path) as model:
        tensors = [(t.name, t.type, t.shape, model.data(t.name)) for t in model.tensors.values()]
        types = model.value_types | {"split.no": "u16", "split.count": "u16"}
        about = {"split.count": 2, "split.tensors.count": len(tensors)}
        split = [f"m-0000{i + 1}-of-00002.gguf" for i in range(2)]
        for i, name in enumerate(split):
            metadata = (model.metadata if i == 0 else {}) | about | {"split.no": i}
            write_gguf(folder / name, metadata, tensors[i::2], types)
    merged = {"model": "gpt2", "pre": "llama-bpe", "merges": ["a b", "ab c"], "token_type": [1, 1, 1, 1, 1, 3]}
    merged |= {"tokens": ["a", "b", "ab", "c", "abc", "<end>"]}
    write_gguf(folder / "v.gguf", {f"tokenizer.ggml.{key}": value for key, value in merged.items()}, [])
    sums, counts = np.arange(12, dtype=np.float32).reshape(2, 6), np.array([[3], [0]], np.float32)
    entries = [(f"a.weight.{end}", by_name("F32"), x.shape, x) for end, x in (("in_sum2", sums), ("counts", counts))]
    write_gguf(folder / "i.gguf", {"general.type": "imatrix", "imatrix.chunk_count": 1}, entries)
    found = [{name: (folder / name).read_bytes()} for name in ("llama.gguf", "v.gguf", "i.gguf")]
    return [*found, {name: (folder / name).read_bytes() for name in split}]


def samples(folder):
    """Return a list of dicts file name -> bytes: one good file (or folder) of each kind."""
    found = [{"m.gguf": gguf_sample(version)} for version in (1, 2, 3)]
    found += [{"m.bin": legacy(*kind)[0]} for kind in (("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 3))]
    # As a matrix type that older versions convert.
    zeros = lambda size: lambda values: bytes(values.size // 32 * size)  # noqa: E731
    found += [{"m.bin": legacy("ggjt", 1, 3, zeros(24))[0]}, {"m.bin": legacy("ggjt", 2, 8, zeros(36))[0]}]
    found += [adapter_sample(folder, format) for format in ("gguf", "ggla", "peft", "mlx")]
    return found + model_samples(folder) + hf_samples(folder)


def target_of(place, files):
    """Return the path to open of `files` in the folder `place`: a part of a split model stands for all."""
    names = sorted(files)
    return place / names[0] if len(names) == 1 or names[0].startswith("m-") else place


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
    holders, waiting = [], [found]
    while waiting:
        one = waiting.pop()
        inner = one.values() if isinstance(one, dict) else one
        holders += [one] if one else []
        waiting += [value for value in inner if isinstance(value, (dict, list))]
    holder = rng.choice(holders)
    strange = [None, True, -1, 0, 1e308, 2**70, "x", "", [], {}, [[]], "\0", {"a": {}}, ["a", 1], float("nan"), 3]
    holder[rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))] = rng.choice(strange)
    return json.dumps(found).encode()


def read_everything(path):
    """Open `path` as all that it could be and use what is found; "ok" where anything could."""
    results = [_outcome(task, path) for task in ((_as_folder,) if is_model_folder(path) else TASKS)]
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


def _as_running(path):
    """Load the model and run it for one token, on one thread."""
    with open_model(path) as model:
        if "general.architecture" not in model.metadata or model.format != "gguf":
            return
    model = load_model(path, threads=1)
    logits = model.new_session(1, 16).step([0], [0], [0], [0])
    assert logits.shape == (1, model.config.n_vocab)


def _as_words(path):
    with open_model(path) as model, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pre-tokenizers that are not known
        _use(Tokenizer.from_metadata(model.metadata))


def _use(tokenizer):
    ids = tokenizer.encode("abc \u2581ab<end>\n123 \U0001f642")
    assert all(0 <= token < tokenizer.n_vocab for token in ids)
    tokenizer.decode(ids)


def _as_folder(path):
    with HfFolder(path) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        metadata, tensors, _ = model_from_hf(folder)
        for name, quant_type, shape, data in tensors:
            content = data() if callable(data) else data
            assert content.nbytes == quant_type.row_bytes(int(np.prod(shape))), name
        for key, value in metadata.items():
            assert isinstance(key, str)
            _touch(value)
        _use(Tokenizer.from_metadata(metadata))


def _as_imatrix(path):
    for values in read_imatrix(path).columns.values():
        assert values.dtype == np.float32 and values.ndim == 2 and (values >= 0).all()


def _as_info(path):
    for line in report_lines(describe(os.fspath(path))):
        assert line.isprintable(), repr(line)


TASKS = (_as_model, _as_running, _as_words, _as_imatrix, _as_adapter, _as_info)


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
            target = target_of(place, files)
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

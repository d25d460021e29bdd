"""One good file, or folder of files, of each kind that the package reads: what make fuzz damages."""

import io
import json
from typing import NamedTuple

import numpy as np

from llamacy.formats.adapter import Adapter, LoraPair, save_adapter
from llamacy.formats.arrays import float_tensor
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.mapped import MappedFile
from llamacy.formats.model_file import open_model
from llamacy.formats.safetensors import read_safetensors, write_safetensors
from llamacy.formats.types import by_name
from llamacy.kernels.reference import model as twin
from llamacy.train.loop import Run
from llamacy.train.options import TrainOptions
from llamacy.train.outputs import Outputs
from llamacy.train.progress import Progress
from llamacy.train.samples import Sample
from tests.formats.build import Gguf, every_value, legacy
from tests.formats.fuzz_damage import damage, damage_checkpoint, damage_header, damage_json, damage_words
from tests.model import hf
from tests.model.tiny import write_dat, write_llama
from tests.text import hf_files
from tests.train.fakes import FakeTrainer

TINY = twin.Config(n_vocab=97, n_embd=16, n_head=2, n_head_kv=1, n_ff=32, n_layer=1)
TEMPLATES = [
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "{{- bos_token }}{%- if tools is not none %}{{ tools | tojson }}{%- endif %}{%- set ns = namespace(n=0) %}"
    "{%- for message in messages if message.role != 'system' %}{%- set ns.n = ns.n + 1 %}{%- if loop.index0 % 2 %}"
    "{{ message.content | trim }}{{ eos_token }}{%- else %}{{ '[INST] ' ~ message['content'] ~ ' [/INST]' }}"
    "{%- endif %}{%- endfor %}{%- macro f(a, b=1) %}{{ a * b }}{%- endmacro %}{{ f('x', 3) }}",
]


class Kind(NamedTuple):
    """Good files by name, for those to damage the ways of doing it, each as likely, and the tasks that can use them."""

    files: dict
    ways: dict
    tasks: tuple


def samples(folder):
    """Return the Kinds; `folder` also gets base.gguf, the model that the adapters fit."""
    write_llama(folder / "base.gguf", TINY, twin.random_weights(TINY, 1))
    found = [gguf_sample(version) for version in (1, 2, 3)]
    found += [legacy(*kind)[0] for kind in (("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 3))]
    # As a matrix type that older versions convert.
    zeros = lambda size: lambda values: bytes(values.size // 32 * size)  # noqa: E731
    found += [legacy("ggjt", 1, 3, zeros(24))[0], legacy("ggjt", 2, 8, zeros(36))[0]]
    kinds = [Kind({"m.gguf": content}, {}, ("model",)) for content in found[:3]]
    kinds += [Kind({"m.bin": content}, {}, ("model", "running", "words")) for content in found[3:]]
    kinds += [adapter_sample(folder, format) for format in ("gguf", "ggla", "peft", "mlx")]
    kinds += [peft_with_base(folder), *model_samples(folder), *hf_samples(folder), checkpoint_sample(folder)]
    kinds += [
        Kind({"t.jinja": template.encode()}, {"t.jinja": [damage_words]}, ("template",)) for template in TEMPLATES
    ]
    return [kind._replace(ways=kind.ways or default_ways(kind.files)) for kind in kinds]


def default_ways(files):
    """Bytes of any file; values of JSON, headers of safetensors."""
    ways = {name: [damage] for name in files}
    ways |= {name: [damage, damage_json, damage_json] for name in files if name.endswith(".json")}
    return ways | {name: [damage, damage_header] for name in files if name.endswith(".safetensors")}


def gguf_sample(version):
    file = Gguf(version)
    every_value(file)
    file.key("general.architecture", 8, "llama").key("general.alignment", 4, 32)
    file.tensor("a", (32, 3), 2, bytes(range(54))).tensor("b", (5,), 0, bytes(20)).tensor("c", (), 1, b"ab")
    return file.bytes()


def contents(path):
    """Return name -> bytes of a file or of all in a folder."""
    return {p.name: p.read_bytes() for p in (path.iterdir() if path.is_dir() else [path])}


def small_adapter(norms=False):
    """Pairs on some of base.gguf's matrices."""
    rng, pairs = np.random.default_rng(0), {}
    shapes = {"blk.0.attn_q": (16, 16), "blk.0.ffn_up": (32, 16), "token_embd": (97, 16), "output": (97, 16)}
    for name, (n_out, n_in) in shapes.items():
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, n_in), (n_out, 2)))
        pairs[f"{name}.weight"] = LoraPair(a, b, 2.0)
    metadata = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1}
    return Adapter(
        "llama", pairs, 4.0, metadata, norms={"output_norm.weight": np.ones(16, np.float32)} if norms else {}
    )


def adapter_sample(folder, format):
    save_adapter(folder / format, small_adapter(norms=format == "ggla"), format)
    return Kind(contents(folder / format), {}, ("adapter", "info"))


def peft_with_base(folder):
    """A PEFT folder as PEFT itself writes it: base tensors beside the pairs, many settings."""
    path = folder / "peft-base"
    save_adapter(path, small_adapter(), "peft")
    with read_safetensors(MappedFile(path / "adapter_model.safetensors")) as file:
        tensors = {name: float_tensor(file, name) for name in file.tensors}
    weights = twin.random_weights(TINY, 1)
    for ours, theirs in (("token_embd", "model.embed_tokens"), ("output", "lm_head")):
        tensors[f"base_model.model.{theirs}.base_layer.weight"] = weights[f"{ours}.weight"].astype(np.float32)
    tensors["base_model.model.model.norm.weight"] = weights["output_norm.weight"].astype(np.float32)
    write_safetensors(path / "adapter_model.safetensors", tensors, {"format": "pt"})
    config = json.loads((path / "adapter_config.json").read_text())
    config |= {"alpha_pattern": {"q_proj": 3, r"layers\.\d+\.mlp\.(up|down)_proj": 5}, "use_rslora": True}
    config |= {"modules_to_save": ["norm"], "trainable_token_indices": None, "loftq_config": {}}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return Kind(contents(path), {}, ("adapter", "info"))


def hf_samples(folder):
    """Hugging Face folders: two shards and a byte-level tokenizer.json, a tokenizer.model, a tokenizer.json like it."""
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
    hf.write_folder(folder / "hf3", TINY, weights)
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x41>": 3, "\u2581": 4, "a": 5, "b": 6, "\u2581a": 7, "ab": 8}
    pieces |= {chr(0x4E00 + i): i for i in range(9, 90)}
    parsed = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence"},
    }
    parsed["model"] = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True, "vocab": pieces,
                       "merges": ["\u2581 a", "a b"]}  # fmt: skip
    parsed["added_tokens"] = [
        {"id": i, "content": f"<{'us'[i:]}>"[:3] if i else "<unk>", "special": True} for i in range(2)
    ]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    parsed["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, spaces]}
    (folder / "hf3" / "tokenizer.json").write_text(json.dumps(parsed))
    first, second, third = (contents(folder / name) for name in ("hf1", "hf2", "hf3"))
    tokenizer = {name: [damage, damage_json, damage_json] for name in ("tokenizer.json", "tokenizer_config.json")}
    kinds = [(first, {}), (first, tokenizer), (second, {}), (third, {"tokenizer.json": tokenizer["tokenizer.json"]})]
    return [Kind(files, ways, ("folder",)) for files, ways in kinds]


def model_samples(folder):
    """A small llama that runs, a split one, a vocabulary with merges and a template, and an importance matrix."""
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
    merged |= {"tokens": ["a", "b", "ab", "c", "abc", "<end>"], "eos_token_id": 5}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in merged.items()}
    write_gguf(folder / "v.gguf", metadata | {"tokenizer.chat_template": TEMPLATES[0]}, [])
    sums, counts = np.arange(12, dtype=np.float32).reshape(2, 6), np.array([[3], [0]], np.float32)
    entries = [(f"a.weight.{end}", by_name("F32"), x.shape, x) for end, x in (("in_sum2", sums), ("counts", counts))]
    write_gguf(folder / "i.gguf", {"general.type": "imatrix", "imatrix.chunk_count": 1}, entries)
    runs = ("model", "running", "words", "info")
    tasks = {"llama.gguf": runs, "v.gguf": ("model", "words"), "i.gguf": ("model", "imatrix")}
    write_dat(folder / "i.dat", {"a.weight": (3, [1.0, 2.0, 0.5]), "b.weight": (0, [4.0])}, "data", 3)
    tasks["i.dat"] = ("imatrix",)
    found = [Kind({name: (folder / name).read_bytes()}, {}, tasks[name]) for name in tasks]
    return [*found, Kind({name: (folder / name).read_bytes() for name in split}, {}, runs)]


def checkpoint_run(folder):
    """A Run of 4 steps with two measurements, whose checkpoint is folder/checkpoint.gguf."""
    data = [Sample(np.arange(i, i + 6, dtype=np.int32), np.arange(6) > 2) for i in range(4)]
    options = TrainOptions(epochs=1, eval_every=2, learning_rate=0.5)
    outputs = Outputs(outdir=str(folder), checkpoint_out=str(folder / "checkpoint.gguf"))
    progress = Progress(1, stream=io.StringIO(), terminal=False)
    return Run(FakeTrainer(), data, options, outputs, progress, ids={"validation": 3}, validation=data[:2])


def checkpoint_sample(folder):
    checkpoint_run(folder).go()
    content = (folder / "checkpoint.gguf").read_bytes()
    return Kind(
        {"c.gguf": content},
        {"c.gguf": [damage, damage_checkpoint, damage_checkpoint, damage_checkpoint]},
        ("checkpoint",),
    )

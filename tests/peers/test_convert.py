"""bin/convert beside the others: transformers writes a random llama, llama.cpp converts it too, llama.cpp loads ours.

The vocabularies are real ones, for llama.cpp's converter knows a pre-tokenizer only by the ids of a known text.
"""

import json
import lzma
from pathlib import Path

import gguf
import numpy as np
import pytest

from llamacy.cli import convert
from llamacy.cli.run import run
from llamacy.formats.model_file import open_model
from llamacy.formats.strings import StringArray
from llamacy.model import load_model
from tests.text import hf_files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
DATA = Path(__file__).resolve().parents[1] / "data"
TOKENS = np.random.default_rng(1).integers(3, 30000, 24)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
# name -> (vocabulary, change of LlamaConfig, dtype, size of a shard)
MODELS = {
    "tied gpt-2": ("gpt-2", {"tie_word_embeddings": True}, "float32", "5GB"),
    "sharded bf16": ("gpt-2", {}, "bfloat16", "4MB"),
    "llama 3": ("llama-bpe", {"rope_parameters": LLAMA3}, "float32", "5GB"),
    "linear, biases, f16": (
        "llama-spm",
        {
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            "attention_bias": True,
            "head_dim": 32,
        },
        "float16",
        "5GB",
    ),
}


def vocabulary(name, folder):
    path = folder / f"{name}.gguf"
    path.write_bytes(lzma.decompress((DATA / "tokenizers" / f"{name}.gguf.xz").read_bytes()))
    return open_model(path).metadata


def write_tokenizer(folder, name, metadata):
    bos = {"llama-bpe": "<|begin_of_text|>", "llama-spm": "<s>"}.get(name)
    eos = metadata["tokenizer.ggml.tokens"][int(metadata["tokenizer.ggml.eos_token_id"])]
    parsed = hf_files.spaced(metadata) if name == "llama-spm" else hf_files.byte_level(metadata, name, bos=bos)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "chat_template": "{{ bos_token }}x"}
    settings |= {"bos_token": bos} if bos else {}
    if name == "llama-spm":
        settings |= {"unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer.json").write_text(json.dumps(parsed), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """(folder that transformers wrote, its logits of TOKENS in f32)."""
    name, change, dtype, shard = MODELS[request.param]
    folder = tmp_path_factory.mktemp("hf")
    metadata = vocabulary(name, folder)
    settings = transformers.LlamaConfig(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=512,
        initializer_range=0.2, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
        **({"tie_word_embeddings": False} | change),
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(settings).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms of 1 and biases of 0 would hide mistakes
                parameter += torch.rand_like(parameter) * 0.5
    model.save_pretrained(folder / "model", max_shard_size=shard)
    write_tokenizer(folder / "model", name, metadata)
    # read anew: a model turned into bf16 has rounded its rotary frequencies too
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor(TOKENS)[None]).logits[0].numpy()
    return folder / "model", logits


@pytest.fixture(scope="module")
def ours(saved):
    out = saved[0].parent / "ours.gguf"
    assert run(convert.main, [str(saved[0]), str(out)]) == 0
    return out


def test_logits_are_transformers_own(saved, ours):
    n = np.arange(len(TOKENS))
    model = load_model(ours, activations="f32", threads=2)
    found = model.new_session(1, 64).step(TOKENS, n, np.zeros(len(n), int), n)
    np.testing.assert_allclose(found, saved[1], rtol=0, atol=3e-5 * np.abs(saved[1]).max())


def test_llama_cpp_loads_it(saved, ours):
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(model_path=str(ours), n_ctx=64, logits_all=True, verbose=False)
    llama.eval([int(token) for token in TOKENS])
    found = np.array(llama.scores[: len(TOKENS)])
    # its KV cache is f16, and f16 and bf16 matrices meet rounded inputs
    np.testing.assert_allclose(found, saved[1], rtol=0, atol=0.02 * np.abs(saved[1]).max())


# Ours alone writes the first, llama.cpp's converter alone the others: of a folder's name and of its own making. Scores
# are ranks here and one constant there; <unk> is unknown here and control there.
ONLY_OURS = {"tokenizer.ggml.add_space_prefix", "tokenizer.ggml.unknown_token_id"}
OTHERWISE = {"tokenizer.ggml.scores", "tokenizer.ggml.token_type", "general.name"}


def test_llama_cpp_s_converter_writes_the_same(saved, ours, run_converter, tmp_path):
    outtype = {"F32": "f32", "F16": "f16", "BF16": "bf16"}[open_model(ours).tensors["blk.0.attn_q.weight"].type.name]
    with open_model(run_converter(saved[0], tmp_path / "theirs.gguf", outtype)) as theirs, open_model(ours) as found:
        assert set(found.tensors) == set(theirs.tensors)
        for name, info in theirs.tensors.items():
            assert info.type is found.tensors[name].type and info.shape == found.tensors[name].shape, name
            wanted = theirs.data(name)
            if name == "rope_freqs.weight":
                np.testing.assert_allclose(found.data(name).view(np.float32), wanted.view(np.float32), rtol=1e-5)
            else:
                np.testing.assert_array_equal(found.data(name), wanted, name)
        spaced = theirs.metadata["tokenizer.ggml.model"] == "llama"
        for key, value in theirs.metadata.items():
            if key.startswith("general.") and key not in found.metadata or (spaced and key in OTHERWISE):
                continue
            ours_is = found.metadata.get(key)
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(ours_is, value, key)
            elif key not in OTHERWISE:
                assert ours_is == (pytest.approx(value) if isinstance(value, float) else value), key
        more = set(found.metadata) - set(theirs.metadata)
        assert more <= (ONLY_OURS if spaced else set()), more
        assert isinstance(found.metadata["tokenizer.ggml.tokens"], StringArray)


def test_tokens_are_transformers_own(saved, ours):
    theirs = transformers.AutoTokenizer.from_pretrained(saved[0])
    found = load_model(ours).tokenizer
    for text in ("Hello, world! 12345 'tis", "  Gr\xf6\xdfe\n\n \u6f22\u5b57 \U0001f642"):
        assert found.encode(text, add_special=False) == theirs.encode(text, add_special_tokens=False)
    reader = gguf.GGUFReader(ours)
    assert reader.get_field("tokenizer.chat_template").contents() == theirs.chat_template

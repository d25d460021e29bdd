"""Tokenizers of Hugging Face folders: recorded vocabularies go there by hand and come back as GGUF."""

import json

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.hf_folder import HfFolder
from llamacy.formats.model_file import open_model
from llamacy.text.hf_tokenizer import tokenizer_metadata
from llamacy.text.pretokenizer_names import expressions_of
from llamacy.text.pretokenizers import CONTRACTION, GPT2, LLAMA3
from llamacy.text.sentencepiece import read_sentencepiece
from llamacy.text.tokenizer import Tokenizer
from tests.text import hf_files
from tests.text.test_recorded_ids import strings_and_ids


class Folder(HfFolder):
    """A folder of which only the tokenizer is looked at."""

    def __init__(self, path, **files):
        self.path, self.files = str(path), []
        path.mkdir(exist_ok=True)
        for name, content in files.items():
            name = name.replace("__", ".")
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            (path / name).write_bytes(content)


def read(folder, n_vocab, config=None):
    return tokenizer_metadata(folder, n_vocab, config or {})


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("name", "bos"), [("gpt-2", None), ("llama-bpe", "<|begin_of_text|>")])
def test_byte_level_comes_back(tmp_path, vocabulary_file, name, bos, pairs):
    gguf = open_model(vocabulary_file(name)).metadata
    settings = {"eos_token": {"content": gguf["tokenizer.ggml.tokens"][int(gguf["tokenizer.ggml.eos_token_id"])]}}
    settings |= {"bos_token": bos} if bos else {}
    parsed = hf_files.byte_level(gguf, name, bos=bos, pairs=pairs)
    found = read(Folder(tmp_path / "f", tokenizer__json=parsed, tokenizer_config__json=settings),
                 len(gguf["tokenizer.ggml.tokens"]))  # fmt: skip
    for key in ("model", "pre", "eos_token_id"):
        assert found[f"tokenizer.ggml.{key}"] == gguf[f"tokenizer.ggml.{key}"], key
    for key in ("tokens", "merges"):
        assert found[f"tokenizer.ggml.{key}"] == gguf[f"tokenizer.ggml.{key}"], key
    np.testing.assert_array_equal(found["tokenizer.ggml.token_type"], gguf["tokenizer.ggml.token_type"])
    assert found["tokenizer.ggml.add_bos_token"] == (bos is not None) and not found["tokenizer.ggml.add_eos_token"]
    assert found.get("tokenizer.ggml.bos_token_id") == (gguf["tokenizer.ggml.bos_token_id"] if bos else None)


def test_smollm2_by_its_digits(tmp_path, smollm2_metadata):
    parsed = hf_files.byte_level(smollm2_metadata, "smollm")
    found = read(Folder(tmp_path / "f", tokenizer__json=parsed), 49152)
    assert found["tokenizer.ggml.pre"] == "smollm"
    assert found["tokenizer.ggml.tokens"] == smollm2_metadata["tokenizer.ggml.tokens"]


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_sentencepiece_gives_every_recorded_id(tmp_path, vocabulary_file, data, kind):
    gguf = open_model(vocabulary_file("llama-spm")).metadata
    content = hf_files.sentencepiece(gguf) if kind == "tokenizer.model" else hf_files.spaced(gguf)
    found = read(Folder(tmp_path / "f", **{kind.replace(".", "__"): content}), 32000)
    assert found["tokenizer.ggml.tokens"] == gguf["tokenizer.ggml.tokens"]
    np.testing.assert_array_equal(found["tokenizer.ggml.token_type"], gguf["tokenizer.ggml.token_type"])
    if kind == "tokenizer.model":
        np.testing.assert_array_equal(found["tokenizer.ggml.scores"], gguf["tokenizer.ggml.scores"])
        assert [found[f"tokenizer.ggml.{name}_token_id"] for name in ("unknown", "bos", "eos")] == [0, 1, 2]
    assert found["tokenizer.ggml.add_space_prefix"] is True
    tokenizer = Tokenizer.from_metadata(found)
    for text, ids in strings_and_ids(data / "tokenizers", "llama-spm"):
        assert tokenizer.encode(text, add_special=False) == ids, text


SMALL = {
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "b", "ab", "\u2581ab"],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1],
    "tokenizer.ggml.scores": [0, 0, 0, 0, -3, -4, -5, -1, -2],
}
CHARS = {chr(code): code - 0x21 for code in range(0x21, 0x7F)}


def small_json(**change):
    """A byte-level tokenizer of the printable characters, one merge and two added tokens."""
    vocabulary = CHARS | {"ab": 94}
    parsed = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]},
        "added_tokens": [
            {"id": 95, "content": "<end>", "special": True},
            {"id": 96, "content": "<|seems|>", "special": False},
            {"id": 97, "content": "\u2581user", "special": False},
        ],
        "pre_tokenizer": hf_files.BYTE_LEVEL,
    }
    return parsed | change


def test_kinds_and_padding(tmp_path):
    found = read(Folder(tmp_path / "f", tokenizer__json=small_json()), 100)
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"].tolist()
    assert [tokens[i] for i in (0, 94, 95, 96, 97, 98, 99)] == (
        ["!", "ab", "<end>", "<|seems|>", " user", "[PAD98]", "[PAD99]"]
    )
    assert [types[i] for i in (0, 94, 95, 96, 97, 98, 99)] == [1, 1, 3, 3, 4, 5, 5]


def test_special_tokens_by_name_then_by_number(tmp_path):
    settings = {"eos_token": {"content": "<end>"}, "pad_token": "nowhere", "add_bos_token": True}
    folder = Folder(tmp_path / "f", tokenizer__json=small_json(), tokenizer_config__json=settings)
    config = {"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 500, "unk_token_id": None}
    found = read(folder, 98, config)
    assert found["tokenizer.ggml.eos_token_id"] == 95 and found["tokenizer.ggml.bos_token_id"] == 3
    assert "tokenizer.ggml.padding_token_id" not in found and "tokenizer.ggml.unknown_token_id" not in found
    assert found["tokenizer.ggml.add_bos_token"] is True and "tokenizer.ggml.add_eos_token" not in found
    assert read(folder, 98, {"eos_token_id": [7, 8], "bos_token_id": [7, 8]})["tokenizer.ggml.bos_token_id"] == 7


def test_special_tokens_of_a_family(tmp_path):
    """GLM-4 ends its turns with <|user|>, phi-2 begins no text with a token; where the vocabulary has them."""
    added = [{"id": 95 + i, "content": text, "special": True} for i, text in enumerate(("<|endoftext|>", "<|user|>"))]
    settings = {"add_bos_token": True, "eos_token": "<|user|>"}
    folder = Folder(tmp_path / "f", tokenizer__json=small_json(added_tokens=added), tokenizer_config__json=settings)
    found = tokenizer_metadata(folder, 98, {"bos_token_id": 3}, "glm4")
    ids = {key: found[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "eot", "unknown")}
    assert ids == {"bos": 95, "eos": 95, "eot": 96, "unknown": 95}
    assert Tokenizer.from_metadata(found).eog_ids == {95, 96}
    assert "tokenizer.ggml.eot_token_id" not in tokenizer_metadata(folder, 98, {}, "gemma")
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert tokenizer_metadata(folder, 98, {"bos_token_id": 3}, "phi2")["tokenizer.ggml.add_bos_token"] is False


TEMPLATES = {
    "text": ({"chat_template": "A"}, {}, {"chat_template": "A"}),
    "a file": ({}, {"chat_template__jinja": b"B"}, {"chat_template": "B"}),
    "JSON": ({}, {"chat_template__json": {"chat_template": "C"}}, {"chat_template": "C"}),
    "the text wins": ({"chat_template": "A"}, {"chat_template__jinja": b"B"}, {"chat_template": "A"}),
    "several": (
        {"chat_template": [{"name": "default", "template": "D"}, {"name": "tool-use", "template": "T"}]},
        {},
        {"chat_template": "D", "chat_template.tool_use": "T", "chat_templates": ["tool_use"]},
    ),
    "none": ({}, {}, {}),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_chat_templates(tmp_path, case):
    settings, files, wanted = TEMPLATES[case]
    folder = Folder(tmp_path / "f", tokenizer__json=small_json(), tokenizer_config__json=settings, **files)
    found = read(folder, 98)
    assert {key[10:]: value for key, value in found.items() if key.startswith("tokenizer.chat")} == wanted


@pytest.mark.parametrize(
    "template",
    [5, True, {"default": "D"}, ["D"], [{"name": "default"}], [{"name": 1, "template": "D"}], [{"template": [1]}]],
)
def test_a_chat_template_that_is_no_text_is_refused_by_name(tmp_path, template):
    for n, (settings, files, place) in enumerate(
        [
            ({"chat_template": template}, {}, "tokenizer_config.json"),
            ({}, {"chat_template__json": {"chat_template": template}}, "chat_template.json"),
        ]
    ):
        folder = Folder(tmp_path / str(n), tokenizer__json=small_json(), tokenizer_config__json=settings, **files)
        with pytest.raises(LlamacyError, match=f"{place}: (a )?chat_template is .*, wanted text or a list of"):
            read(folder, 98)


def test_expressions():
    assert expressions_of(hf_files.PRE_TOKENIZERS["llama-bpe"]) == (LLAMA3,)
    assert expressions_of(hf_files.PRE_TOKENIZERS["smollm"]) == (r"\p{N}", GPT2)
    regex = {"type": "Split", "pattern": {"Regex": "x(?i:'s|'t|'re|'ve|'m|'ll|'d)?"}}
    assert expressions_of(regex) == (f"x{CONTRACTION}?",)
    nested = {"type": "Sequence", "pretokenizers": []}
    for _ in range(300):
        nested = {"type": "Sequence", "pretokenizers": [nested]}
    assert expressions_of(nested) is None
    for strange in (None, 3, [], {}, {"type": "Split"}, {"type": "Sequence"}, {"type": "Whitespace"}):
        assert expressions_of(strange) is None


def test_an_unknown_pre_tokenizer_falls_back_with_a_warning(tmp_path):
    folder = Folder(tmp_path / "f", tokenizer__json=small_json(pre_tokenizer={"type": "Whitespace"}))
    with pytest.warns(UserWarning, match="pre-tokenizer is not known"):
        assert read(folder, 98)["tokenizer.ggml.pre"] == "default"


BAD = {
    "another kind": (small_json(model={"type": "Unigram"}), "'Unigram'; wanted BPE"),
    "no model": (small_json(model=3), "wanted BPE"),
    "an id beyond the model": (
        small_json(added_tokens=[{"id": 98, "content": "x"}]),
        "id 98, wanted 0 to 97",
    ),
    "an id that is none": (small_json(model={"vocab": {"a": "x"}}), "has the id 'x'"),
    "merges a word": (small_json(model={"vocab": {}, "merges": "x"}), "a merge is None"),
    "merges of three": (small_json(model={"vocab": {}, "merges": [["a", "b", "c"]]}), "wanted two texts"),
    "added tokens a table": (small_json(added_tokens={"a": 1}), "its added tokens are no list"),
    "an added token a word": (small_json(added_tokens=[{"id": "x", "content": "y"}]), "an added token is"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_json_is_refused_in_one_line(tmp_path, case):
    parsed, words = BAD[case]
    with pytest.raises(LlamacyError, match=words) as caught:
        read(Folder(tmp_path / "f", tokenizer__json=parsed), 98)
    assert "\n" not in str(caught.value)


def test_sentencepiece_settings_and_damage(tmp_path):
    content = hf_files.sentencepiece(SMALL, prefix=False)
    model = read_sentencepiece(content, "x")
    assert model.pieces[8] == "\u2581ab".encode() and model.scores[8] == -2.0 and model.types[:5] == [2, 3, 3, 6, 1]
    assert model.ids == {"unk": 0, "bos": 1, "eos": 2, "pad": -1} and not model.add_dummy_prefix
    found = read(Folder(tmp_path / "f", tokenizer__model=content, added_tokens__json={"<extra>": 9}), 10)
    assert found["tokenizer.ggml.tokens"][9] == "<extra>" and found["tokenizer.ggml.token_type"][9] == 4
    assert found["tokenizer.ggml.add_space_prefix"] is False
    with pytest.raises(LlamacyError, match="is a unigram model"):
        read(Folder(tmp_path / "u", tokenizer__model=hf_files.sentencepiece(SMALL, model_type=1)), 9)
    for damaged in (content[:-3], content[:20] + b"\xff" * 12 + content[20:], content + b"\x0b"):
        with pytest.raises(LlamacyError, match="damaged SentencePiece model"):
            read_sentencepiece(damaged, "x")
    with pytest.raises(LlamacyError, match="neither tokenizer.json nor tokenizer.model"):
        read(Folder(tmp_path / "n"), 9)

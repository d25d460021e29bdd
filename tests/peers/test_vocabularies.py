"""Tokenizers beside llama.cpp and Hugging Face's tokenizers, chat templates beside transformers and llama.cpp.

LLAMACY_LLAMA_CPP_SOURCE names llama.cpp's source, or the source package of llama-cpp-python (the .tar.gz as it is on
PyPI): its models/ holds more vocabularies with test strings, and templates. Without it, the recorded files do.
"""

import itertools
import lzma
import random
from functools import cache
from pathlib import Path

import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.model_file import open_model
from llamacy.text import chat
from llamacy.text.chat_formats import FORMATS
from llamacy.text.pretokenizers import ROWS, splitter
from llamacy.text.sentencepiece import read_sentencepiece
from llamacy.text.tokenizer import Tokenizer
from tests.text import hf_files

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "data" / "tokenizers"
NAMES = [
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
]
NAMES += ["qwen2", "qwen35", "refact", "starcoder"]
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="session")
def vocabulary(request, tmp_path_factory):
    """A function from a vocabulary's name to its file, from the recorded ones or the source."""
    unpacked = tmp_path_factory.mktemp("recorded")

    @cache
    def find(name):
        packed = RECORDED / f"{name}.gguf.xz"
        if not packed.exists():
            return request.getfixturevalue("source") / f"ggml-vocab-{name}.gguf"
        (unpacked / f"{name}.gguf").write_bytes(lzma.decompress(packed.read_bytes()))
        return unpacked / f"{name}.gguf"

    return find


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpps_test_strings(name, source):
    path = source / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_metadata(open_model(path).metadata)
    lines = Path(f"{path}.out").read_text().splitlines()
    strings = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)[: len(lines)]
    assert len(strings) == len(lines) > 40
    for text, line in zip(strings, lines, strict=True):
        assert tokenizer.encode(text, add_special=False) == [int(token) for token in line.split()], text


def test_a_tokenizer_model_beside_sentencepiece(vocabulary, source):
    """Its own reader takes the file that the tests write, and gives our ids of llama.cpp's strings."""
    sentencepiece = pytest.importorskip("sentencepiece")
    metadata = open_model(vocabulary("llama-spm")).metadata
    content = hf_files.sentencepiece(metadata)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=content), read_sentencepiece(content, "x")
    assert [piece.decode() for piece in ours.pieces] == [theirs.id_to_piece(i) for i in range(theirs.vocab_size())]
    assert ours.scores == [theirs.get_score(i) for i in range(theirs.vocab_size())]
    assert [kind == 6 for kind in ours.types] == [theirs.is_byte(i) for i in range(theirs.vocab_size())]
    assert ours.ids == {"unk": theirs.unk_id(), "bos": theirs.bos_id(), "eos": theirs.eos_id(), "pad": theirs.pad_id()}
    tokenizer = Tokenizer.from_metadata(metadata)
    for text in (source / "ggml-vocab-llama-spm.gguf.inp").read_bytes().decode().split(SEPARATOR)[:-1]:
        assert tokenizer.encode(text, add_special=False) == theirs.encode(text), text


PARTS = [
    *" " * 12,
    *"\n\n\r\t\u00a0\u3000\u2003\x0b\x85",
    *"abcdefgstABCDEZ" * 2,
    *"0123456789'''\"!?.,;:-_()[]{}<>|/\\@#$%&*+=~`",
]
PARTS += [*"éàñßøÅÄöİſªº²½Ⅷ٣४жщъБЮ漢字中文日本語ひらカタ한글안녕ไทยกำहिन्दीবাং", *"\u0301\u200d\u200b\ufe0f\u0300🙂🦙👧"]
PARTS += ["'s", "'LL", "'ve", " '", "  ", "   ", "\n\n", " \n", "▁", "…", "—", "“”", "𝒜", "𝟘", "\ufffd", "\U0010ffff"]
PARTS += ["<s>", "</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>"]


def texts(seed, count):
    """Random texts of a few to a hundred parts that tokenizers treat differently."""
    chance = random.Random(seed)
    return ["".join(chance.choices(PARTS, k=chance.choice([1, 2, 3, 5, 8, 13, 30, 80]))) for _ in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_on_random_text(name, vocabulary):
    llama_cpp = pytest.importorskip("llama_cpp")
    path = vocabulary(name)
    tokenizer = Tokenizer.from_metadata(open_model(path).metadata)
    theirs = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    for text in texts(name, 500):
        if name == "deepseek-llm" and "\u3000" in text:
            continue  # there llama.cpp's std::regex leaves deepseek's tokenizer.json; see test_cutting
        for special in (True, False):
            expected = theirs.tokenize(text.encode(), add_bos=False, special=special)
            assert tokenizer.encode(text, add_special=False, parse_special=special) == expected, ascii(text)
    vocab = theirs._model.vocab
    assert tokenizer.eog_ids == {i for i in range(tokenizer.n_vocab) if llama_cpp.llama_vocab_is_eog(vocab, i)}
    assert tokenizer.add_bos == bool(llama_cpp.llama_vocab_get_add_bos(vocab))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names[0])
def test_cutting(row):
    """Hugging Face's own Split, with the same expressions: the models without test strings too (tekken, gpt-4o)."""
    tokenizers = pytest.importorskip("tokenizers")
    splits = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(one), "isolated") for one in row.expressions]
    theirs, ours = tokenizers.pre_tokenizers.Sequence(splits), splitter(row.expressions)
    for text in texts(row.names[0], 1000):
        expected = [piece for piece, _ in theirs.pre_tokenize_str(text)]
        assert [piece.decode() for piece in ours.split(text.encode())] == expected, ascii(text)


TALKS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\n "}],
    [
        *({"role": "user", "content": "1 < 2?"}, {"role": "assistant", "content": " Yes. "}),
        {"role": "user", "content": "Sûr?"},
    ],
]


def outcome(refusal, function, *args, **how):
    """Return what `function` returns, None where it refuses."""
    try:
        return function(*args, **how)
    except refusal:
        return None


def test_templates_beside_transformers(source):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    compared = 0
    for path in sorted((source / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for talk, opening in itertools.product(TALKS, (True, False)):
            how = {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": opening}
            theirs = outcome(Exception, utils.render_jinja_template, [talk], **how)
            how = {"bos": "<s>", "eos": "</s>", "add_generation_prompt": opening}
            ours = outcome(LlamacyError, chat.render, talk, template, **how)
            assert ours == (theirs and theirs[0][0]), path.name
            compared += ours is not None
    assert compared > 50


# Ours are what the models' makers document, or are no chat format there.
OTHERWISE = {"llama2", "instruct", "alpaca"}


@pytest.mark.parametrize("name", sorted(set(FORMATS) - OTHERWISE))
def test_formats_beside_llama_cpp(name):
    llama_cpp = pytest.importorskip("llama_cpp")
    import ctypes

    talk = [
        *({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}),
        *({"role": "assistant", "content": "Yes."}, {"role": "user", "content": " Sûr? "}),
    ]
    messages = [llama_cpp.llama_chat_message(turn["role"].encode(), turn["content"].encode()) for turn in talk]
    array, buffer = (llama_cpp.llama_chat_message * len(messages))(*messages), ctypes.create_string_buffer(4096)
    for opening in (True, False):
        size = llama_cpp.llama_chat_apply_template(name.encode(), array, len(messages), opening, buffer, len(buffer))
        assert size > 0
        ours = chat.render(talk, name, bos="<s>", eos="</s>", add_generation_prompt=opening)
        assert ours == buffer.raw[:size].decode()

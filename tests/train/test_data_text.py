"""Instruction text, text with sample starts and plain text: what becomes a sample, and what is trained in it."""

import json
import re

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.train.data import Encoder, open_data
from llamacy.train.readers import BLOCK, PlainText
from tests.train.fakes import BOS, EOS, ByteTokenizer, shown

JOKE = ("### Instruction:\n讲一个笑话。\n### Response:\n", "为什么鱼不说话？</s>")
APPLE = ("### Instruction:\n苹果和橙子哪个更甜？\n### Response:\n", "橙子。\n不过也要看品种。</s>")

PLAIN_BLOCKS = """### Instruction:
讲一个笑话。
### Response:
为什么鱼不说话？
### Instruction:
苹果和橙子哪个更甜？
### Response:
橙子。
不过也要看品种。
"""


@pytest.fixture
def load(tmp_path):
    def load_text(text, n_ctx=512, add_bos=False, mask_prompt=True, **options):
        path = tmp_path / "data.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return open_data([path], Encoder(ByteTokenizer(add_bos), n_ctx, mask_prompt), **options)

    return load_text


VARIANTS = {
    "as it is": PLAIN_BLOCKS,
    "tabs": "".join("\t" + line for line in PLAIN_BLOCKS.splitlines(True)),
    "spaces": "".join("    " + line for line in PLAIN_BLOCKS.splitlines(True)),
    "only the answers indented": re.sub("^(?=[为橙不])", "  ", PLAIN_BLOCKS, flags=re.MULTILINE),
    "crlf": PLAIN_BLOCKS.replace("\n", "\r\n"),
    "bom": "\ufeff" + PLAIN_BLOCKS,
    "blank lines": PLAIN_BLOCKS.replace("\n#", "\n\n\n#").replace(":\n", ":\n\n"),
    "no line break at the end": PLAIN_BLOCKS.rstrip(),
    "on one line": PLAIN_BLOCKS.replace(":\n", ": "),
    "full-width colons": PLAIN_BLOCKS.replace(":", "："),
    "no colons": PLAIN_BLOCKS.replace(":", ""),
    "llama.cpp's <s>": PLAIN_BLOCKS.replace("### Instruction", "<s>### Instruction"),
    "end marks": PLAIN_BLOCKS.replace("说话？\n", "说话？\n### End\n"),
    "a remark first": "# two questions\n\n" + PLAIN_BLOCKS,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_instruction_text_in_every_spacing_gives_the_same_samples(load, name):
    data = load(VARIANTS[name])
    assert [shown(data[i]) for i in range(len(data))] == [JOKE, APPLE]
    assert data.templates == ["instruct"]


def test_an_input_stands_between_instruction_and_response(load):
    first = "### Instruction:\nAdd.\n### Input:\n2 and 3\n### Response:\n5\n"
    data = load(first + "### Instruction:\nHi\n### Input:\n\n### Response:\nYo")
    assert shown(data[0])[0] == "### Instruction:\nAdd.\n### Input:\n2 and 3\n### Response:\n"
    assert shown(data[1])[0] == "### Instruction:\nHi\n### Response:\n"


def test_an_answer_keeps_its_shape_and_its_own_headings(load):
    answer = "def f():\n    return 1\n\n### Input:\nis a heading of the answer"
    data = load("\t### Instruction:\n\tCode?\n\t### Response:\n\t" + answer.replace("\n", "\n\t"))
    assert shown(data[0])[1] == answer + "</s>"


def test_a_repeated_preamble_is_part_of_every_prompt(load):
    blocks = PLAIN_BLOCKS.replace("### Instruction", "Below is a task.\n\n### Instruction")
    data = load(blocks)
    assert [shown(data[i]) for i in range(2)] == [(f"Below is a task.\n\n{p}", a) for p, a in (JOKE, APPLE)]


def test_bos_comes_first_where_the_model_adds_it_and_once(load):
    assert load(PLAIN_BLOCKS, add_bos=True)[0].ids[:2].tolist() == [BOS, ord("#")]
    assert load("<s>hello", add_bos=True)[0].ids.tolist() == [BOS, *b"hello"]
    for begin in ("", "<s>"):
        sample = load(json.dumps({"prompt": f"{begin}hello", "completion": "you"}), add_bos=True)[0]
        assert sample.ids.tolist() == [BOS, *b"helloyou", EOS]


def test_the_first_token_is_never_trained_and_the_rest_is_with_the_prompt(load):
    sample = load(PLAIN_BLOCKS, mask_prompt=False)[0]
    assert not sample.trained[0] and sample.trained[1:].all()
    assert sample.ids.dtype == np.int32 and sample.trained.dtype == np.bool_


def test_long_samples_are_cut_and_counted_and_those_without_answer_skipped(load):
    room = len(JOKE[0].encode()) + 5
    data = load(PLAIN_BLOCKS + "### Instruction:\nnothing\n### Response:\n\n", n_ctx=room)
    assert (len(data), data.n_cut, data.n_skipped) == (1, 1, 2)
    assert data[0].ids.tolist() == [*JOKE[0].encode(), *JOKE[1].encode()[:5]]
    assert data[0].n_trained == 5
    report = "\n".join(data.report())
    assert "1 sample longer than the context" in report and "2 samples skipped" in report and "data.txt:5" in report


def test_a_sample_that_just_fits_is_not_cut(load):
    lengths = [len(ByteTokenizer().encode("".join(pieces))) for pieces in (JOKE, APPLE)]
    for n_ctx, n_cut in ((max(lengths), 0), (max(lengths) - 1, 1)):
        data = load(PLAIN_BLOCKS, n_ctx=n_ctx)
        assert [len(data[i].ids) for i in range(2)] == [min(length, n_ctx) for length in lengths]
        assert data.n_cut == n_cut


def test_plain_text_becomes_windows_side_by_side(load):
    text = "".join(f"line {i}\n" for i in range(20))
    n = len(text)
    without, with_bos = load(text, n_ctx=50), load(text, n_ctx=50, add_bos=True)
    assert len(without) == -(-n // 50) and len(with_bos) == -(-n // 49)
    assert b"".join(bytes(without[i].ids.tolist()) for i in range(len(without))) == text.encode()
    for sample in (with_bos[i] for i in range(len(with_bos))):
        assert sample.ids[0] == BOS and sample.trained[1:].all() and not sample.trained[0]
    assert b"".join(bytes(with_bos[i].ids.tolist()[1:]) for i in range(len(with_bos))) == text.encode()


def test_a_last_window_of_one_token_is_dropped(load):
    assert [len(load("x" * n, n_ctx=10)) for n in (2, 10, 11, 12)] == [1, 1, 1, 2]
    assert [len(load("x" * n, n_ctx=10, add_bos=True)) for n in (1, 9, 10)] == [1, 1, 2]


def test_plain_text_longer_than_a_block_is_cut_only_where_nothing_joins(tmp_path):
    path = tmp_path / "long.txt"
    text = ("Some words, and more.\r\nA line ends\r\n\r\n中文一行。\r\n" * (BLOCK // 20)).encode()
    path.write_bytes(text)
    with open(path, "rb") as file:
        blocks = list(PlainText(path).blocks(file))
    assert len(blocks) > 3 and "".join(blocks) == text.decode().replace("\r\n", "\n")
    for before, block in zip(blocks[:-2], blocks[1:-1], strict=True):
        assert before.endswith("ends") and block.startswith("\n")


def test_text_without_letters_or_line_breaks_still_passes(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("中" * BLOCK, encoding="utf-8")
    with open(path, "rb") as file:
        assert "".join(PlainText(path).blocks(file)) == "中" * BLOCK


def test_sample_starts_divide_text(load):
    text = "title\n<SFT>one\r\nline\n<SFT> two <SFT>three"
    data = load(text, sample_start="<SFT>")
    assert [shown(data[i])[1] for i in range(3)] == ["ne\nline</s>", "wo</s>", "hree</s>"]
    data = load(text, sample_start="<SFT>", include_sample_start=True, add_bos=True)
    assert shown(data[1]) == ("<s>", "<SFT> two</s>")


@pytest.mark.parametrize("shift", range(9))
def test_sample_starts_are_found_across_blocks(load, shift):
    first = "@@@\n" + "x" * (BLOCK - 8 + shift)
    data = load(first + "\n@@@\nyes\n@@@\nno\n", sample_start="@@@\n", n_ctx=8)
    assert len(data) == 3 and [shown(data[i])[1] for i in (1, 2)] == ["es</s>", "o</s>"]


BAD = {
    b"": "data.txt: the file is empty",
    b" \n\n": "data.txt: the file is empty",
    "中文\n苹果".encode("gb18030"): "data.txt:1: byte 0xd6 is not UTF-8",
    b"fine\nalso fine\nlatin \xe9t\xe9\n": "data.txt:3: byte 0xe9 is not UTF-8",
    b"### Instruction:\na\n### Response:\nb\n### Instruction:\nc\n### Response:\n\xff\n": "data.txt:8: byte 0xff",
    b"ends inside a character \xe4\xb8": "data.txt:1: byte 0xe4",
    "text".encode("utf-16"): "UTF-16",
    b"GGUF\x03\0\0\0": "this is a model or an adapter (GGUF)",
    b"words \0\0\0": "not a text file",
    b"### Instruction:\na\n### Response:\nb\n### Instruction:\nc\n": 'data.txt:5: this block has no "### Response:"',
    b"### Instruction:\na\n### Response:\n": "no usable sample",
    b"x": "no usable sample",
}


@pytest.mark.parametrize("content", BAD)
def test_bad_text_is_one_clear_line(load, content):
    with pytest.raises(LlamacyError) as caught:
        load(content)
    assert BAD[content] in str(caught.value) and "\n" not in str(caught.value)


def test_a_marker_that_never_comes_is_told(load):
    with pytest.raises(LlamacyError, match="no sample starts with '<X>'"):
        load("some text", sample_start="<X>")


@pytest.mark.parametrize(("name", "wanted"), [("missing.txt", "no such file"), ("", "a folder without data files")])
def test_what_cannot_be_opened_is_told(tmp_path, name, wanted):
    with pytest.raises(LlamacyError, match=wanted):
        open_data([tmp_path / name], Encoder(ByteTokenizer(), 64))


def test_several_files_follow_each_other(tmp_path):
    (tmp_path / "a.txt").write_text(PLAIN_BLOCKS, encoding="utf-8")
    (tmp_path / "b.txt").write_text("plain words\n")
    data = open_data([tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "a.txt"], Encoder(ByteTokenizer(), 512))
    assert [shown(data[i])[1] for i in range(len(data))] == [JOKE[1], APPLE[1], "lain words\n", JOKE[1], APPLE[1]]
    with pytest.raises(IndexError):
        data[5]


def test_the_fingerprint_follows_content(tmp_path):
    def fingerprint(text, n_ctx=512):
        (tmp_path / "x.txt").write_text(text, encoding="utf-8")
        return open_data([tmp_path / "x.txt"], Encoder(ByteTokenizer(), n_ctx)).fingerprint()

    assert fingerprint(PLAIN_BLOCKS) == fingerprint(PLAIN_BLOCKS) != fingerprint(PLAIN_BLOCKS.replace("鱼", "狗"))
    assert fingerprint("abc") != fingerprint("abd") and fingerprint("abcd", 3) != fingerprint("abcd", 2)

"""What files may be: tables, packed, in columns, folders, weighted; what is said of those that are something else."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import numpy as np
import pytest

from llamacy.errors import LlamacyError, UsageError
from llamacy.train.data import Encoder, open_data
from llamacy.train.encodings import likely
from llamacy.train.sources import path_and_weight
from tests.train.fakes import ByteTokenizer, shown

LINES = '{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n'
TEXTS = [("o", "ne</s>"), ("t", "wo</s>"), ("t", "hree</s>")]


@pytest.fixture
def load(tmp_path):
    def load_bytes(content, name="data", argument="", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return open_data([f"{path}{argument}"], Encoder(ByteTokenizer(), 512), **options)

    return load_bytes


def all_shown(data):
    return [shown(data[i]) for i in range(len(data))]


def asked(question, answer):
    return (f"### Instruction:\n{question}\n### Response:\n", f"{answer}</s>")


# ---- tables ----

TWO = [asked("2+3", "5"), asked("a, b; c", 'say "c"\nand d')]
QUOTED = '"a, b; c"{0}"say ""c""\nand d"'
TABLES = {
    "commas": "question,answer\n2+3,5\n" + QUOTED.format(",") + "\n",
    "semicolons": "question;answer\n2+3;5\n" + QUOTED.format(";"),
    "tabs": "question\tanswer\n2+3\t5\n" + QUOTED.format("\t"),
    "bom and windows": "\ufeffquestion,answer\r\n2+3,5\r\n" + QUOTED.format(",") + "\r\n",
    "two boms": "\ufeff\ufeffquestion,answer\n2+3,5\n" + QUOTED.format(","),
    "quoted names": '"Question";"Answer"\n2+3;5\n' + QUOTED.format(";"),
    "other columns": "id,question,score,answer\n1,2+3,,5\n2," + QUOTED.format(",,"),
    "empty lines and columns": "\nquestion,answer,,\n\n2+3,5,,\n" + QUOTED.format(",") + ",,\n\n",
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_are_told_by_the_names_of_their_columns(load, case):
    data = load(TABLES[case])
    assert all_shown(data) == TWO
    if case == "other columns":
        assert 'not used: "id" in 2 records' in data.report()[-1]


def test_a_quote_inside_a_field_is_a_quote(load):
    data = load('question\tanswer\nhow long?\t5" long\n"all" of it?\tyes\n')
    assert all_shown(data) == [asked("how long?", '5" long'), asked("all of it?", "yes")]


def test_a_table_of_conversations(load):
    talk = json.dumps([{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}])
    row = '"' + talk.replace('"', '""') + '"'

    def render(messages, add_generation_prompt):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + (
            "<assistant>" if add_generation_prompt else ""
        )

    data = load(f"messages,source\n{row},x\n", render=render)
    assert all_shown(data) == [("<user>a\nb<assistant>", "c</s>")]


BAD_TABLES = {
    "no names": ("a,b,c\nd,e,f\ng,h,i\nj,k,l\n", "data", "a table with columns between commas"),
    "no names, tabs": ("a\tb\nc\td\ne\tf\n", "data", "a table with columns between tabs"),
    "no names, quoted": ('"a","b"\n"c","d"\n', "data", "a table with columns between commas"),
    "named a table": ("hello\nworld\n", "words.CSV", "a table, but its first line names none"),
    "other names": ("name,age\nAnn,5\n", "people.csv", "give it a first line such as question,answer"),
    "too many fields": (
        "question,answer\na,b,c\n",
        "data",
        "data:2: 3 fields, the first line names 2 (question, answer)",
    ),
    "an open quote": ('question,answer\na,b\nc,"d\ne,f\n', "data", 'data:3: a quote (") that is opened in this row'),
    "the same name twice": ("question,answer,answer\na,b,c\n", "data", "two columns are named 'answer'"),
    "bad bytes": (b"question,answer\na,b\nc,d\xff\n", "data", "data:3: byte 0xff is not UTF-8"),
    "names alone": ("question,answer\n", "data", "no usable sample"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_cannot_be_learnt_is_one_line(load, case):
    content, name, wanted = BAD_TABLES[case]
    with pytest.raises(LlamacyError) as caught:
        load(content, name)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["Yes, no.\nWell, so.\nThat, this.\n", "a, b, c\nd and e\n", "x;y\nz\n", "one\ttab\n\nmore\n"]
)
def test_text_with_commas_is_text(load, text):
    assert "plain text" in load(text).report()[0]


# ---- packed, in columns, folders ----

PACKED = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, "": gzip.compress}


@pytest.mark.parametrize("suffix", PACKED)
def test_packed_files_are_read_as_what_is_in_them(load, suffix):
    data = load(PACKED[suffix](LINES.encode()), "data" + suffix)
    assert all_shown(data) == TEXTS
    assert data.fingerprint() == load(LINES, "plain").fingerprint()
    twice = load(PACKED[suffix](PACKED[suffix](TABLES["tabs"].encode())), "twice" + suffix)
    assert all_shown(twice) == TWO


@pytest.mark.parametrize("suffix", PACKED)
def test_packed_files_that_are_damaged_are_one_line(load, suffix):
    packed = PACKED[suffix](LINES.encode() * 50)
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 0x55
    for content in (packed[:-9], bytes(broken)):
        with pytest.raises(LlamacyError, match="cannot be unpacked"):
            load(content, "data" + suffix)
    with pytest.raises(LlamacyError, match="the file is empty"):
        load(PACKED[suffix](b""), "data" + suffix)


ROWS = [{"question": "2+3", "answer": "5", "id": 1}, {"question": "4?", "answer": None, "id": 2}]


def columns():
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed"), pytest.importorskip("pyarrow.parquet")


def parquet(rows):
    arrow, parquet = columns()
    file = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows), file)
    return file.getvalue()


def test_parquet_is_read_row_by_row(load):
    data = load(parquet(ROWS))
    assert all_shown(data) == [asked("2+3", "5")] and data.n_skipped == 1
    assert any('not used: "id" in 2' in line for line in data.report())
    talk = [{"messages": [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b"}]}]

    def render(messages, add_generation_prompt):
        assert all(m.keys() == {"role", "content"} for m in messages)
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + (
            "<assistant>" if add_generation_prompt else ""
        )

    assert all_shown(load(parquet(talk), render=render)) == [("<user>a<assistant>", "b</s>")]
    with pytest.raises(LlamacyError, match="a damaged file of columns"):
        load(parquet(ROWS)[:-20] + b"x" * 20)


def test_without_pyarrow_it_says_what_to_install(load, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LlamacyError, match=r"needs pyarrow .*: pip install 'llamacy\[parquet\]'"):
        load(b"PAR1" + bytes(20))


def test_a_saved_dataset_is_its_training_split(tmp_path):
    arrow, _ = columns()
    for split, row in (("train", {"text": "one"}), ("test", {"text": "two"})):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        table = arrow.Table.from_pylist([row])
        with arrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        (folder / "state.json").write_text('{"_data_files": []}')
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = open_data([tmp_path / "set"], Encoder(ByteTokenizer(), 512))
    assert all_shown(data) == TEXTS[:1]
    assert "left out: 'test/data-00000-of-00001.arrow'" in data.report()[-1]


FOLDERS = {
    "a training split": ({"README.md": "x", "data/train-00000.jsonl": LINES, "data/test-0.jsonl": "bad"}, TEXTS),
    "in order": ({"b.jsonl": '{"text": "two"}', "a.jsonl": '{"text": "one"}', ".hidden.jsonl": "bad"}, TEXTS[:2]),
    "validation left out": ({"a.jsonl": LINES, "valid.jsonl": "bad"}, TEXTS),
    "a test alone": ({"test.jsonl": LINES, "LICENSE.txt": "words"}, TEXTS),
    "packed": ({"train.jsonl.gz": gzip.compress(LINES.encode())}, TEXTS),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_of_datasets(tmp_path, case):
    files, wanted = FOLDERS[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert all_shown(open_data([tmp_path], Encoder(ByteTokenizer(), 512))) == wanted


# ---- weights, first samples ----


def test_a_weight_says_how_often_a_sample_is_taken(tmp_path):
    for name, n in (("a", 10), ("b", 20)):
        (tmp_path / name).write_text("\n".join(json.dumps({"text": f"{name} {i}"}) for i in range(n)))
    encoder = Encoder(ByteTokenizer(), 64)
    data = open_data([f"{tmp_path / 'a'}:2.5", f"{tmp_path / 'b'}:.25"], encoder)
    assert len(data) == 30 and data.is_weighted
    assert "(JSON lines), 2.5 times each" in data.report()[0]
    taken = data.weighted(range(30), 7)
    counts = np.bincount(taken, minlength=30)
    assert set(counts[:10]) == {2, 3} and counts[:10].sum() == 25
    assert set(counts[10:]) == {0, 1} and counts[10:].sum() == 5
    assert (taken == data.weighted(range(30), 7)).all() and (taken != data.weighted(range(30), 8)).any()
    # what is held out is never taken
    assert set(data.weighted(np.arange(0, 30, 2), 7)) <= set(range(0, 30, 2))
    plain = open_data([tmp_path / "a", tmp_path / "b"], encoder)
    assert not plain.is_weighted and plain.fingerprint() != data.fingerprint()


def test_a_file_whose_name_ends_like_a_weight_is_meant(tmp_path, load):
    assert all_shown(load(LINES, "data:2")) == TEXTS
    assert path_and_weight(tmp_path / "data:2") == (str(tmp_path / "data:2"), 1.0)
    assert path_and_weight("other:2") == ("other", 2.0)
    assert path_and_weight("C:\\data.txt") == ("C:\\data.txt", 1.0)
    for argument in ("other:0", "other:1001"):
        with pytest.raises(UsageError, match="wanted a weight above 0 and up to 1000"):
            path_and_weight(argument)


def test_the_first_samples_of_each_file(load):
    data = load(LINES + "broken", max_samples=2)
    assert all_shown(data) == TEXTS[:2] and "the first 2 of more" in data.report()[0]
    assert len(load("word " * 500, max_samples=2)) == 2
    assert "of more" not in load(LINES, max_samples=3).report()[0]


# ---- line ends, marks ----


@pytest.mark.parametrize("text", [LINES, json.dumps([json.loads(line) for line in LINES.splitlines()])])
@pytest.mark.parametrize("change", [("\n", "\r"), ("\n", "\r\n"), ("{", "\ufeff{"), ("", "\ufeff\ufeff")])
def test_old_line_ends_and_marks_inside(load, text, change):
    old, new = change
    text = text.replace(old, new) if old else new + text
    if text.startswith("[\ufeff"):
        return  # a mark inside an array is nothing that joining files leaves
    assert all_shown(load(text)) == TEXTS


def test_instruction_text_with_old_line_ends_and_marks(load):
    text = "### Instruction:\na\n### Response:\nb\n\ufeff### Instruction:\nc\n### Response:\nd\n"
    for changed in (text, text.replace("\n", "\r"), "\ufeff\ufeff" + text):
        assert all_shown(load(changed)) == [asked("a", "b"), asked("c", "d")]


# ---- what is no training data ----


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


OTHERS = {
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "a spreadsheet (.xlsx), no training data; save"),
    "docx": (zipped("[Content_Types].xml", "word/document.xml"), "a Word document"),
    "zip": (zipped("data.txt"), "a zip archive"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "an old Office document"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "a picture (PNG)"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(99), "a picture (JPEG)"),
    "gif": (b"GIF89a" + bytes(99), "a picture (GIF)"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\n", "a PDF document"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(99), "compressed by zstd"),
    "sqlite": (b"SQLite format 3\0" + bytes(99), "an SQLite database"),
    "tar": (bytes(257) + b"ustar" + bytes(99), "a tar archive"),
    "utf-16 without a mark": ("just words".encode("utf-16-le"), "UTF-16LE text, wanted UTF-8"),
    "utf-16 the other way": ("just words".encode("utf-16-be"), "UTF-16BE text"),
    "utf-32": ("words".encode("utf-32"), "UTF-32 text"),
    "curly quotes": ("{“prompt”: “a”, “completion”: “b”}\n", "typographic quotes"),
    "curly quotes in an array": ("[\n {„prompt“: „a“}]", "typographic quotes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_training_data_is_named(load, kind):
    content, wanted = OTHERS[kind]
    with pytest.raises(LlamacyError) as caught:
        load(content)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


LANGUAGES = {
    "WINDOWS-1252": ("cp1252", ["Le café est fermé à midi, où êtes-vous ?", "Größe und Übermut: schöne Grüße",
                                "¿Qué pasó mañana, señor?", "It’s a “quoted” word", "Ação e coração"]),
    "WINDOWS-1250": ("cp1250", ["Zażółć gęślą jaźń, proszę", "Příliš žluťoučký kůň"]),
    "WINDOWS-1251": ("cp1251", ["Привет, как дела? Сегодня хорошая погода."]),
    "KOI8-R": ("koi8-r", ["Привет, как дела? Сегодня хорошая погода."]),
    "WINDOWS-1253": ("cp1253", ["Καλημέρα, τι κάνεις σήμερα;"]),
    "GB18030": ("gb18030", ["讲一个笑话。为什么鱼不说话？", "你好，今天天气怎么样？"]),
    "BIG5": ("big5", ["講一個笑話。為什麼魚不說話？", "你好，今天天氣怎麼樣？"]),
    "CP932": ("cp932", ["こんにちは、今日の天気はどうですか？", "日本語のテキストです。"]),
    "EUC-JP": ("euc_jp", ["こんにちは、今日の天気はどうですか？"]),
    "EUC-KR": ("euc_kr", ["안녕하세요, 오늘 날씨가 어때요?"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_likely_encoding_is_named(load, name):
    codec, texts = LANGUAGES[name]
    for text in texts:
        assert likely(text.encode(codec))[0] == name
    with pytest.raises(LlamacyError, match=f"iconv -f {name} -t UTF-8"):
        load(json.dumps({"text": texts[0]}, ensure_ascii=False).encode(codec))


def test_damage_in_utf8_is_called_so(load):
    with pytest.raises(LlamacyError, match="byte 0xff is not UTF-8 text; the rest is UTF-8, so that this is damage"):
        load("日本語のテキスト".encode() * 9 + b"\xff end")

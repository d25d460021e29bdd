"""What a file is that is no training data, told by its first bytes: one row for each kind, with what to do instead."""

import re

from llamacy.errors import LlamacyError
from llamacy.train.encodings import advice

_TABLE = "save the table as CSV with headers such as question and answer"
# (where, first bytes, what it is, what to do)
KINDS = (
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.xls, .doc)", _TABLE),
    (0, b"\x89PNG\r\n\x1a\n", "a picture (PNG)", "write down the text in it"),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", "write down the text in it"),
    (0, b"GIF8", "a picture (GIF)", "write down the text in it"),
    (0, b"BM", "a picture (BMP)", "write down the text in it"),
    (0, b"II*\0", "a picture (TIFF)", "write down the text in it"),
    (0, b"MM\0*", "a picture (TIFF)", "write down the text in it"),
    (8, b"WEBP", "a picture (WebP)", "write down the text in it"),
    (8, b"WAVE", "a recording (WAV)", "write down what is said in it"),
    (4, b"ftyp", "a film or a picture (MP4, HEIC)", "write down the text in it"),
    (0, b"OggS", "a recording (Ogg)", "write down what is said in it"),
    (0, b"ID3", "a recording (MP3)", "write down what is said in it"),
    (0, b"%PDF-", "a PDF document", "take its text out first, for example with pdftotext"),
    (0, b"{\\rtf", "an RTF document", "save it as plain text in UTF-8"),
    (0, b"GGUF", "a model or an adapter (GGUF)", "name it with --model or --init-lora"),
    (0, b"SQLite format 3\0", "an SQLite database", "export a table as CSV with headers"),
    (0, b"ARROW1", "an Arrow file", "name the dataset's folder, or save it as Parquet or JSON lines"),
    (0, b"Obj\x01", "an Avro file", "save it as Parquet or JSON lines"),
    (0, b"ORC", "an ORC file", "save it as Parquet or JSON lines"),
    (0, b"\x89HDF\r\n", "an HDF5 file", "save its text as JSON lines"),
    (0, b"\x93NUMPY", "a NumPy array", "save its text as JSON lines"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first (unzstd), or compress it with gzip or xz"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (0, b"Rar!", "a RAR archive", "unpack it first"),
    (257, b"ustar", "a tar archive", "unpack it first"),
    (0, b"version https://git-lfs.github.com", "what Git LFS leaves for a file", "fetch it with git lfs pull"),
    (0, b"\x7fELF", "a program", "name a text file"),
)  # fmt: skip
# What a zip archive is, by the name of a file in it.
ZIPS = (
    (b"xl/", "a spreadsheet (.xlsx)", _TABLE),
    (b"word/", "a Word document (.docx)", "save it as plain text in UTF-8"),
    (b"ppt/", "a presentation (.pptx)", "save its text in UTF-8"),
    (b"mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "a spreadsheet (.ods)", _TABLE),
    (b"mimetypeapplication/vnd.oasis.opendocument", "an OpenDocument text", "save it as plain text in UTF-8"),
    (b"mimetypeapplication/epub", "a book (EPUB)", "save it as plain text in UTF-8"),
    (b"", "a zip archive", "unpack it first"),
)
UTF16, UTF32 = (b"\xff\xfe", b"\xfe\xff"), (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
# JSON as word processors make it: “name”: “text”
CURLY = re.compile(
    "\\s*\\[?\\s*\\{\\s*[\u201c\u201d\u201e\u201f\u00ab\u2018\u2019][^\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019]{1,60}[\u201c\u201d\u00bb\u2018\u2019]\\s*:"
)


def check_head(head, path):
    """LlamacyError where `head`, a file's first bytes, is of something that is no text in UTF-8, or of nothing."""
    if not head.strip():
        raise LlamacyError(f"{path}: the file is empty; wanted instruction text, JSON lines or plain text")
    if found := _kind(head):
        raise LlamacyError(f"{path}: this is {found[0]}, no training data; {found[1]}")
    if head.startswith(UTF32):
        raise LlamacyError(f"{path}:1: this is UTF-32 text, wanted UTF-8; convert it with iconv -f UTF-32 -t UTF-8")
    if name := _utf16(head):
        raise LlamacyError(f"{path}:1: this is {name} text, wanted UTF-8; convert it with iconv -f {name} -t UTF-8")
    if b"\0" in head:
        raise LlamacyError(f"{path}: not a text file: it holds NUL bytes; wanted instruction text, JSON or plain text")
    if CURLY.match(head[:4096].decode("utf-8", "ignore")):
        raise LlamacyError(
            f"{path}:1: JSON with typographic quotes, as word processors make them; wanted straight ones: "
            'replace \u201c and \u201d by "'
        )


def _kind(head):
    """Return (what it is, what to do) of a file of a known kind, None for others."""
    for at, mark, what, instead in KINDS:
        # text may begin with letters that are a mark too
        if head[at : at + len(mark)] == mark and (len(mark) > 3 or b"\0" in head[:512]):
            return what, instead
    if head.startswith(b"PK\x03\x04"):
        return next((what, instead) for mark, what, instead in ZIPS if mark in head)
    return None


def _utf16(head):
    """Return the name of the UTF-16 that text with or without a mark is in, None for no such text."""
    if head.startswith(UTF16):
        return "UTF-16"
    start = head[:512]
    n_even, n_odd = start[::2].count(0), start[1::2].count(0)
    if n_even + n_odd < len(start) / 4:
        return None
    if n_odd > 8 * n_even:
        return "UTF-16LE"
    return "UTF-16BE" if n_even > 8 * n_odd else None


def not_utf8(raw, path, line):
    """The error for bytes of a text, from line `line` on, that are no UTF-8: where, and the encoding they look like."""
    try:
        raw.decode("utf-8")
        at = 0
    except UnicodeDecodeError as error:
        at = error.start
    line += raw.count(b"\n", 0, at)
    around = raw[max(0, at - 4096) :]
    return LlamacyError(f"{path}:{line}: byte 0x{raw[at]:02x} is not UTF-8 text; {advice(around)}")

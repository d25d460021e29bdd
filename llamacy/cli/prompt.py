"""Texts that come from flags, files and pipes: the prompt, the system message, and escapes in them."""

import os
import re
import sys

from llamacy.errors import LlamacyError, UsageError

ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}
BOM = b"\xef\xbb\xbf"
STDIN = "-"


def unescape(text):
    """Replace the escapes of `-e` (llama.cpp's); unknown ones stay as they are."""

    def replace(found):
        name = found.group(1)
        return bytes.fromhex(name[1:].decode()) if len(name) == 3 else ESCAPES[name]

    escaped = re.sub(rb"""\\(x[0-9a-fA-F]{2}|[nrt'"\\])""", replace, text.encode("utf-8", "surrogateescape"))
    return escaped.decode("utf-8", "surrogateescape")


def read_prompt(args, pipe=False):
    """Return the prompt of the flags, "" without any; LlamacyError when a file is not text.

    pipe: without -p and -f it is what stands on stdin, where that is no terminal.
    """
    given = [flag for flag in ("prompt", "file", "binary_file") if getattr(args, flag) is not None]
    if len(given) > 1:
        names = " and ".join("--" + flag.replace("_", "-") for flag in given)
        raise UsageError(f"{names} are both given: name one")
    if args.prompt is not None:
        # Undecodable bytes of the command line stay what they were (surrogateescape), also under an ASCII locale.
        text = os.fsencode(args.prompt).decode("utf-8", "surrogateescape")
    elif args.binary_file is not None:
        text = _bytes(args.binary_file).decode("utf-8", "surrogateescape")
    elif args.file is not None:
        text = read_text(args.file)
    else:
        text = read_text(STDIN) if pipe and _is_piped() else ""
    return unescape(text) if args.escape else text


def read_text(path):
    """Return a text file as a prompt, `-` for stdin: without a byte order mark, and without the newline at its end.

    Editors and echo write those, but nobody means them as part of the text.
    """
    data = _bytes(path).removeprefix(BOM)
    end = b"\r\n" if data.endswith(b"\r\n") else b"\n"
    try:
        return data.removesuffix(end).decode("utf-8")
    except UnicodeDecodeError as error:
        where = "standard input" if path == STDIN else path
        raise LlamacyError(f"{where}: wanted UTF-8 text, got other bytes at offset {error.start}") from None


def _bytes(path):
    if path == STDIN:
        return sys.stdin.buffer.read() if sys.stdin else b""
    with open(path, "rb") as file:
        return file.read()


def _is_piped():
    """Is there something on stdin that is no person? A closed one is None, or cannot be asked."""
    try:
        return sys.stdin is not None and not sys.stdin.isatty()
    except ValueError:
        return False

"""bin/tokenize: text to the ids that a model sees."""

import os
import sys

from llamacy.cli.common import optional
from llamacy.cli.run import make_parser
from llamacy.default_model import MODEL_NAME, default_model
from llamacy.errors import LlamacyError


def build_parser():
    parser = make_parser("tokenize", "Show the tokens of a text, one `id -> 'piece'` a line. Vocabulary-only files do.")
    optional(parser, "-m", "--model", dest="model", metavar="FILE",
             help=f"model or vocabulary file (default: {MODEL_NAME})")  # fmt: skip
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("-p", "--prompt", metavar="TEXT", help="the text itself")
    text.add_argument("-f", "--file", metavar="FILE", help="a file with the text")
    text.add_argument("--stdin", action="store_true", help="the text comes on standard input")
    parser.add_argument("--no-bos", action="store_true", help="no BOS or EOS, even if the model adds them")
    parser.add_argument("--no-parse-special", action="store_true", help="treat names of control tokens as plain text")
    parser.add_argument("--ids", action="store_true", help="print the ids alone, as [1, 2, 3]")
    parser.add_argument("--show-count", action="store_true", help="print how many there are, last")
    return parser


def main(argv):
    args = build_parser().parse_args(argv)
    from llamacy.formats.model_file import open_model
    from llamacy.text.tokenizer import open_tokenizer

    text = _text(args)
    path = args.model or default_model()
    with open_model(path) as model:
        tokenizer = open_tokenizer(model)
        ids = tokenizer.encode(text, add_special=not args.no_bos, parse_special=not args.no_parse_special)
    lines = [str(ids)] if args.ids else [f"{token} -> '{_shown(tokenizer.token_bytes(token))}'" for token in ids]
    if args.show_count:
        lines.append(f"Total number of tokens: {len(ids)}")
    sys.stdout.buffer.write("".join(line + "\n" for line in lines).encode())
    return 0


def _shown(piece):
    """Return a token's bytes as text on one line; bytes that are only part of a character as \\xNN."""
    text = piece.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _text(args):
    """Return the text that the flags point at; bytes that are not UTF-8 stay what they are (surrogateescape)."""
    if args.prompt is not None:
        return os.fsencode(args.prompt).decode("utf-8", "surrogateescape")
    if args.stdin:
        return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    try:
        with open(args.file, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise LlamacyError(f"{args.file}: {error.strerror}") from error

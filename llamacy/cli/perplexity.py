"""`perplexity`: how surprised a model is by a text; the protocol is in generate/perplexity.py."""

import json
import sys

from llamacy.cli.common import add_cache_flags, add_lora_flags, add_model_flags, open_model_from, optional, whole
from llamacy.cli.log_file import add_log_file_flag, log_to
from llamacy.cli.run import make_parser
from llamacy.generate.perplexity import measure, read_tokens


def build_parser():
    """Return the parser of `perplexity`'s flags."""
    parser = make_parser(
        "perplexity",
        "Measure how surprised a model is by a text: windows of N tokens, second halves scored.",
        variables=True,
    )
    optional(parser, "-f", "--file", dest="file", required=True, metavar="FILE", help="the text, UTF-8")
    parser.add_argument("-c", "--ctx-size", "--ctx", type=window, default=512, metavar="N",
                        help="tokens in a window, 0 = the model's context")  # fmt: skip
    optional(parser, "--chunks", dest="chunks", type=chunks, metavar="N",
             help="stop after N windows, -1 = not (the default)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the line")
    add_log_file_flag(parser)
    add_model_flags(parser)
    add_cache_flags(parser)
    add_lora_flags(parser)
    return parser


def window(text):
    """Parse the size of a window, 0 for the model's context."""
    return 0 if text == "0" else whole(4)(text)


def chunks(text):
    """Parse a number of windows, -1 for all."""
    return None if text == "-1" else whole(1)(text)


def main(argv):
    """Print `PPL = P +/- E (N tokens)` as the last line of stdout; the estimates on the way go to stderr."""
    args = build_parser().parse_args(argv)
    log_to(args.log_file)
    model = open_model_from(args)
    args.ctx_size = args.ctx_size or model.config.n_ctx_train
    tokens = read_tokens(model, args.file, args.ctx_size, args.chunks)
    n_windows = len(tokens) // args.ctx_size
    trained = model.config.n_ctx_train
    if args.ctx_size > trained:
        print(f"warning: -c {args.ctx_size} is above the context of {trained} that the model knows", file=sys.stderr)

    def progress(i, score):
        print(f"[{i}/{n_windows}] {score.perplexity:.4f}", file=sys.stderr)

    score = measure(model, tokens, args.ctx_size, progress)
    print(_as_json(score, args, n_windows) if args.json else _as_line(score))
    return 0


def _as_line(score):
    return f"PPL = {score.perplexity:.4f} +/- {score.error:.4f} ({score.n_tokens} tokens)"


def _as_json(score, args, n_windows):
    facts = {"ppl": score.perplexity, "stderr": score.error, "tokens": score.n_tokens}
    return json.dumps(facts | {"n_ctx": args.ctx_size, "windows": n_windows, "file": args.file, "model": args.model})

"""`perplexity`: how surprised a model is by a text, by the protocol of generate/perplexity.py; divergence, too."""

import contextlib
import json
import sys

from llamacy.cli.common import add_cache_flags, add_lora_flags, add_model_flags, open_model_from
from llamacy.cli.log_file import add_log_file_flag, log_to
from llamacy.cli.run import make_parser
from llamacy.cli.values import optional, some_or_all, whole
from llamacy.errors import UsageError
from llamacy.evaluation import report
from llamacy.evaluation.logits_file import write_logits
from llamacy.evaluation.texts import check_tokens, open_reference, run_windows
from llamacy.generate.perplexity import read_tokens
from llamacy.train.outputs import check_writable

WINDOW = 512


def build_parser():
    """Return the parser of `perplexity`'s flags."""
    parser = make_parser(
        "perplexity",
        "Measure how surprised a model is by a text: windows of N tokens, second halves scored.",
        variables=True,
    )
    optional(parser, "-f", "--file", dest="file", metavar="FILE",
             help="the text, UTF-8; with --kl-divergence by default the one that FILE was made of")  # fmt: skip
    optional(parser, "-c", "--ctx-size", "--ctx", dest="ctx_size", type=window, metavar="N",
             help="tokens in a window, 0 = the model's context (default: 512, or what FILE says)")  # fmt: skip
    optional(parser, "--chunks", dest="chunks", type=some_or_all, metavar="N",
             help="stop after N windows, -1 = not (the default)")  # fmt: skip
    parser.add_argument("--kl-divergence", action="store_true",
                        help="compare with the run in --kl-divergence-base: KL divergence and more")  # fmt: skip
    optional(parser, "--kl-divergence-base", "--save-all-logits", dest="base", metavar="FILE",
             help="without --kl-divergence: write all log-probabilities there, in llama.cpp's form, 2 bytes for each "
             "word and token; with it: compare with them, or with what evaluate --save-reference wrote")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the line")
    add_log_file_flag(parser)
    add_model_flags(parser)
    add_cache_flags(parser)
    add_lora_flags(parser)
    return parser


def window(text):
    """Parse the size of a window, 0 for the model's context."""
    return 0 if text == "0" else whole(4)(text)


def main(argv):
    """Print `PPL = P +/- E (N tokens)` as the last line of stdout; the estimates on the way go to stderr."""
    args = build_parser().parse_args(argv)
    log_to(args.log_file)
    if args.kl_divergence:
        return _diverge(args)
    if args.file is None:
        raise UsageError("perplexity: wanted a text, -f FILE")
    if args.base:
        check_writable(args.base, "--kl-divergence-base")
    model = open_model_from(args)
    args.ctx_size = model.config.n_ctx_train if args.ctx_size == 0 else args.ctx_size or WINDOW
    tokens = read_tokens(model, args.file, args.ctx_size, args.chunks)
    n_windows = len(tokens) // args.ctx_size
    tokens = tokens[: n_windows * args.ctx_size]
    _warn(args.ctx_size, model)

    def progress(i, score, divergence):
        print(f"[{i}/{n_windows}] {score.perplexity:.4f}", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        header = {"n_ctx": args.ctx_size, "n_vocab": model.config.n_vocab, "n_windows": n_windows}
        writer = stack.enter_context(write_logits(args.base, header, tokens)) if args.base else None
        score, _ = run_windows(model, tokens, args.ctx_size, writer=writer, progress=progress)
    print(_as_json(score, args, n_windows) if args.json else _as_line(score))
    return 0


def _warn(n_ctx, model):
    if n_ctx > model.config.n_ctx_train:
        trained = model.config.n_ctx_train
        print(f"warning: -c {n_ctx} is above the context of {trained} that the model knows", file=sys.stderr)


def _diverge(args):
    """Print how far the model is from the run in args.base; its windows' estimates go to stderr."""
    if args.base is None:
        raise UsageError("--kl-divergence: wanted the run to compare with, --kl-divergence-base FILE")
    with open_reference(args.base) as base:
        if args.ctx_size and args.ctx_size < base.n_ctx:
            raise UsageError(f"-c {args.ctx_size}: {args.base} has windows of {base.n_ctx} tokens; leave -c away")
        model = open_model_from(args)
        base.check_model(model)
        if args.file is not None:
            check_tokens(base, read_tokens(model, args.file, base.n_ctx, None), base.n_ctx, args.file)
        _warn(base.n_ctx, model)
        n_windows = base.n_windows if args.chunks is None else min(args.chunks, base.n_windows)
        print(report.HEAD, file=sys.stderr)

        def progress(i, score, divergence):
            print(report.running(i, divergence), file=sys.stderr)

        _, found = run_windows(model, base.tokens[: n_windows * base.n_ctx], base.n_ctx, base=base, progress=progress)
    facts = {"model": args.model, "reference": args.base, "n_ctx": base.n_ctx, "windows": n_windows}
    print(json.dumps(report.as_dict(found) | facts) if args.json else report.lines(found))
    return 0


def _as_line(score):
    return f"PPL = {score.perplexity:.4f} +/- {score.error:.4f} ({score.n_tokens} tokens)"


def _as_json(score, args, n_windows):
    facts = {"ppl": score.perplexity, "stderr": score.error, "tokens": score.n_tokens}
    return json.dumps(facts | {"n_ctx": args.ctx_size, "windows": n_windows, "file": args.file, "model": args.model})

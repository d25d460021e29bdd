"""`evaluate`: models and adapters beside each other, in one table; what is measured is in evaluation/compare.py."""

import argparse
import contextlib
import json
import sys

from llamacy.cli.common import adapter_and_scale, add_cache_flags, add_model_flags, listed, loading_from
from llamacy.cli.log_file import add_log_file_flag, log_to
from llamacy.cli.run import make_parser, say
from llamacy.cli.values import Extend, optional, some_or_all, whole
from llamacy.default_model import default_model
from llamacy.errors import UsageError, one_line
from llamacy.evaluation.matching import MATCHES

OUTPUTS = ("md", "json", "jsonl")


class _AddModel(argparse.Action):
    """`-m FILE`: a row of its own, and the model of the adapters that follow."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.rows = [*namespace.rows, (values, ())]
        namespace.model = values


class _AddAdapters(argparse.Action):
    """`--lora FILE[:SCALE]`: one row more, of the model named before it; several with commas are applied together."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            adapters = tuple(adapter_and_scale(word) for word in listed(values))
        except UsageError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        rows = namespace.rows or [(None, ())]
        namespace.rows = [*rows, (rows[-1][0], adapters)]


def build_parser():
    """Return the parser of `evaluate`'s flags."""
    parser = make_parser(
        "evaluate",
        "Compare models and adapters in one table: a text's perplexity and the divergence from the first model, right "
        "answers to questions. Each -m is a row, each --lora one more: the model before it with that adapter.",
        variables=True,
    )
    parser.set_defaults(rows=[])
    group = parser.add_argument_group("what to measure")
    optional(group, "-f", "--file", dest="file", metavar="FILE", help="a text, UTF-8: perplexity, divergence")
    optional(group, "--data", dest="data", default=[], nargs="+", action=Extend, metavar="FILE",
             help="questions with answers, or with choices, in the forms of training data")  # fmt: skip
    optional(group, "-c", "--ctx-size", "--ctx", dest="ctx_size", type=whole(0), metavar="N",
             help="tokens in a window of the text (default: 512), of a question at most (default: 4096, at most the "
             "model's); 0 = the model's context")  # fmt: skip
    optional(group, "--chunks", dest="chunks", type=some_or_all, metavar="N",
             help="stop after N windows of the text, -1 = not (the default)")  # fmt: skip
    optional(group, "--max-samples", dest="max_samples", type=whole(1), metavar="N",
             help="of each file of questions no more than its first N")  # fmt: skip
    optional(group, "--reference", "--kl-divergence-base", dest="reference", metavar="FILE",
             help="compare with this run, ours or llama.cpp's (default: with the first model)")  # fmt: skip
    optional(group, "--save-reference", dest="save_reference", metavar="FILE",
             help="keep the first model's run on the text, to compare with later")  # fmt: skip
    group.add_argument("--match", choices=list(MATCHES), default="normalised",
                       help="how an answer must equal the wanted one: normalised (case, white space, full-width forms "
                       "and a full stop at its end do not count), exact, first-line alone, contains it")  # fmt: skip
    optional(group, "-n", "--n-predict", dest="n_predict", type=whole(1), metavar="N",
             help="tokens of an answer at most (default: 16 more than the longest wanted one)")  # fmt: skip
    optional(group, "--chat-template", dest="chat_template", metavar="NAME|FILE",
             help="how messages are written out (default: the model's own)")  # fmt: skip
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", choices=OUTPUTS, default="md", help="how the table is printed")
    group.add_argument("--json", dest="output", action="store_const", const="json", help="the same as -o json")
    optional(group, "--save-answers", dest="save_answers", metavar="FILE",
             help="write a JSON line for each question and row: what was wanted, what came")  # fmt: skip
    add_log_file_flag(parser)
    add_model_flags(parser, action=_AddModel)
    group = parser.add_argument_group("adapters")
    optional(group, "--lora", "--lora-adapter", dest="lora", action=_AddAdapters, metavar="FILE[:SCALE]",
             help="a row for the model named before with this adapter; several with commas: together")  # fmt: skip
    add_cache_flags(parser)
    return parser


def main(argv):
    """Print the table on stdout; what is left out, and the progress, go to stderr."""
    args = build_parser().parse_args(argv)
    log_to(args.log_file)
    from llamacy.evaluation.compare import Candidate, Plan, compare
    from llamacy.evaluation.table import FORMATS
    from llamacy.formats.atomic import atomic_write
    from llamacy.train.outputs import check_writable

    plan = Plan(
        text=args.file, data=tuple(args.data), n_ctx=args.ctx_size, n_chunks=args.chunks, reference=args.reference,
        save_reference=args.save_reference, match=args.match, n_predict=args.n_predict,
        chat_template=args.chat_template, max_samples=args.max_samples,
    )  # fmt: skip
    for path, flag in ((args.save_answers, "--save-answers"), (args.save_reference, "--save-reference")):
        if path:
            check_writable(path, flag)
    loading, default, openings = loading_from(args), None, {}
    candidates = []
    for path, adapters in args.rows or [(None, ())]:
        default = default_model() if path is None and default is None else default
        path = path or default
        if path not in openings:
            openings[path] = _opening(loading, path)
        candidates.append(Candidate(path, openings[path], adapters))
    rows = compare(candidates, plan, say, _Progress())
    if args.save_answers:
        with atomic_write(args.save_answers) as file:
            for row in rows:
                for answer in row.answers:
                    file.write(json.dumps({"model": row.name, **answer}, ensure_ascii=False).encode() + b"\n")
    print(FORMATS[args.output](rows))
    return 0


def _opening(loading, path):
    @contextlib.contextmanager
    def opening():
        model = loading.load(path, note=say)
        try:
            yield model
        finally:
            model.file.close()

    return opening


class _Progress:
    """The step that is being done: on a terminal one line that changes, else nothing."""

    def __init__(self):
        self._shows = sys.stderr.isatty()

    def __call__(self, text):
        if self._shows:
            last = text.split()[-1] == text.split()[-3]
            print(f"\r\033[K{one_line(text)}", end="\n" if last else "", file=sys.stderr, flush=True)

"""bin/quantize: a model in a smaller type."""

import argparse
import os
import re
import shutil
import sys
import time

from llamacy.cli.common import add_override_flag, add_threads_flag, fit_threads
from llamacy.cli.run import make_parser
from llamacy.cli.values import Append, optional, whole
from llamacy.errors import LlamacyError, UsageError, brief

# Without a terminal a line at most this often, in seconds.
INTERVAL = 5.0
COPY = "COPY"  # instead of a type: tensors as they are


def build_parser():
    """Return the parser of `quantize`'s flags."""
    parser = make_parser(
        "quantize",
        "Write a model in another type: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, "
        "Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K, IQ4_NL, IQ4_XS, MXFP4, MXFP4_MOE, TQ1_0 or TQ2_0 (any case). The mixes "
        "of K types give more bits to the tensors where errors hurt most, as llama.cpp's do. COPY changes no tensor.",
    )
    parser.usage = "quantize [flags] IN [OUT] TYPE [THREADS]"
    parser.add_argument("input", metavar="IN", help="the model, best in F32, F16 or BF16; GGUF, split or not, or GGML")
    parser.add_argument(
        "output", metavar="OUT", nargs="?", help="the GGUF file to write (default: ggml-model-TYPE.gguf beside IN)"
    )
    parser.add_argument("type", metavar="TYPE", nargs="?", help="the type or mix of types")
    parser.add_argument("n_threads", metavar="THREADS", nargs="?", help="the same as --threads")
    add_threads_flag(parser, "quantise")
    parser.add_argument("--allow-requantize", action="store_true",
                        help="accept a model that is quantised already: its errors stay")  # fmt: skip
    parser.add_argument("--pure", action="store_true", help="no mix: every matrix gets the same type")
    parser.add_argument("--leave-output-tensor", action="store_true", help="copy the output matrix as it is")
    optional(parser, "--output-tensor-type", dest="output_type", metavar="T", help="the output matrix's type")
    optional(parser, "--token-embedding-type", dest="embedding_type", metavar="T", help="the embedding's type")
    optional(parser, "--tensor-type", dest="tensor_types", default=[], action=Append, type=pattern_and_type,
             metavar="NAME=T", help="the type of matrices in whose name the expression NAME is found, such as "
             "attn_v=q8_0 or 'blk\\.[0-3]\\.ffn=q5_k' (repeatable, the first that is found counts)")  # fmt: skip
    optional(parser, "--tensor-type-file", dest="tensor_types_file", metavar="FILE",
             help="the same from a file, separated by spaces or newlines")  # fmt: skip
    optional(parser, "--imatrix", dest="imatrix", metavar="FILE",
             help="weigh errors by an importance matrix that llama.cpp's imatrix wrote (GGUF or .dat)")  # fmt: skip
    optional(parser, "--include-weights", dest="include", default=[], action=Append, metavar="NAME",
             help="use of it only entries in whose name this stands (repeatable)")  # fmt: skip
    optional(parser, "--exclude-weights", dest="exclude", default=[], action=Append, metavar="NAME",
             help="use no entries in whose name this stands (repeatable)")  # fmt: skip
    add_override_flag(parser)
    parser.add_argument("--keep-split", action="store_true",
                        help="write as many parts as IN has: OUT-00001-of-0000N.gguf, ...")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print each tensor's type and size, and write nothing")
    return parser


def pattern_and_type(text):
    """Parse `NAME=TYPE` into (compiled expression, type's name)."""
    name, _, kind = text.rpartition("=")
    if not name or not kind:
        raise argparse.ArgumentTypeError(f"wanted NAME=TYPE such as attn_v=q8_0, got {text!r}")
    try:
        return re.compile(name.lower()), kind
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{name!r} is no regular expression: {error}") from None


def settle_places(args):
    """Set input, output, mix (a name in MIXES or COPY) and threads from the words IN [OUT] TYPE [THREADS]."""
    from llamacy.model.mixes import MIXES, mix_name

    def found(text):
        return COPY if text is not None and text.upper() == COPY else text and mix_name(text)

    given = [args.output, args.type, args.n_threads]
    # As llama.cpp has it: where the second word is a type, there is no OUT.
    if found(args.output) and not (found(args.type) and not args.type.isdecimal()):
        given = [None, *given[:2]]
        if args.n_threads is not None:
            raise UsageError(f"{args.n_threads!r} is one word too many: wanted IN [OUT] TYPE [THREADS]")
    output, kind, n_threads = given
    if kind is None:
        raise UsageError("the type is missing: wanted IN [OUT] TYPE [THREADS]")
    args.mix = found(kind)
    if args.mix is None:
        raise UsageError(f"type {kind!r} is unknown, wanted one of {', '.join([*MIXES, COPY])}")
    if n_threads is not None and args.threads is None:
        try:
            args.threads = whole(1, 1024)(n_threads)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"THREADS: {error}") from None
    args.output = output or os.path.join(os.path.dirname(args.input), f"ggml-model-{args.mix}.gguf")


def wishes_from(args, imatrix):
    """Return the Wishes that the flags mean."""
    from llamacy.model.mixes import Wishes

    patterns = list(args.tensor_types)
    if args.tensor_types_file is not None:
        with open(args.tensor_types_file, encoding="utf-8") as file:
            try:
                patterns += [pattern_and_type(word) for word in file.read().split()]
            except (argparse.ArgumentTypeError, UnicodeDecodeError) as error:
                raise LlamacyError(f"--tensor-type-file {args.tensor_types_file}: {error}") from None
    return Wishes(
        pure=args.pure,
        leave_output=args.leave_output_tensor,
        output_type=_writable(args.output_type),
        embedding_type=_writable(args.embedding_type),
        by_importance=imatrix is not None,
        patterns=tuple((pattern, _writable(kind)) for pattern, kind in patterns),
    )


def imatrix_from(args):
    """Return the Imatrix that the flags name, None without one."""
    from llamacy.formats.imatrix import read_imatrix

    if args.imatrix is None:
        if args.include or args.exclude:
            raise UsageError("--include-weights and --exclude-weights need an importance matrix: --imatrix FILE")
        return None
    if args.include and args.exclude:
        raise UsageError("--include-weights and --exclude-weights are both given: name one")
    return read_imatrix(args.imatrix).only(args.include, args.exclude)


def steps_from(args, model, imatrix):
    """Return what becomes of each tensor by the flags; UsageError for those that would do nothing."""
    from llamacy.model.mixes import MIXES, Wishes, idle_patterns
    from llamacy.model.quantize import copies, plan

    wishes = wishes_from(args, imatrix)
    if args.mix == COPY:
        if imatrix is not None or wishes != Wishes():
            raise UsageError("COPY changes no tensor: flags that choose types or weigh errors mean nothing to it")
        return copies(model)
    idle = idle_patterns(model.tensors.values(), wishes)
    if idle:
        raise UsageError(f"--tensor-type {idle[0]}: no matrix that is quantised has that in its name")
    return plan(model, MIXES[args.mix], wishes, args.allow_requantize)


def main(argv):
    """Quantise; progress and what was done go to stderr, --dry-run's table to stdout."""
    args = build_parser().parse_args(argv)
    settle_places(args)
    from llamacy.formats.model_file import open_model
    from llamacy.model.mixes import MIXES
    from llamacy.model.quantize import fallbacks, write_model

    imatrix = imatrix_from(args)
    began = time.monotonic()
    with open_model(args.input) as model:
        _override(model, args.override_kv)
        steps = steps_from(args, model, imatrix)
        for (wanted, taken), count in fallbacks(steps).items():
            plural = f"{count} tensors: they become" if count > 1 else "1 tensor: it becomes"
            print(f"{wanted} does not divide the rows of {plural} {taken}", file=sys.stderr)
        if args.dry_run:
            print(table(steps))
        else:
            _refuse_itself(model, args)
            bar = Bar()
            write_model(model, args.output, steps, None if args.mix == COPY else MIXES[args.mix].file_type,
                        imatrix=imatrix, n_threads=fit_threads(args.threads), progress=bar.show,
                        keep_split=args.keep_split)  # fmt: skip
            bar.close()
            took = f", {time.monotonic() - began:.1f} s"
            where = _written(model, args)[0]
            print(f"{where}: {args.mix}, {len(steps)} tensors, {total(steps)}{took}", file=sys.stderr)
    return 0


def _override(model, pairs):
    """Set metadata of an open model; types are those that the new values have."""
    for key, value in pairs:
        model.metadata[key] = value
        model.value_types.pop(key, None)


def _writable(name):
    """Return the name of the type called `name` (any case) if it can be written; None for None."""
    from llamacy.formats.rewrite import writable

    return name and writable(name).name


def _written(model, args):
    """Return the paths that are written."""
    from llamacy.formats.gguf_split import part_paths

    return part_paths(args.output, len(model.paths)) if args.keep_split else [args.output]


def _refuse_itself(model, args):
    """Raise where an output is a file that is being read."""
    for output in _written(model, args):
        if any(os.path.exists(output) and os.path.samefile(output, path) for path in model.paths):
            raise UsageError(f"{output} is the input itself; write to another file")


def total(steps):
    """Return sizes before and after, and bits per weight, for a person."""
    before, after = sum(step.info.nbytes for step in steps), sum(step.nbytes for step in steps)
    n_elements = max(1, sum(step.info.n_elements for step in steps))
    return f"{before / 1e6:.1f} -> {after / 1e6:.1f} MB, {8 * after / n_elements:.2f} bits per weight"


def table(steps):
    """Return a line for each tensor: name, shape, type before and after, bytes after; and one for all."""
    names = [brief(step.info.name) for step in steps]
    width = max(map(len, names), default=0)
    lines = [
        f"{name:{width}}  {' x '.join(map(str, step.info.shape)):>16}  "
        f"{step.info.type.name:>7} -> {step.target.name:7}  {step.nbytes:>12}"
        for name, step in zip(names, steps, strict=True)
    ]
    return "\n".join([*lines, f"{len(steps)} tensors, {total(steps)}"])


class Bar:
    """How far it is: a bar that is redrawn on a terminal, elsewhere a line now and then; on stderr."""

    def __init__(self, stream=None, clock=time.monotonic):
        self.stream, self.clock = stream or sys.stderr, clock
        self.terminal, self.width = self.stream.isatty(), 0
        self.began = self.shown = clock()

    def show(self, step, done, total):
        """Say that `done` of `total` elements are written, `step` being at work."""
        from llamacy.train.progress import clock_time

        now = self.clock()
        if not self.terminal and now - self.shown < INTERVAL:
            return
        self.shown = now
        left = clock_time((now - self.began) * (total - done) / max(1, done))
        text = f"{100 * done // max(1, total):3} %  {brief(step.info.name)} {step.target.name}  {left} left"
        if not self.terminal:
            self.stream.write(text + "\n")
        else:
            room = min(30, shutil.get_terminal_size().columns - len(text) - 4)
            filled = room * done // max(1, total)
            bar = f"[{'=' * filled}{'-' * (room - filled)}] " if room >= 5 else ""
            self.stream.write("\r" + (bar + text).ljust(self.width))
            self.width = len(bar + text)
        self.stream.flush()

    def close(self):
        """Clear the bar away, for the line that says what was done."""
        if self.width:
            self.stream.write("\r" + " " * self.width + "\r")

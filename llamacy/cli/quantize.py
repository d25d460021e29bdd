"""bin/quantize: a model in a smaller type."""

import os
import shutil
import sys
import time

from llamacy.cli.common import add_threads_flag, fit_threads, optional, whole
from llamacy.cli.run import make_parser
from llamacy.errors import UsageError, brief

# Without a terminal a line at most this often, in seconds.
INTERVAL = 5.0


def build_parser():
    """Return the parser of `quantize`'s flags."""
    parser = make_parser(
        "quantize",
        "Write a model in another type: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, "
        "Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K, IQ4_NL, IQ4_XS, MXFP4, MXFP4_MOE, TQ1_0 or TQ2_0 (any case). The mixes "
        "of K types give more bits to the tensors where errors hurt most, as llama.cpp's do.",
    )
    parser.add_argument("input", metavar="IN", help="the model, best in F32, F16 or BF16; GGUF, split or not, or GGML")
    parser.add_argument("output", metavar="OUT", help="the GGUF file to write")
    parser.add_argument("type", metavar="TYPE", help="the type or mix of types")
    parser.add_argument("n_threads", metavar="THREADS", nargs="?", type=whole(1, 1024), help="the same as --threads")
    add_threads_flag(parser, "quantise")
    parser.add_argument("--allow-requantize", action="store_true",
                        help="accept a model that is quantised already: its errors stay")  # fmt: skip
    optional(parser, "--imatrix", dest="imatrix", metavar="FILE",
             help="weigh errors by an importance matrix that llama.cpp's imatrix wrote (GGUF or .dat)")  # fmt: skip
    parser.add_argument("--pure", action="store_true", help="no mix: every matrix gets the same type")
    parser.add_argument("--leave-output-tensor", action="store_true", help="copy the output matrix as it is")
    optional(parser, "--output-tensor-type", dest="output_type", metavar="T", help="the output matrix's type")
    optional(parser, "--token-embedding-type", dest="embedding_type", metavar="T", help="the embedding's type")
    parser.add_argument("--dry-run", action="store_true", help="print each tensor's type and size, and write nothing")
    return parser


def main(argv):
    """Quantise; progress and what was done go to stderr, --dry-run's table to stdout."""
    args = build_parser().parse_args(argv)
    from llamacy.formats.imatrix import read_imatrix
    from llamacy.formats.model_file import open_model
    from llamacy.model.mixes import MIXES, Wishes, mix_name
    from llamacy.model.quantize import fallbacks, plan, write_model

    name = mix_name(args.type)
    if name is None:
        raise UsageError(f"type {args.type!r} is unknown, wanted one of {', '.join(MIXES)}")
    types = [_writable(wish) for wish in (args.output_type, args.embedding_type)]
    imatrix = read_imatrix(args.imatrix) if args.imatrix else None
    began = time.monotonic()
    with open_model(args.input) as model:
        _refuse_itself(model, args)
        wishes = Wishes(args.pure, args.leave_output_tensor, *types, imatrix is not None)
        steps = plan(model, MIXES[name], wishes, args.allow_requantize)
        for (wanted, taken), count in fallbacks(steps).items():
            plural = f"{count} tensors: they become" if count > 1 else "1 tensor: it becomes"
            print(f"{wanted} does not divide the rows of {plural} {taken}", file=sys.stderr)
        if args.dry_run:
            print(table(steps))
        else:
            bar = Bar()
            write_model(model, args.output, steps, MIXES[name].file_type, imatrix=imatrix,
                        n_threads=fit_threads(args.n_threads if args.threads is None else args.threads),
                        progress=bar.show)  # fmt: skip
            bar.close()
            took = f", {time.monotonic() - began:.1f} s"
            print(f"{args.output}: {name}, {len(steps)} tensors, {total(steps)}{took}", file=sys.stderr)
    return 0


def _writable(name):
    """Return the name of the type called `name` (any case) if it can be written; None for None."""
    from llamacy import kernels
    from llamacy.formats.types import TYPES

    names = [TYPES[number].name for number in kernels.quants.writable()]
    if name is not None and name.upper() not in names:
        raise UsageError(f"type {name!r} cannot be written, wanted one of {', '.join(names)}")
    return name and name.upper()


def _refuse_itself(model, args):
    """Raise where the output is a file that is being read."""
    if any(os.path.exists(args.output) and os.path.samefile(args.output, path) for path in model.paths):
        raise UsageError(f"{args.output} is the input itself; write to another file")


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

"""`bench`'s flags, those of llama-bench: several values of one by commas, ranges or repetition."""

import argparse
import re

from llamacy.cli.common import add_cache_flags, add_lora_flags, add_model_flags
from llamacy.cli.run import make_parser
from llamacy.cli.values import optional, real, whole

# 128-512, 128-512+128, 128-1024*2: from, to, and how to go on (by 1)
RANGE = re.compile(r"(\d+)-(\d+)(?:([+*])(\d+))?")
MAX_VALUES = 1000


class Collect(argparse.Action):
    """Gather the values of a repeated flag; the first takes the place of the default."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = vars(namespace).setdefault("_given", {})
        given[self.dest] = given.get(self.dest, []) + values
        setattr(namespace, self.dest, given[self.dest])


def whole_list(low):
    """Return an argparse type: whole numbers from `low` up, `512`, `128,512` or `128-512+128`, as a list."""

    def numbers(text):
        found = [number for part in text.split(",") for number in _numbers(part, low)]
        if len(found) > MAX_VALUES:
            raise argparse.ArgumentTypeError(f"wanted at most {MAX_VALUES} values, got {len(found)} in {text!r}")
        return found

    return numbers


def _numbers(text, low):
    match = RANGE.fullmatch(text)
    if not match:
        return [whole(low)(text)]
    number, last, kind, by = whole(low)(match[1]), int(match[2]), match[3] or "+", int(match[4] or 1)
    if last < number or by < 1 or (kind == "*" and (by < 2 or number == 0)):
        raise argparse.ArgumentTypeError(f"wanted a range that grows, such as 128-512+128 or 128-1024*2, got {text!r}")
    found = []
    while number <= last and len(found) <= MAX_VALUES:
        found.append(number)
        number = number * by if kind == "*" else number + by
    return found


def both(text):
    """Parse `PP,TG`, a prompt and what is generated after it, into [(pp, tg)]."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"wanted PP,TG such as 512,128, got {text!r}")
    return [tuple(whole(1)(part) for part in parts)]


def build_parser():
    """Return the parser of `bench`'s flags."""
    parser = make_parser("bench", "Measure tokens per second with a model, as llama-bench does.")
    for flags, low, default, text in (
        (("-p", "--n-prompt"), 0, [512], "prompt lengths to measure, 0 = none"),
        (("-n", "--n-gen"), 0, [128], "generation lengths to measure, 0 = none"),
        (("-d", "--n-depth"), 0, [0], "tokens already in the cache"),
        (("-np", "--parallel"), 1, [1], "sequences at once"),
        (("-t", "--threads"), -1, [None], "threads, -1 or 0 = all processors (default: the physical cores)"),
    ):
        shown = "" if default == [None] else f" (default: {default[0]})"
        optional(parser, *flags, dest=flags[1][2:].replace("-", "_"), type=whole_list(low), default=default,
                 action=Collect, metavar="N,...", help=text + shown)  # fmt: skip
    optional(parser, "-pg", dest="prompt_and_gen", type=both, default=[], action=Collect, metavar="PP,TG",
             help="a prompt and what is generated after it, as one test (repeatable)")  # fmt: skip
    parser.add_argument("-r", "--repetitions", type=whole(1), default=5, metavar="N", help="repetitions of each test")
    parser.add_argument("--no-warmup", action="store_true", help="no unmeasured run of each test before")
    parser.add_argument("--delay", type=real(0, 3600), default=0, metavar="SECONDS", help="wait between tests")
    parser.add_argument("-o", "--output", choices=["md", "json", "jsonl", "csv"], default="md",
                        help="how the rows are printed")  # fmt: skip
    group = parser.add_argument_group("training")
    group.add_argument("--train", action="store_true", help="measure LoRA training steps on random tokens too")
    group.add_argument("--train-data", action="append", metavar="FILE",
                       help="measure epochs over a file's instructions too, only the answers learnt, in samples per "
                       "second")  # fmt: skip
    for flag, default, text in (
        ("--batch-size", 1, "sequences in a step"),
        ("--ctx-size", 256, "tokens in a sequence, of data: at most"),
        ("--lora-r", 8, "rank of the adapter"),
    ):
        group.add_argument(flag, type=whole(1), default=default, metavar="N", help=text)
    add_model_flags(parser, threads=False)
    add_cache_flags(parser)
    add_lora_flags(parser)
    return parser

"""Flag groups that several commands share, their value types, and what they open.

Nothing heavy is imported here: `--help` and wrong usage answer before NumPy or a model is loaded.
"""

import argparse
import math
import os
import re
import sys

from llamacy import system
from llamacy.cli.rope_flags import add_rope_flags, rope_overrides
from llamacy.cli.run import say
from llamacy.cli.values import Append, Extend, optional, real, whole
from llamacy.default_model import MODEL_NAME, default_model
from llamacy.errors import UsageError
from llamacy.generate.context import fit_context

LOAD_MODES = ("auto", "none", "mmap", "mlock", "mmap+mlock", "dio")


def add_model_flags(parser, *, ctx_size=None, names=("-m", "--model"), threads=True, action=None):
    """Add what every computing command takes: the model, threads, activations; `-c` too where `ctx_size` is given.

    `ctx_size` is the text shown as `-c`'s default ("4096, at most the model's"); unset, the value is None. Without
    `threads` the command has a `-t` of its own. action: argparse's for the model, where several may be named.
    """
    group = parser.add_argument_group("model")
    more = {"action": action} if action else {}
    said = f"the model, GGUF or GGML (default: {MODEL_NAME})"
    optional(group, *names, dest="model", metavar="FILE", help=said, **more)
    if ctx_size is not None:
        optional(group, "-c", "--ctx-size", "--ctx", dest="ctx_size", type=whole(0), metavar="N",
                 help=f"context in tokens, 0 = the model's own (default: {ctx_size})")  # fmt: skip
    if threads:
        add_threads_flag(group, "compute")
    group.add_argument("--activations", choices=["int8", "int16", "f32"], default="int8",
                       help="how activations enter products: int8 fast, int16 near to exact, f32 exact")  # fmt: skip
    group.add_argument("--no-mmap", action="store_true", help="read the whole model instead of mapping the file")
    group.add_argument("--mlock", action="store_true", help="keep the model in memory, where the system lets us")
    optional(group, "-lm", "--load-mode", dest="load_mode", choices=LOAD_MODES,
             help="both in one: none, mlock and dio do not map (default: auto, as mmap)")  # fmt: skip
    optional(group, "--rms-eps", dest="rms_eps", type=real(0, 1), metavar="F",
             help="norm epsilon, where the file does not say or is wrong")  # fmt: skip
    add_rope_flags(group)
    add_override_flag(group)


def add_engine_flags(parser):
    """Add how the engine generates; `engine_options(args)` makes Engine's arguments of them."""
    group = parser.add_argument_group("generation")
    group.add_argument("--draft-lookup", type=whole(0, 64), default=0, metavar="N",
                       help="guess up to N tokens ahead from equal text before, 0 = off; "
                       "the text stays the same, repetitive text comes faster")  # fmt: skip
    group.add_argument("--context-shift", action="store_true",
                       help="when the context is full, drop its older half and go on instead of stopping")  # fmt: skip
    group.add_argument("--no-context-shift", dest="context_shift", action="store_false", help="stop (the default)")


def engine_options(args):
    """Return Engine's arguments that add_engine_flags' flags mean."""
    return {"draft_lookup": args.draft_lookup, "context_shift": args.context_shift, "batch_size": args.batch_size}


CACHE_TYPES = ("s16", "f16", "q8_0", "f32")


def add_cache_flags(parser):
    """Add how the KV cache keeps what it holds, for the commands that generate or score."""
    group = parser.add_argument_group("cache")
    for flags, what in ((("-ctk", "--cache-type-k"), "keys"), (("-ctv", "--cache-type-v"), "values")):
        optional(group, *flags, dest=flags[1][2:].replace("-", "_"), choices=CACHE_TYPES,
                 help=f"how the cache keeps {what}: s16, whole numbers with a step, nearer and faster than f16; q8_0 "
                 "takes about half (default: s16, with --activations f32 f32)")  # fmt: skip


# --override-kv's types, as llama.cpp names them
OVERRIDES = {"int": int, "float": float, "bool": {"true": True, "false": False}.__getitem__, "str": str}


def add_override_flag(group):
    """Add --override-kv; `dict(args.override_kv)` is what it asks for."""
    optional(group, "--override-kv", dest="override_kv", default=[], action=Extend, type=overrides,
             metavar="KEY=TYPE:VALUE", help="another value for a metadata key; TYPE int, float, bool, str "
             "(repeatable, or several with commas)")  # fmt: skip


def overrides(text):
    """Parse `KEY=TYPE:VALUE` (llama.cpp's form), several with commas, into [(key, value), ...]."""
    # A comma that no KEY=TYPE: follows is part of a text.
    return [_override(part) for part in re.split(rf",(?=[^,=:]+=(?:{'|'.join(OVERRIDES)}):)", text)]


def _override(text):
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not (key and equals and colon and kind in OVERRIDES):
        raise argparse.ArgumentTypeError(f"wanted KEY=TYPE:VALUE with type {', '.join(OVERRIDES)}, got {text!r}")
    try:
        return key, OVERRIDES[kind](value)
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{key}: {value!r} is not of type {kind}") from None


def add_threads_flag(group, what):
    """Add -t; fit_threads(args.threads) says how many it means. `what`: what they do, for the help."""
    optional(group, "-t", "--threads", dest="threads", type=whole(-1, 1024), metavar="N",
             help=f"threads to {what} with, -1 or 0 = all processors (default: the physical cores)")  # fmt: skip


def fit_threads(threads):
    """Return how many threads `-t` means, see system.fit_threads; a note on stderr where there are not so many."""
    n_threads = system.fit_threads(threads)
    if threads is not None and threads > n_threads:
        print(f"--threads {threads}: there are {n_threads} processors, so {n_threads} are used", file=sys.stderr)
    return n_threads


class _AppendAdapter(Append):
    """Collect (path, scale) pairs from `--lora FILE[:SCALE]` and `--lora-scaled FILE SCALE` in one list, in order."""

    def __call__(self, parser, namespace, values, option_string=None):
        words = listed(values) if isinstance(values, str) else [values]
        for word in words:
            try:
                pair = adapter_and_scale(word) if isinstance(word, str) else (word[0], _scale(word[1]))
            except UsageError as error:
                raise argparse.ArgumentError(self, str(error)) from None
            super().__call__(parser, namespace, pair, option_string)


class _AppendScaled(_AppendAdapter):
    """`--lora-scaled`, whose two values may be one word in llama.cpp's newer form: FILE:SCALE, several with commas."""

    def pairs(self, word):
        """Return [(file, scale), ...] of such a word, [] for any other: a file whose scale is the next word."""
        parts = [part.rpartition(":") for part in listed(word)]
        return [(file, scale) for file, _, scale in parts] if all(_has_scale(part) for part in listed(word)) else []


def listed(text):
    """Return the parts of a text with commas, itself alone where it is a file's name."""
    return [text] if os.path.exists(text) else [part for part in text.split(",") if part] or [text]


def _has_scale(text):
    file, colon, scale = text.rpartition(":")
    try:
        return bool(file and colon and not os.path.exists(text) and isinstance(float(scale), float))
    except ValueError:
        return False


def _scale(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"wanted a finite number as the scale, got {text!r}")
    return value


def adapter_and_scale(text):
    """Split `FILE[:SCALE]` into (path, scale); without a scale it is 1.

    A path that exists as it stands wins, and so does a drive letter: `C:\\a.gguf` has no scale, `C:\\a.gguf:0.5` has.
    """
    head, colon, tail = text.rpartition(":")
    drive = len(head) == 1 and head.isalpha() and not os.path.exists(head)
    if not colon or not head or drive or os.path.exists(text):
        return text, 1.0
    try:
        float(tail)
    except ValueError:
        return text, 1.0
    return head, _scale(tail)


def add_lora_flags(parser):
    """Add the adapters to apply at run time; `args.lora` is a list of (path, scale), in the order given."""
    group = parser.add_argument_group("adapters")
    optional(group, "--lora", "--lora-adapter", dest="lora", default=[], action=_AppendAdapter,
             metavar="FILE[:SCALE]", help="apply this LoRA adapter (repeatable, or several with commas)")  # fmt: skip
    optional(group, "--lora-scaled", dest="lora", default=[], nargs=2, action=_AppendScaled,
             metavar=("FILE", "SCALE"), help="the same, its scale a word of its own, or FILE:SCALE")  # fmt: skip


def loading_from(args):
    """Return the Loading that add_model_flags' flags mean."""
    from llamacy.model.loading import Loading

    mode = args.load_mode or ""
    return Loading(
        activations=args.activations,
        threads=fit_threads(args.threads),
        mmap=not args.no_mmap and mode not in ("none", "mlock", "dio"),
        lock=args.mlock or "mlock" in mode,
        rms_eps=args.rms_eps,
        rope_theta=args.rope_theta,
        rope=rope_overrides(args),
        overrides=dict(args.override_kv),
        cache_types=(getattr(args, "cache_type_k", None), getattr(args, "cache_type_v", None)),
    )


def open_model_from(args):
    """Load the model that the flags name, with the adapters that they name; LlamacyError in one line otherwise."""
    path = args.model if args.model is not None else default_model()
    return loading_from(args).load(path, getattr(args, "lora", None) or (), say)


def context_of(args, model):
    """Return the context to use in tokens: what `-c` means, see fit_context.

    More than the model was trained on works, with a warning on stderr: people do it on purpose.
    """
    trained = model.config.n_ctx_train
    if (args.ctx_size or 0) > trained:
        print(f"warning: --ctx-size {args.ctx_size} is above the model's {trained}: text may degrade", file=sys.stderr)
    return fit_context(args.ctx_size, model.config)

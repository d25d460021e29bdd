"""How the next token is chosen: the flags of `main`, and of `server` as what its requests have by default."""

import argparse
import math

from llamacy.cli.values import Append, optional, real, whole
from llamacy.errors import LlamacyError, UsageError

# flags, SamplingParams' field, type, default, metavar, help
SAMPLING_FLAGS = [
    (("-s", "--seed"), "seed", whole(-1, 2**64 - 1), -1, "N", "random seed, -1 = a new one each time"),
    (("--temp", "--temperature"), "temperature", real(), 0.8, "F", "temperature, 0 = always the likeliest token"),
    (("--top-k",), "top_k", whole(), 40, "N", "keep the N likeliest tokens, 0 = all"),
    (("--top-p",), "top_p", real(0, 1), 0.95, "F", "keep the likeliest tokens that make up F together, 1 = all"),
    (("--min-p",), "min_p", real(0, 1), 0.05, "F", "drop tokens less likely than F times the likeliest, 0 = none"),
    (("--top-n-sigma", "--top-nsigma"), "top_n_sigma", real(), -1.0, "F",
     "drop tokens more than F standard deviations of the logits below the largest, 0 or less = none"),
    (("--xtc-probability",), "xtc_probability", real(0, 1), 0.0, "F", "XTC: chance to leave out top choices, 0 = off"),
    (("--xtc-threshold",), "xtc_threshold", real(0, 1), 0.1, "F", "XTC: what is a top choice, over 0.5 = off"),
    (("--typical", "--typical-p"), "typical_p", real(0, 1), 1.0, "F", "locally typical sampling, 1 = off"),
    (("--min-keep",), "min_keep", whole(0), 0, "N", "tokens that top-p, min-p, typical and XTC leave at least"),
    (("--repeat-penalty",), "repeat_penalty", real(1e-6), 1.0, "F", "penalise repeated tokens, 1 = off"),
    (("--repeat-last-n",), "repeat_last_n", whole(-1), 64, "N", "tokens looked at for it, 0 = off, -1 = all"),
    (("--presence-penalty",), "presence_penalty", real(), 0.0, "F", "subtracted once from tokens seen, 0 = off"),
    (("--frequency-penalty",), "frequency_penalty", real(), 0.0, "F", "subtracted once per time seen, 0 = off"),
    (("--dry-multiplier",), "dry_multiplier", real(0), 0.0, "F",
     "DRY: penalise going on with a repeated sequence, 0 = off"),
    (("--dry-base",), "dry_base", real(1), 1.75, "F", "DRY: times so much for each token that it is longer"),
    (("--dry-allowed-length",), "dry_allowed_length", whole(0), 2, "N", "DRY: up to here no more than the multiplier"),
    (("--dry-penalty-last-n",), "dry_penalty_last_n", whole(-1), 64, "N", "DRY: tokens looked at, 0 = off, -1 = all"),
    (("--dynatemp-range",), "dynatemp_range", real(), 0.0, "F",
     "let the temperature go so far up or down with the entropy, 0 = not at all"),
    (("--dynatemp-exp",), "dynatemp_exponent", real(0), 1.0, "F", "the power of the entropy in this"),
    (("--mirostat",), "mirostat", whole(0, 2), 0, "N",
     "Mirostat 1 or 2 instead of all samplers but the temperature, 0 = off"),
    (("--mirostat-lr",), "mirostat_eta", real(0), 0.1, "F", "Mirostat's learning rate, eta"),
    (("--mirostat-ent",), "mirostat_tau", real(0), 5.0, "F", "the surprise it aims at, tau, in bits a token"),
]  # fmt: skip
BREAKERS = ("\n", ":", '"', "*")
NO_BREAKERS = "none"
ORDER = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"


def add_sampling_flags(parser, title="sampling"):
    """Add how the next token is chosen; `sampling_from(args)` makes SamplingParams of them."""
    group = parser.add_argument_group(title)
    optional(group, "--samplers", "--sampling-seq", "--sampler-seq", dest="samplers", type=samplers, metavar="NAMES",
             help="which samplers, in which order: names with ; between them, or letters, e d s k y p m x t "
             f"(default: {ORDER})")  # fmt: skip
    for flags, field, kind, default, metavar, text in SAMPLING_FLAGS:
        group.add_argument(*flags, dest=field, type=kind, default=default, metavar=metavar, help=text)
    optional(group, "--dry-sequence-breaker", dest="breakers", default=[], action=Append, metavar="TEXT",
             help=r"""DRY: a sequence ends here; \n, \t and so on are read; none = nowhere (repeatable; """
             r"""default: \n, :, ", *)""")  # fmt: skip
    optional(group, "--logit-bias", "-l", dest="logit_bias", default=[], action=Append, type=logit_bias,
             metavar="ID+V", help="add V to this token's logit, ID-V subtracts (repeatable)")  # fmt: skip
    group.add_argument("--ignore-eos", action="store_true", help="never choose an end-of-text token, go on instead")
    optional(group, "--grammar", dest="grammar", metavar="TEXT", help="the text must follow this GBNF grammar")
    optional(group, "--grammar-file", dest="grammar_file", metavar="FILE", help="the same from a file")
    optional(group, "-j", "--json-schema", dest="json_schema", metavar="SCHEMA",
             help="the text must be JSON that fits this JSON schema; {} = any JSON")  # fmt: skip
    optional(group, "-jf", "--json-schema-file", dest="json_schema_file", metavar="FILE", help="the same from a file")


def samplers(text):
    """Parse names or letters of samplers into SamplingParams.samplers."""
    from llamacy.generate.samplers.params import samplers_from_text

    try:
        return samplers_from_text(text)
    except LlamacyError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("samplers: ")) from None


def logit_bias(text):
    """Parse `ID+V` or `ID-V` (llama.cpp's form) into (id, bias); `ID-inf` forbids the token."""
    for sign in "+-":
        token, found, value = text.partition(sign)
        if not found or not token.strip().isdigit():
            continue
        try:
            bias = float(sign + value)
        except ValueError:
            break
        if bias < math.inf:
            return int(token), bias
    raise argparse.ArgumentTypeError(f"wanted ID+BIAS or ID-BIAS such as 15043+1.5, got {text!r}")


def sampling_values(args):
    """Return {SamplingParams' field: value} of parsed flags."""
    from llamacy.cli.prompt import unescape
    from llamacy.generate.samplers import DEFAULT_ORDER
    from llamacy.generate.samplers.params import MAX_BREAKERS

    if len(args.breakers) > MAX_BREAKERS:
        raise UsageError(f"--dry-sequence-breaker: wanted at most {MAX_BREAKERS}, got {len(args.breakers)}")
    breakers = tuple(unescape(text) for text in args.breakers if text != NO_BREAKERS)
    values = {field: getattr(args, field) for _, field, *_ in SAMPLING_FLAGS}
    return values | {
        "samplers": DEFAULT_ORDER if args.samplers is None else args.samplers,
        "dry_sequence_breakers": breakers if args.breakers else BREAKERS,
        "logit_bias": tuple(args.logit_bias),
        "ignore_eos": args.ignore_eos,
    }


def sampling_from(args):
    """Return the SamplingParams of parsed flags."""
    from llamacy.generate.samplers.params import SamplingParams

    return SamplingParams(**sampling_values(args))


def check_bias(args, n_vocab):
    """Refuse a bias for a token that the model does not have."""
    wrong = next((token for token, _ in args.logit_bias if token >= n_vocab), None)
    if wrong is not None:
        raise UsageError(f"--logit-bias: wanted a token id from 0 to {n_vocab - 1}, got {wrong}")


class Format:
    """What the text must follow: `name` (grammar or json_schema) and its `value`, of a flag or of a file."""

    def __init__(self, name, value):
        self.name, self.value = name, value

    def automaton(self, tokenizer=None):
        """Return the Automaton; RequestError where the grammar or schema is wrong. tokenizer: see gbnf."""
        if self.name == "grammar":
            from llamacy.generate.gbnf import gbnf

            return gbnf(self.value, tokenizer)
        from llamacy.generate.json_grammar import json_schema

        return json_schema(self.value)


FORMATS = ("grammar", "grammar_file", "json_schema", "json_schema_file")


def format_from(args):
    """Return the Format that the flags ask for, None without; what is wrong with it is said before a model loads."""
    from llamacy.cli.prompt import read_text

    given = [name for name in FORMATS if getattr(args, name) is not None]
    if not given:
        return None
    flags = ["--" + name.replace("_", "-") for name in given]
    if len(given) > 1:
        raise UsageError(f"{flags[0]} and {flags[1]} are both given: name one")
    text, kind = getattr(args, given[0]), LlamacyError if given[0].endswith("_file") else UsageError
    where = flags[0]
    if kind is LlamacyError:
        where = f"{flags[0]} {text}"
        text = read_text(text)
    found = Format(given[0].removesuffix("_file"), text)
    try:
        if found.name == "json_schema":
            found.value = parse_json(text)
        found.automaton()
    except (LlamacyError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error).removeprefix("grammar: ")
        raise kind(f"{where}: {what}") from None
    return found


def parse_json(text):
    """Return what a JSON text says; LlamacyError in one line where it is none."""
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise LlamacyError(f"wanted JSON, got {text[:40]!r}: {error}") from None

"""What a training run is told to do: one frozen record, checked when it is made."""

import math
import re
from dataclasses import dataclass, field, fields

from llamacy.errors import UsageError
from llamacy.formats.architectures import SHARED_EXPERT, STACKED, adapted, aliases
from llamacy.train.schedule import SCHEDULES

# The matrices of a layer that can be adapted -> the names that people call them by (llama.cpp, Hugging Face, Meta).
TARGETS = {matrix.name: aliases(matrix) for matrix in adapted()}
# Those that are, unless said otherwise.
USUAL = tuple(name for name in TARGETS if name not in STACKED)
# What else a word stands for: in a layer with experts the MLP is the expert that all tokens share.
_ALSO = {name.removesuffix("_shexp"): (name,) for name in SHARED_EXPERT}
_WORDS = {"experts": STACKED, "experts.gate_up_proj": STACKED[:2], "gate_up_exps": STACKED[:2]}
# One of them, of one layer; an expert's by its number.
_NAMES = "|".join((*USUAL, *(rf"{name.removesuffix('_exps')}\.\d+" for name in STACKED)))
MATRIX = re.compile(rf"blk\.\d+\.({_NAMES})\.weight")
ALL_LINEAR = ("all-linear", "all_linear", "all")
DEFAULT_CTX = 512
MAX_RANK = 4096


def target_modules(text):
    """Return the matrices that a comma-separated list names, in TARGETS' order, and behind them what is an expression.

    An expression is PEFT's, of modules' names; commas within brackets are its own. UsageError names what is unknown.
    """
    by_alias, chosen, expressions = {word: list(names) for word, names in _WORDS.items()}, set(), []
    for name in TARGETS:
        for alias in dict.fromkeys((name, *_aliases(name))):
            by_alias.setdefault(alias, []).extend((name, *_ALSO.get(name, ())))
    for part in filter(None, _listed(text)):
        word = part.lower()
        if word in ALL_LINEAR:
            chosen.update(USUAL)
        elif (plain := word.removesuffix(".weight").removeprefix("mlp.")) in by_alias:
            chosen.update(by_alias[plain])
        elif is_expression(part):
            expressions.append(expression("--target-modules", part))
        elif MATRIX.fullmatch(part):
            expressions.append(part)
        else:
            raise UsageError(f"--target-modules: {word!r} is unknown; wanted all-linear or of {', '.join(TARGETS)}")
    if not chosen and not expressions:
        raise UsageError(f"--target-modules: the list is empty; wanted all-linear or of {', '.join(TARGETS)}")
    return (*(name for name in TARGETS if name in chosen), *dict.fromkeys(expressions))


def _listed(text):
    """Yield the parts between the commas of a list that stand in no bracket, without blanks around them."""
    depth, part = 0, ""
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            yield part.strip()
        part = "" if char == "," and depth == 0 else part + char
    yield part.strip()


def is_expression(word):
    """Tell whether a target is to be looked for among modules' names: no plain word, no tensor's name."""
    return word not in TARGETS and not MATRIX.fullmatch(word) and bool(re.search(r"[.\\^$*+?()\[\]{}|]", word))


def expression(flag, text):
    """Return the regular expression `text`; UsageError where it is none."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{flag}: {text!r} is no regular expression: {error}") from None
    return text


def rank_patterns(text):
    """Return ((expression, rank), ...) of "REGEX=N,REGEX=N"; UsageError where it is none."""
    return _patterns("--rank-pattern", text, int)


def alpha_patterns(text):
    """Return ((expression, alpha), ...) of "REGEX=F,REGEX=F"; UsageError where it is none."""
    return _patterns("--alpha-pattern", text, float)


def _patterns(flag, text, number):
    *parts, rest = re.split(r"=\s*([0-9.eE+-]+)\s*(?:,|$)", text)
    try:
        found = tuple(
            (expression(flag, part.strip()), number(value)) for part, value in zip(parts[::2], parts[1::2], strict=True)
        )
    except ValueError:
        found = ()
    if rest.strip() or not found or not all(part for part, _ in found):
        raise UsageError(f"{flag}: wanted REGEX=NUMBER, with commas between several, got {text!r}")
    return found


def layer_ranges(text):
    """Return ((first, last), ...) of "3,10-20,25-", last None for the end; UsageError where it is no such list."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(-\s*(\d{1,9})?)?\s*", part)
        if match is None or (match[3] and int(match[3]) < int(match[1])):
            raise UsageError(f"--layers: wanted numbers and ranges such as 3,10-20,25-, got {text!r}")
        last = match[1] if match[2] is None else match[3]
        found.append((int(match[1]), None if last is None else int(last)))
    return tuple(found)


# Fields whose values are written as a text, and how that is read
LISTS = {"rank_pattern": rank_patterns, "alpha_pattern": alpha_patterns, "layers": layer_ranges}


def _aliases(name):
    """Return what else people call a target: those of experts with a word that tells them from other MLPs."""
    return tuple(f"experts.{alias}" for alias in TARGETS[name]) if name in STACKED else TARGETS[name]


def _option(default, flag, test=None, wanted=""):
    """A field with the flag it comes from, a test of its value, and words for what the test wants."""
    return field(default=default, metadata={"flag": flag, "test": test, "wanted": wanted})


def _at_least(low):
    return {"test": lambda value: value >= low, "wanted": f"{low} or more"}


POSITIVE = {"test": lambda value: 0 < value < math.inf, "wanted": "a number above 0"}
NOT_NEGATIVE = {"test": lambda value: 0 <= value < math.inf, "wanted": "0 or more"}
BELOW_ONE = {"test": lambda value: 0 <= value < 1, "wanted": "0 or more and below 1"}
SOME_RANKS = {
    "test": lambda value: all(name in TARGETS and 1 <= rank <= MAX_RANK for name, rank in value),
    "wanted": f"ranks from 1 to {MAX_RANK}",
}
PATTERN_RANKS = {
    "test": lambda value: all(type(rank) is int and 1 <= rank <= MAX_RANK for _, rank in value),
    "wanted": f"ranks from 1 to {MAX_RANK}",
}
PATTERN_ALPHAS = {
    "test": lambda value: all(0 < alpha < math.inf for _, alpha in value),
    "wanted": "numbers above 0",
}
SOME_TARGETS = {
    "test": lambda value: (
        value and all(name in TARGETS or MATRIX.fullmatch(name) or is_expression(name) for name in value)
    ),
    "wanted": "some of " + ", ".join(TARGETS),
}


# --method: plain fine-tuning, or learning from preferences (preference.py has a class for each).
METHODS = ("sft", "dpo", "orpo", "kto")
# The fields by which one way of training is told from another.
RECIPE = ("method", "beta", "loraplus_ratio", "init_weights", "neftune_alpha", "dora", "rank_pattern", "alpha_pattern")
# --init-weights -> what new pairs begin as
INITIAL = {"default": "A by chance, B zero", "pissa": "the largest singular values of the matrix, trained"}


@dataclass(frozen=True)
class TrainOptions:
    """How to train: lengths in tokens, rates per optimiser step; None where a value follows from the others.

    UsageError at once, naming the flag, for a value out of range.
    """

    # the run
    n_ctx: int = _option(DEFAULT_CTX, "--ctx-size", **_at_least(2))
    batch_size: int = _option(1, "--batch-size", **_at_least(1))
    grad_acc: int = _option(1, "--grad-acc", **_at_least(1))
    epochs: int = _option(2, "--epochs", **_at_least(1))
    max_steps: int | None = _option(None, "--max-steps", **_at_least(1))
    shuffle: bool = _option(True, "--shuffle")
    seed: int = _option(42, "--seed", lambda value: 0 <= value < 1 << 63, "0 or more")
    mask_prompt: bool = _option(True, "--mask-prompt")

    # what is learnt from the answers
    method: str = _option("sft", "--method", METHODS.__contains__, f"one of {', '.join(METHODS)}")
    beta: float = _option(0.1, "--beta", **POSITIVE)

    # AdamW
    learning_rate: float = _option(1e-4, "--learning-rate", **POSITIVE)
    lr_schedule: str = _option("cosine", "--lr-schedule", SCHEDULES.__contains__, f"one of {', '.join(SCHEDULES)}")
    warmup_steps: int | None = _option(None, "--warmup-steps", **_at_least(0))
    warmup_ratio: float | None = _option(None, "--warmup-ratio", **BELOW_ONE)
    min_lr_ratio: float | None = _option(None, "--min-lr-ratio", **BELOW_ONE)
    decay_ratio: float | None = _option(None, "--decay-ratio", **BELOW_ONE)
    loraplus_ratio: float = _option(1.0, "--loraplus-ratio", **POSITIVE)
    neftune_alpha: float = _option(0.0, "--neftune-alpha", **NOT_NEGATIVE)
    weight_decay: float = _option(0.0, "--weight-decay", **NOT_NEGATIVE)
    beta1: float = _option(0.9, "--beta1", **BELOW_ONE)
    beta2: float = _option(0.999, "--beta2", **BELOW_ONE)
    adam_eps: float = _option(1e-8, "--adam-eps", **POSITIVE)
    max_grad_norm: float = _option(1.0, "--max-grad-norm", **NOT_NEGATIVE)

    # the adapter
    rank: int = _option(8, "--rank", lambda value: 1 <= value <= MAX_RANK, f"from 1 to {MAX_RANK}")
    alpha: float = _option(16.0, "--lora-alpha", **POSITIVE)
    rslora: bool = _option(False, "--rslora")
    lora_dropout: float = _option(0.0, "--lora-dropout", **BELOW_ONE)
    init_weights: str = _option("default", "--init-weights", INITIAL.__contains__, f"one of {', '.join(INITIAL)}")
    dora: bool = _option(False, "--dora")
    ranks: tuple = _option((), "--rank-wq and so on", **SOME_RANKS)
    rank_pattern: tuple = _option((), "--rank-pattern", **PATTERN_RANKS)
    alpha_pattern: tuple = _option((), "--alpha-pattern", **PATTERN_ALPHAS)
    targets: tuple = _option(USUAL, "--target-modules", **SOME_TARGETS)
    layers: tuple = _option((), "--layers")
    num_layers: int | None = _option(None, "--num-layers", **_at_least(1))

    # memory: None lets the memory there is decide
    checkpointing: bool | None = _option(None, "--use-checkpointing")

    # measuring and keeping
    save_every: int = _option(1, "--save-every", **_at_least(0))
    save_total_limit: int | None = _option(None, "--save-total-limit", **_at_least(1))
    save_every_steps: int = _option(0, "--save-every-steps", **_at_least(0))
    val_split: float = _option(0.0, "--val-split", **BELOW_ONE)
    eval_every: int = _option(0, "--eval-every", **_at_least(0))
    early_stop: int = _option(0, "--early-stop", **_at_least(0))

    def __post_init__(self):
        for row in fields(self):
            value, test = getattr(self, row.name), row.metadata["test"]
            if value is not None and test and not test(value):
                raise UsageError(f"{row.metadata['flag']}: wanted {row.metadata['wanted']}, got {value!r}")
        if self.neftune_alpha and self.method != "sft":
            raise UsageError(f"--neftune-alpha: --method {self.method} looks at an answer twice; leave the noise away")
        if self.layers and self.num_layers is not None:
            raise UsageError("--layers and --num-layers are both given: name one")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UsageError("--warmup-steps and --warmup-ratio are both given: name one")
        if self.method in ("dpo", "kto") and not self.mask_prompt:
            raise UsageError(f"--train-on-prompt: --method {self.method} looks at the answers alone; leave it away")

    @property
    def file_alpha(self):
        """The alpha to train and write with: rsLoRA divides by sqrt(r) where LoRA divides by r."""
        return self.alpha * math.sqrt(self.rank) if self.rslora else self.alpha


def recipe(options):
    """Return what of the method is not as plain LoRA has it, by the fields' names, None for plain LoRA: runs that go on
    from a checkpoint must share it.
    """
    found = {name: getattr(options, name) for name in RECIPE}
    changed = {name: value for name, value in found.items() if value != getattr(TrainOptions, name)}
    if options.method == "sft":
        changed.pop("beta", None)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()} or None

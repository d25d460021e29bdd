"""What a request may say about how its tokens are chosen, and what each value may be."""

from dataclasses import dataclass

from llamacy.errors import RequestError
from llamacy.generate.samplers import DEFAULT_ORDER, LETTERS, NAMES

FLOAT32_MAX = 3.4e38
# A chain may name a sampler twice, but not without end.
MAX_SAMPLERS = 64
MAX_BREAKERS = 64

# What each field may hold: (type, lowest, highest); None leaves a side open.
LIMITS = {
    "temperature": (float, None, None),
    "dynatemp_range": (float, None, None),
    "dynatemp_exponent": (float, 0, None),
    "top_k": (int, None, None),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "typical_p": (float, 0, 1),
    "top_n_sigma": (float, None, None),
    "xtc_probability": (float, 0, 1),
    "xtc_threshold": (float, 0, 1),
    "min_keep": (int, 0, None),
    "repeat_penalty": (float, 1e-6, None),
    "repeat_last_n": (int, -1, None),
    "presence_penalty": (float, None, None),
    "frequency_penalty": (float, None, None),
    "dry_multiplier": (float, 0, None),
    "dry_base": (float, 1, None),
    "dry_allowed_length": (int, 0, None),
    "dry_penalty_last_n": (int, -1, None),
    "mirostat": (int, 0, 2),
    "mirostat_tau": (float, 0, None),
    "mirostat_eta": (float, 0, None),
    "seed": (int, -1, 2**64 - 1),
    "n_probs": (int, 0, None),
}


@dataclass(frozen=True)
class SamplingParams:
    """How one request chooses its tokens; a value outside LIMITS is a RequestError that names the field."""

    temperature: float = 0.8  # <= 0: always the likeliest token, the lowest id on ties
    dynatemp_range: float = 0.0  # how far below and above `temperature` the entropy moves it; <= 0: not at all
    dynatemp_exponent: float = 1.0
    top_k: int = 40  # <= 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0  # <= 0: off
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1  # > 0.5: off
    min_keep: int = 0  # tokens that top_p, min_p, typ_p and xtc leave at least
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # 0: no penalties, -1: the whole context
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64  # 0: off, -1: the whole context
    dry_sequence_breakers: tuple = ("\n", ":", '"', "*")
    mirostat: int = 0  # 1, 2: Mirostat of that version instead of the chain; temperature stays
    mirostat_tau: float = 5.0  # the surprise to aim at, bits a token
    mirostat_eta: float = 0.1  # how quickly it is approached
    samplers: tuple = DEFAULT_ORDER
    seed: int = -1  # -1: a new one for each request
    logit_bias: tuple = ()  # of (id, bias); a bias of minus infinity forbids the token
    ignore_eos: bool = False
    n_probs: int = 0
    post_sampling_probs: bool = False  # n_probs are those that the token was drawn by, not the model's

    def __post_init__(self):
        for name, (kind, low, high) in LIMITS.items():
            check_number(name, getattr(self, name), kind, low, high)
        sampler_names(self.samplers)


def check_number(name, value, kind, low, high):
    """Raise RequestError unless `value` is a whole number (or any, where `kind` is float) from `low` to `high`."""
    kinds = (int,) if kind is int else (int, float)
    fine = isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX
    if fine and (low is None or value >= low) and (high is None or value <= high):
        return
    noun = "a whole number" if kind is int else "a number"
    sides = [f"at least {low}" if low is not None else "", f"at most {high}" if high is not None else ""]
    wanted = " ".join([noun, " and ".join(filter(None, sides))]).strip()
    raise RequestError(f"{name}: wanted {wanted}, got {value!r:.60}")


def sampler_names(names):
    """Return the samplers that llama.cpp's names mean, in the order given; RequestError names an unknown one."""
    if len(names) > MAX_SAMPLERS:
        raise RequestError(f"samplers: wanted at most {MAX_SAMPLERS}, got {len(names)}")
    for name in names:
        if not isinstance(name, str) or name not in NAMES:
            raise RequestError(f"samplers: wanted names of {', '.join(DEFAULT_ORDER)}, got {name!r:.60}")
    return tuple(NAMES[name] for name in names)


def samplers_from_text(text):
    """Read names with semicolons between them, or letters: `top_k;temperature` or `kt`."""
    if text and all(letter in LETTERS for letter in text):
        return sampler_names(tuple(LETTERS[letter] for letter in text))
    return sampler_names(tuple(filter(None, (name.strip() for name in text.split(";")))))

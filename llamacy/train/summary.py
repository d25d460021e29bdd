"""What a person should see before a run: how much data there is, what is learnt of it, and one sample as text."""

from dataclasses import dataclass
from hashlib import blake2b

from llamacy.errors import printable

# Up to this many samples all are looked at, of more so many, spread over the data.
LOOKED_AT = 1000
# Of a sample's text so many characters are shown, at each end.
SHOWN = 300
OPEN, CLOSE = "⟦", "⟧"


@dataclass(frozen=True)
class Summary:
    """n samples in an epoch, of which n_seen were tokenised: their tokens in all, the longest, the trained ones, and
    how many are what an earlier one is, token for token.
    """

    n: int
    n_seen: int
    tokens: int
    longest: int
    trained: int
    duplicates: int

    def lines(self):
        """Return the summary in words; numbers of all samples are estimates where not all were looked at."""
        whole = self.n_seen == self.n
        mean = self.tokens / max(1, self.n_seen)
        about = "" if whole else "about "
        line = (
            f"an epoch: {self.n} samples, {about}{round(mean * self.n):,} tokens (mean {mean:.0f}, longest "
            f"{self.longest}), {100 * self.trained / max(1, self.tokens):.0f} % of them learnt"
        )
        if self.duplicates:
            line += f"; duplicates: {self.duplicates}" + ("" if whole else f" of {self.n_seen} looked at")
        return [line]


def summary(data):
    """Return the Summary of samples: len() and [i]."""
    stride = -(-len(data) // LOOKED_AT)
    seen, tokens, longest, trained, duplicates = set(), 0, 0, 0, 0
    indices = range(0, len(data), stride)
    for i in indices:
        sample = data[i]
        ids = sample.ids
        key = blake2b(ids.tobytes(), digest_size=16).digest()
        duplicates += key in seen
        seen.add(key)
        tokens, longest, trained = tokens + len(ids), max(longest, len(ids)), trained + int(sample.trained.sum())
    return Summary(len(data), len(indices), tokens, longest, trained, duplicates)


def marked(sample, tokenizer):
    """Return a sample as text, what is learnt of it between ⟦ and ⟧."""
    parts, run, inside = [], [], False
    for token, flag in [*zip(sample.ids.tolist(), sample.trained.tolist(), strict=True), (None, None)]:
        if flag != inside or token is None:
            text = b"".join(map(tokenizer.token_bytes, run)).decode(errors="replace")
            if run:
                parts.append(OPEN + text + CLOSE if inside else text)
            run, inside = [], flag
        run.append(token)
    return "".join(parts)


def shown_lines(sample, tokenizer):
    """Return a sample's marked text as lines for a terminal, of a long one its two ends; each of a Preference."""
    if hasattr(sample, "samples"):
        return [line for each in sample.samples for line in shown_lines(each, tokenizer)]
    text = marked(sample, tokenizer)
    if len(text) > 2 * SHOWN + 20:
        text = f"{text[:SHOWN]} ... {text[-SHOWN:]}"
    return [f"  | {printable(line)}" for line in text.split("\n")]

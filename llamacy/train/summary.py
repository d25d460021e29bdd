"""What a person should see before a run: how much data there is, what is learnt of it, and one sample as text."""

from dataclasses import dataclass
from hashlib import blake2b

from llamacy.errors import printable

# Up to this many samples all are looked at, of more so many, spread over the data.
LOOKED_AT = 1000
# Of a sample's text so many characters are shown, at each end.
SHOWN = 300
# A line of a whole sample has so many at most.
LONG = 500
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


def whole_lines(sample, tokenizer):
    """Return a sample's marked text as lines for a terminal, those of each of a Preference."""
    texts = [marked(each, tokenizer) for each in getattr(sample, "samples", (sample,))]
    lines = [printable(line) for text in texts for line in text.split("\n")]
    # a line that is too long for a terminal's memory goes on behind a +
    return [f"  {'+' if at else '|'} {line[at : at + LONG]}" for line in lines for at in range(0, len(line) or 1, LONG)]


def shown_lines(sample, tokenizer):
    """The same, but of a long text its two ends."""
    texts = [marked(each, tokenizer) for each in getattr(sample, "samples", (sample,))]
    short = [text if len(text) <= 2 * SHOWN + 20 else f"{text[:SHOWN]} ... {text[-SHOWN:]}" for text in texts]
    return [f"  | {printable(line)}" for text in short for line in text.split("\n")]


def token_lines(sample, tokenizer):
    """Return a line for each token of a sample, a * at those that are learnt: its id, its text."""
    return [
        f"{'*' if trained else ' '} {token:6} {quoted(tokenizer.token_bytes(token))}"
        for part in getattr(sample, "samples", (sample,))
        for token, trained in zip(part.ids.tolist(), part.trained.tolist(), strict=True)
    ]


def quoted(raw):
    """Return a token's bytes as a quoted text, or as bytes where they are only part of a character."""
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return repr(raw)

"""Drafts without a second model: how the text went on where its last tokens stood before (prompt lookup decoding).

The engine computes a draft's tokens in one step and keeps those that would have been chosen anyway, so a draft can
make a text faster but never another one. (Idea: Saxena, Prompt Lookup Decoding, 2023.)
"""

from collections import defaultdict

# The shortest run of tokens that counts as having stood before, and how far back equal runs are compared.
SHORTEST, LONGEST = 2, 64
# Earlier places looked at, latest first: bounds the time on texts that repeat one pair forever.
MOST_PLACES = 128
# What a step takes, in steps of one token of one sequence: once, and for each token in it. Measured on two AVX2 cores:
# 2, 4, 8, 16 tokens take 1.7, 2.3, 4.0, 7.2 (135M parameters) and 1.5, 1.7, 3.2, 6.2 (1.1B). Kernels work in fours.
STEP, TOKEN, FOUR = 0.6, 0.4, 4
# The share of right guesses that a text begins with, and how much of it each guess replaces.
TRUST, NEWS = 0.75, 1 / 8


class Lookup:
    """Knows where each run of SHORTEST tokens of one growing text ends."""

    def __init__(self):
        self._ends = defaultdict(list)  # run -> the positions right behind it
        self._done = 0

    def draft(self, text, most):
        """Return up to `most` ids that may follow `text` (ids): what followed the longest run that ends it, last time.

        `text` must begin with what earlier calls were given. Where the run reaches the end of the text, the draft goes
        on with its own beginning: a repetition is repeated.
        """
        for end in range(max(self._done, SHORTEST), len(text)):
            self._ends[tuple(text[end - SHORTEST : end])].append(end)
        self._done = max(self._done, len(text))
        places = self._ends.get(tuple(text[-SHORTEST:]), ())[-MOST_PLACES:]
        if most < 1 or not places:
            return []
        place = max(reversed(places), key=lambda end: _common_end(text, end))
        found = []
        for at in range(place, place + most):
            found.append(text[at] if at < len(text) else found[at - len(text)])
        return found


class Trust:
    """How often guesses were right lately, and so how many of them are worth computing."""

    def __init__(self):
        self.share = TRUST

    def tell(self, right):
        """Count a guess that was right or wrong."""
        self.share += NEWS * (right - self.share)

    def worth(self, most, n_sequences):
        """Return the number of guesses, 0 to `most`, that gives the most tokens in the least time.

        n_sequences share the step. A guess counts only where all before it are right; with k of them and a token of
        its own a step fills fours of tokens best.
        """

        def speed(k):
            return sum(self.share**i for i in range(k + 1)) / (STEP / n_sequences + TOKEN * (1 + k))

        return max((0, *range(FOUR - 1, most, FOUR), most), key=speed)


def _common_end(text, end):
    """Return how many tokens before `end` equal those at the end of `text`, LONGEST at most."""
    n = SHORTEST
    while n < min(LONGEST, end) and text[end - 1 - n] == text[-1 - n]:
        n += 1
    return n

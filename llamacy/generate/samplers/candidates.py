"""The tokens that are still in the running. Axis: V = n_vocab."""

import math

import numpy as np

from llamacy.kernels.text import sampling as vocabulary

# A bound that a number meets exactly on paper is met: sums of probabilities from f32 logits are that near.
EDGE = 1e-6


class NoChoice(Exception):
    """No candidate has a finite logit."""


class Candidates:
    """At first the whole vocabulary, `row` (V, float32), in which a stage may change() some logits; from the first
    stage on that leaves tokens out a list: `ids` (n, None before) and their logits `values` (n, float64).

    `silent` counts candidates at minus infinity that are not in the list: no stage can choose them, but they are there.
    """

    __slots__ = ("row", "ids", "values", "is_sorted", "silent", "_changed")

    def __init__(self, row):
        self.row, self._changed = row, []
        self.ids = self.values = None
        self.is_sorted, self.silent = False, 0

    def change(self, ids):
        """Return the row to change at `ids`, until restore(): copying it would cost more than everything else."""
        self._changed.append((ids, self.row[ids]))
        return self.row

    def restore(self):
        """Put back what was changed in the row."""
        for ids, values in reversed(self._changed):
            self.row[ids] = values

    def take(self, ids, values, is_sorted=False):
        """Go on with a list: `ids` and their logits; NoChoice where none of them can be chosen."""
        self.ids, self.values, self.is_sorted = ids, values.astype(np.float64), is_sorted
        if not len(ids) or not math.isfinite(self.top):
            raise NoChoice

    def make_list(self, floor=-math.inf):
        """Make the list, where there is none yet, of the tokens whose logits are at least `floor`."""
        if self.ids is None:
            ids = np.flatnonzero(self.row > floor if floor == -math.inf else self.row >= np.float32(floor))
            self.take(ids, self.row[ids])
            self.silent = len(self.row) - len(ids)

    def keep(self, which):
        """Keep the candidates at `which`: a slice, a mask or ascending positions."""
        self.ids, self.values = self.ids[which], self.values[which]
        self.silent = 0

    def keep_first(self, n):
        """Keep the first n of a sorted list; the silent ones come last in it."""
        if self.silent:
            self.silent = min(max(n - len(self.ids), 0), self.silent)
        self.ids, self.values = self.ids[:n], self.values[:n]

    @property
    def count(self):
        """How many candidates there are, those at minus infinity included."""
        return len(self.ids) + self.silent

    @property
    def top(self):
        """The largest logit."""
        return self.values[0] if self.is_sorted else self.values.max()

    def weights(self):
        """Return exp(logit - largest logit) of the candidates (n), float64: probabilities but for their sum."""
        weights = self.values - self.top
        return np.exp(weights, weights)

    def probabilities(self):
        """Return the softmax over the candidates (n), float64."""
        weights = self.weights()
        return weights / weights.sum()

    def sort(self):
        """Order by logit, largest first, the lower id first on ties."""
        if not self.is_sorted:
            order = np.lexsort((self.ids, -self.values))
            self.ids, self.values, self.is_sorted = self.ids[order], self.values[order], True


def likeliest(row):
    """Return the id of the largest logit of row (V), the lowest on ties; NoChoice when there is none."""
    best = vocabulary.argmax(row)
    if best < 0 or not math.isfinite(row[best]):
        raise NoChoice
    return int(best)


def uniform(seed):
    """Return a function that draws numbers in [0, 1), the same ones for the same seed (an int or a list of them)."""
    # Imported late: a greedy run does not pay for it.
    from numpy.random import default_rng

    return default_rng(seed).random

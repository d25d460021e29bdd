"""Which samples make up which step: a function of the seed and the step's number alone, so that a run can go on
anywhere and does not depend on threads.
"""

import math

import numpy as np

# Keeps the draws for the validation split apart from those of the epochs, which are numbered from 0.
SPLIT_STREAM = 1 << 32


def permutation(n, *stream):
    """Return a random order of 0..n-1, uint32 (n,): the same for the same stream of integers, wherever it runs.

    Sorting the raw output of PCG64, which NumPy promises never to change; its own `permutation` may.
    """
    keys = np.random.PCG64(np.random.SeedSequence(stream)).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.uint32)


def split(n, fraction, seed):
    """Return (training, validation) indices of n samples, both in file order; at least one in each.

    `fraction` of the samples is held out, chosen at random; 0 holds out none.
    """
    n_held = min(max(1, round(fraction * n)), n - 1) if fraction else 0
    order = permutation(n, seed, SPLIT_STREAM)
    return np.sort(order[n_held:]), np.sort(order[:n_held])


class Plan:
    """The steps of a run: `plan.step(i)` gives step i's micro-batches of sample indices, i from 0 to n_steps - 1.

    Every epoch takes each sample once; its last micro-batch and its last step may be smaller.
    """

    def __init__(self, n_samples, options):
        self.n_samples = n_samples
        self.options = options
        self.per_step = options.batch_size * options.grad_acc
        self.steps_per_epoch = math.ceil(n_samples / self.per_step)
        whole = options.epochs * self.steps_per_epoch
        self.n_steps = whole if options.max_steps is None else min(whole, options.max_steps)
        self._epoch, self._order = None, None

    def epoch(self, step):
        """Return the epoch, counted from 0, that a step belongs to."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step):
        """True for the last step of an epoch."""
        return (step + 1) % self.steps_per_epoch == 0

    def step(self, step):
        """Return the micro-batches of one step, lists of at most batch_size sample indices."""
        begin = step % self.steps_per_epoch * self.per_step
        chosen = self._order_of(self.epoch(step))[begin : begin + self.per_step].tolist()
        size = self.options.batch_size
        return [chosen[i : i + size] for i in range(0, len(chosen), size)]

    def _order_of(self, epoch):
        if epoch != self._epoch:
            shuffle, n = self.options.shuffle, self.n_samples
            self._order = permutation(n, self.options.seed, epoch) if shuffle else np.arange(n, dtype=np.uint32)
            self._epoch = epoch
        return self._order

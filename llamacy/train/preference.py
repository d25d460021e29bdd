"""Learning from preferences: DPO, ORPO and KTO, over the log-probabilities of answers and their gradients.

Each says of a step's answers what the loss is and, for every one of them, how the loss changes with its
log-probability; the trainer turns that into gradients, a weight for each token. The reference of DPO and KTO is the
model with the adapter switched off, so that no second model is in memory; what it says of an answer is kept.

    DPO   Rafailov et al., 2023     -log sigmoid(beta ((c - c0) - (r - r0))): log-probabilities, less the reference's
    ORPO  Hong et al., 2024         nll(chosen) - beta log sigmoid(log odds(c) - log odds(r)): means per token
    KTO   Ethayarajh et al., 2024   1 - sigmoid(+-beta (x - z)): z an estimate of the divergence, a constant
"""

import numpy as np

from llamacy.train.samples import Sample

# What is kept of the reference, by sequence.
MOST_KEPT = 1 << 18


class _Answers:
    """What DPO, ORPO and KTO share: sums of log-probabilities, the reference, rows of a step."""

    def __init__(self, options):
        self.beta, self.whole = options.beta, not options.mask_prompt
        self._kept = {}

    def forget(self):
        """Let go of what is kept of the reference."""
        self._kept.clear()

    def samples(self, items):
        """Return the sequences of a step's items: the wanted ones first, then the others."""
        rows = self.rows(items)
        return [sample for sample, _ in rows]

    def rows(self, items):
        """Return [(Sample, is it wanted), ...] of a step, wanted ones first, in the order of the items."""
        rows = [row for item in items for row in zip(item.samples, item.wanted, strict=True)]
        return [row for row in rows if row[1]] + [row for row in rows if not row[1]]

    def reference(self, trainer, samples):
        """Return the sums of log-probabilities (n,) without the adapter; those of sequences seen before are kept."""
        keys = [sample.ids.tobytes() + sample.trained.tobytes() for sample in samples]
        missing = [i for i, key in enumerate(keys) if key not in self._kept]
        if missing:
            with trainer.without_adapter():
                found = [float(row.sum()) for row in trainer.log_probabilities([samples[i] for i in missing])]
            if len(self._kept) + len(missing) > MOST_KEPT:
                self._kept.clear()
            fresh = {keys[i]: value for i, value in zip(missing, found, strict=True)}
            self._kept |= fresh if len(fresh) + len(self._kept) <= MOST_KEPT else {}
            return np.array([fresh[key] if key in fresh else self._kept[key] for key in keys])
        return np.array([self._kept[key] for key in keys])


def _pairs(values, n):
    """Return the halves of values of n chosen and n rejected answers."""
    return values[:n], values[n:]


def _nll(logps):
    """Return the mean negative log-probability of a token, of rows of log-probabilities."""
    return -float(np.concatenate(logps).mean())


def _rewards(chosen, rejected):
    """Return what the log says of rewards (n,) of chosen and rejected answers."""
    return {
        "reward_chosen": float(chosen.mean()), "reward_rejected": float(rejected.mean()),
        "reward_margin": float((chosen - rejected).mean()), "accuracy": float((chosen > rejected).mean()),
    }  # fmt: skip


class DPO(_Answers):
    """Direct preference optimisation with the sigmoid loss, pairs weighing alike."""

    needs = "pairs"

    def weigh(self, trainer, items, dropout=True):
        """Return (loss, weights, what the log says besides)."""
        rows, n = self.samples(items), len(items)
        logps = trainer.log_probabilities(rows, dropout)
        sums, before = np.array([row.sum() for row in logps]), self.reference(trainer, rows)
        chosen, rejected = _pairs(self.beta * (sums - before), n)
        margins = chosen - rejected
        loss = float(np.mean(np.logaddexp(0, -margins)))
        pull = self.beta * _sigmoid(-margins) / n
        weights = [np.full(len(row), -factor) for row, factor in zip(logps, [*pull, *-pull], strict=True)]
        c, r = _pairs(sums, n)
        more = _rewards(chosen, rejected) | {"chosen_logp": float(c.mean()), "rejected_logp": float(r.mean())}
        more["nll_loss"] = _nll(logps[:n])
        return loss, weights, more


class ORPO(_Answers):
    """Odds ratio preference optimisation: the chosen answers are learnt, and told apart from the rejected ones."""

    needs = "pairs"

    def samples(self, items):
        """The sequences; where prompts are learnt too, every token of the chosen ones is a target."""
        rows = super().samples(items)
        if not self.whole:
            return rows
        return [_wholly(row) for row in rows[: len(items)]] + rows[len(items) :]

    def weigh(self, trainer, items, dropout=True):
        """Return (loss, weights, what the log says besides)."""
        answers, rows, n = super().samples(items), self.samples(items), len(items)
        logps = trainer.log_probabilities(rows, dropout)
        # of a sequence's targets, those of its answer
        inside = [answer.trained[row.trained] for answer, row in zip(answers, rows, strict=True)]
        counts = np.array([flags.sum() for flags in inside])
        means = np.array([row[flags].sum() for row, flags in zip(logps, inside, strict=True)]) / counts
        c, r = _pairs(means, n)
        odds = (c - r) - (_log1mexp(c) - _log1mexp(r))
        ratio = -np.logaddexp(0, -odds)
        n_learnt = sum(len(row) for row in logps[:n])
        nll = -sum(row.sum() for row in logps[:n]) / n_learnt
        pull = self.beta * _sigmoid(-odds) / n
        by_mean = np.concatenate([-pull / -np.expm1(c), pull / -np.expm1(r)])
        weights = [np.where(flags, factor / count, 0.0)
                   for flags, factor, count in zip(inside, by_mean, counts, strict=True)]  # fmt: skip
        for row in weights[:n]:
            row -= 1 / n_learnt
        more = _rewards(self.beta * c, self.beta * r) | {
            "nll_loss": float(nll), "log_odds_ratio": float(ratio.mean()), "log_odds_chosen": float(odds.mean()),
            "chosen_logp": float(c.mean()), "rejected_logp": float(r.mean()),
        }  # fmt: skip
        return float(nll - self.beta * ratio.mean()), weights, more


class KTO(_Answers):
    """Kahneman-Tversky optimisation: answers that are wanted or not, which need not come in pairs."""

    needs = "labels"

    def rows(self, items):
        """Return the rows as they come, of pairs the wanted ones first: no prompt then meets an answer of its own."""
        if any(len(item.samples) > 1 for item in items):
            return super().rows(items)
        return [(item.samples[0], item.wanted[0]) for item in items]

    def weigh(self, trainer, items, dropout=True):
        """Return (loss, weights, what the log says besides)."""
        pairs = self.rows(items)
        rows, wanted = [sample for sample, _ in pairs], np.array([flag for _, flag in pairs])
        logps = trainer.log_probabilities(rows, dropout)
        x = np.array([row.sum() for row in logps]) - self.reference(trainer, rows)
        kl = self._divergence(trainer, rows)
        sign = np.where(wanted, 1.0, -1.0)
        kept = _sigmoid(self.beta * sign * (x - kl))
        pull = -self.beta * sign * kept * (1 - kept) / len(rows)
        weights = [np.full(len(row), factor) for row, factor in zip(logps, pull, strict=True)]
        more = {"kl": kl}
        if wanted.any():
            more["nll_loss"] = _nll([row for row, flag in zip(logps, wanted, strict=True) if flag])
        for name, flags in (("chosen", wanted), ("rejected", ~wanted)):
            if flags.any():
                more[f"reward_{name}"] = float(self.beta * x[flags].mean())
                more[f"{name}_logp"] = float(np.array([row.sum() for row in logps])[flags].mean())
        if wanted.any() and not wanted.all():
            more["reward_margin"] = more["reward_chosen"] - more["reward_rejected"]
        more["accuracy"] = float(((x > 0) == wanted).mean())
        return float(np.mean(1 - kept)), weights, more

    def _divergence(self, trainer, rows):
        """Estimate how far the model is from the reference: each prompt with the answer of the row before it."""
        mixed = [_joined(row, rows[i - 1]) for i, row in enumerate(rows)]
        logps = trainer.log_probabilities(mixed)
        with trainer.without_adapter():
            before = trainer.log_probabilities(mixed)
        return float(np.maximum(0.0, np.mean([a.sum() - b.sum() for a, b in zip(logps, before, strict=True)])))


def _joined(prompt, answer):
    """Return one row's prompt with another's answer, of which as much is kept as fits where the row's own did."""
    begin, other = int(np.argmax(prompt.trained)), int(np.argmax(answer.trained))
    ids = np.concatenate([prompt.ids[:begin], answer.ids[other:]])
    trained = np.concatenate([np.zeros(begin, np.bool_), answer.trained[other:]])
    most = max(len(prompt.ids), len(answer.ids))
    return Sample(ids[:most], trained[:most])


def _wholly(sample):
    """Return a sample of which every token but the first is a target."""
    return Sample(sample.ids, np.arange(len(sample.ids)) > 0)


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def _log1mexp(x):
    """log(1 - e^x) for x below 0; of a certain answer, x = 0, as near as f64 comes to it."""
    return np.log(-np.expm1(np.minimum(x, -1e-15)))


# --method -> what it is, None for plain fine-tuning; `needs` says what its data must be.
CLASSES = {"sft": None, "dpo": DPO, "orpo": ORPO, "kto": KTO}


def objective(options):
    """Return the method that the options name, None for plain fine-tuning."""
    made = CLASSES[options.method]
    return made and made(options)


def needs_of(method):
    """Return what a method's data must be: "pairs", "labels" (or pairs), "" for plain fine-tuning."""
    made = CLASSES[method]
    return made.needs if made else ""

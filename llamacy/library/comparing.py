"""What a model says with and without an adapter while that is being trained: greedy answers, surprise at samples."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np

from llamacy.generate.engine import Engine
from llamacy.generate.perplexity import MAX_LOGITS, cross_entropy
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams
from llamacy.train.estimate import ASKED

GREEDY = SamplingParams(temperature=0.0)


class Comparing:
    """Asks an open model, in the caller's thread; what is being trained is neither read nor changed.

    Adapters are applied as they would be to serve them, and taken off again. n_ctx: the context that the model is
    trained for, by which positions may turn.
    """

    def __init__(self, model, n_ctx):
        self._model, self._n_ctx, self._place = model, n_ctx, None

    def answers(self, prompts, n_predict, adapter=None, stop=False):
        """Return a greedy answer of up to n_predict tokens to each prompt (list of ids), cut ones with an ellipsis.

        None where `stop` became true meanwhile.
        """
        texts = []
        with self._with(adapter), self._quiet():
            engine = Engine(self._model, n_ctx=self._context(max(map(len, prompts)) + n_predict), batch_size=ASKED)
            try:
                for prompt in prompts:
                    if stop:
                        return None
                    ids = []

                    def take(token, ids=ids):
                        ids += [] if token.is_end else [token.id]
                        return bool(stop)

                    ended = engine.run(Request(list(prompt), GREEDY, n_predict=n_predict, on_token=take))
                    text = self._model.tokenizer.decode(ids)
                    texts.append(text + " ..." if ended.stop_type == "limit" else text)
            finally:
                engine.close()
        return None if stop else texts

    def surprise(self, samples, adapter=None, stop=False):
        """Return (sum of negative log-likelihoods in nats, their number) of the trained tokens of some Samples.

        None where `stop` became true meanwhile.
        """
        total, count = 0.0, 0
        with self._with(adapter), self._quiet():
            session = self._model.new_session(1, self._context(max(len(sample.ids) for sample in samples)), ASKED)
            rows = max(1, min(session.max_batch, MAX_LOGITS // self._model.config.n_vocab))
            for sample in samples:
                if stop:
                    return None
                # the token before each that is trained on says what it thinks of it
                wanted = np.flatnonzero(sample.trained) - 1
                for start in range(0, int(wanted[-1]) + 1, rows):
                    end = min(start + rows, int(wanted[-1]) + 1)
                    at = wanted[(wanted >= start) & (wanted < end)]
                    n = end - start
                    logits = session.step(sample.ids[start:end], range(start, end), [0] * n, at - start)
                    if len(at):
                        nll = cross_entropy(np.array(logits), sample.ids[at + 1])
                        total, count = total + float(nll.sum()), count + len(at)
        return None if stop else (total, count)

    def _context(self, n_tokens):
        """Return the positions of a cache: only where they decide how positions turn, as many as in training."""
        stretched = any(rope.is_stretched(self._n_ctx) for rope in self._model.config.ropes)
        return max(self._n_ctx, n_tokens) if stretched else n_tokens

    @contextlib.contextmanager
    def _with(self, adapter):
        """While this lasts the model has an adapter, None for none."""
        if adapter is None:
            yield
            return
        with self._quiet():
            self._place = self._model.add_adapter(adapter, 1.0, self._place)
        try:
            yield
        finally:
            self._model.remove_adapter(self._place)

    @contextlib.contextmanager
    def _quiet(self):
        """Warnings were given when the model was opened."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

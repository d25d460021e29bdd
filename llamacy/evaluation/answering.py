"""What a model makes of questions: which choice it finds likeliest, what it writes, how likely wanted answers are."""

from typing import NamedTuple

import numpy as np

from llamacy.evaluation.divergence import share
from llamacy.evaluation.matching import MATCHES
from llamacy.generate.engine import Engine
from llamacy.generate.perplexity import MAX_LOGITS, cross_entropy
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams

SLOTS = 8
# So many tokens more than the longest wanted answer are written at most: longer ones are wrong anyway.
MORE = 16


class Chosen(NamedTuple):
    """acc: the share of questions whose right choice is the likeliest; acc_norm: the likeliest per character."""

    acc: object
    acc_norm: object
    n: int
    items: list


class Written(NamedTuple):
    """accuracy: the share of answers that match; loss: mean -ln p of the wanted answers' tokens, as in training."""

    accuracy: object
    loss: float
    n: int
    items: list


class Reader:
    """Log-probabilities of sequences that begin alike: what two neighbours share is read once."""

    def __init__(self, model, n_ctx):
        self._session, self._held = model.new_session(1, n_ctx), []
        self._rows = max(1, min(self._session.max_batch, MAX_LOGITS // model.config.n_vocab))

    def nll(self, ids, begin):
        """Return -ln p f64 (len(ids) - begin,) of ids[begin:], each given those before it; begin >= 1."""
        kept = 0
        most = min(len(self._held), begin - 1)
        while kept < most and self._held[kept] == ids[kept]:
            kept += 1
        at = self._session.reusable(0, kept) if kept else 0
        found, end = [], len(ids) - 1
        while at < end:
            lead = at < begin - 1
            stop = min(at + self._session.max_batch, begin - 1) if lead else min(at + self._rows, end)
            scored = range(0) if lead else range(stop - at)
            logits = self._session.step(ids[at:stop], range(at, stop), [0] * (stop - at), scored)
            if scored:
                found.append(cross_entropy(logits, ids[at + 1 : stop + 1]))
            at = stop
        self._held = list(ids[:end])
        return np.concatenate(found)


def choose(model, questions, progress=None):
    """Return the Chosen of a model on Questions with choices, as lm-eval does: sums of the answers' log-probabilities.

    acc_norm divides them by the choices' numbers of characters. Of equals the first is taken.
    """
    reader, items = Reader(model, questions.longest()), []
    for question in questions.choices:
        sums = [-float(reader.nll(ids[:end], begin).sum()) for ids, begin, end in question.answers]
        each = [total / max(1, len(text)) for total, text in zip(sums, question.texts, strict=True)]
        best, best_norm = int(np.argmax(sums)), int(np.argmax(each))
        ids, begin, _ = question.answers[0]
        items.append({"prompt": model.tokenizer.decode(ids[:begin], True), "choices": list(question.texts)})
        items[-1] |= {"logprobs": sums, "right": question.right, "chosen": best, "chosen_norm": best_norm}
        items[-1]["correct"] = best == question.right
        if progress:
            progress(len(items), len(questions))
    n_right = sum(item["correct"] for item in items)
    n_norm = sum(item["chosen_norm"] == item["right"] for item in items)
    return Chosen(share(n_right, len(items)), share(n_norm, len(items)), len(items), items)


def write(model, questions, *, match="normalised", n_predict=None, progress=None):
    """Return the Written of a model: greedy answers, compared with the wanted ones by a row of MATCHES.

    n_predict: tokens of an answer at most; None: MORE than the longest wanted one.
    """
    most = n_predict or questions.longest_answer() + MORE
    n_ctx = max(len(task.prompt) for task in questions.tasks) + most + 1
    texts = _generate(model, [task.prompt for task in questions.tasks], most, n_ctx, progress)
    items = []
    for task, text in zip(questions.tasks, texts, strict=True):
        right = any(MATCHES[match](text, wanted) for wanted in task.wanted)
        prompt = model.tokenizer.decode(task.prompt, True)
        items.append({"prompt": prompt, "wanted": list(task.wanted), "got": text, "correct": right})
    reader, loss, n_tokens = Reader(model, questions.longest()), 0.0, 0
    for task in questions.tasks:
        learnt = np.flatnonzero(task.sample.trained)
        ids = [int(token) for token in task.sample.ids[: learnt[-1] + 1]]
        nll = reader.nll(ids, int(learnt[0]))
        loss += float(nll[learnt - learnt[0]].sum())
        n_tokens += len(learnt)
    return Written(share(sum(item["correct"] for item in items), len(items)), loss / n_tokens, len(items), items)


def _generate(model, prompts, most, n_ctx, progress):
    """Return the greedy texts behind prompts, without what ends them."""
    scales = [scale for _, scale in model.adapters]  # an engine takes them over
    engine = Engine(model, n_slots=min(SLOTS, len(prompts)), n_ctx=n_ctx, max_queue=len(prompts) + 1)
    texts, done = [[] for _ in prompts], 0
    try:
        requests = []
        for ids, prompt in zip(texts, prompts, strict=True):

            def take(token, ids=ids):
                if not token.is_end:
                    ids.append(token.id)

            requests.append(Request(list(prompt), SamplingParams(temperature=0), n_predict=most, on_token=take))
            engine.submit(requests[-1])
        while engine.busy or engine.queued:
            engine.step()
            n_ended = sum(request.result is not None for request in requests)
            if progress and n_ended > done:
                done = n_ended
                progress(done, len(prompts))
    finally:
        engine.close()
        for index, scale in enumerate(scales):
            model.set_adapter_scale(index, scale)
    for request in requests:
        if request.result.error:
            raise request.result.error
    return [model.tokenizer.decode(ids, True) for ids in texts]

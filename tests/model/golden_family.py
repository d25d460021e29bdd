"""A golden folder of a family (model.gguf, expected.json, adapter_init/, adapter_final/) against the engine.

    python -m tests.model.golden_family FOLDER ... [--activations f32] [--threads 2]

One line a check: its name, what was found, the bound, ok or FAILS; the exit code tells whether one failed. What the
fields of expected.json mean: tests/data/README.md. `checks(folder)` gives the same to a test.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from llamacy.errors import LlamacyError
from llamacy.formats.adapter import load_adapter
from llamacy.formats.architectures import key_of, of_expert
from llamacy.model import load_model
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.model.families import logits_of, mean_nll

# of logits: 5 decimals are recorded, and f32 sums in another order differ; of losses and of gradient norms, relative
LOGITS, SAME, LOSS, NORM = 2e-4, 2e-5, 2e-3, 1e-2
RATE, N_CTX = 1e-3, 128


class Golden:
    """One folder: its model, opened anew by each check, and what transformers and PEFT said of it."""

    def __init__(self, folder, activations="f32", threads=2):
        self.folder, self.how = Path(folder), {"activations": activations, "threads": threads}
        self.expected = json.loads((self.folder / "expected.json").read_text())
        self.tokens = self.expected["token_ids"]

    def model(self):
        """The model without adapters."""
        return load_model(self.folder / "model.gguf", **self.how)

    def adapter(self, which):
        """PEFT's adapter, "init" or "final"."""
        return load_adapter(self.folder / f"adapter_{which}")

    def in_parts(self, model, sizes):
        """Logits of the tokens, in steps of these sizes one after the other."""
        session, found, at = model.new_session(1, N_CTX), [], 0
        for size in sizes:
            n = np.arange(at, at + size)
            ids = np.array(self.tokens)[n]
            found.append(session.step(ids, n, np.zeros(size, int), np.arange(size)).astype(np.float64))
            at += size
        return np.concatenate(found)

    def trainer(self, **options):
        """A Trainer that starts from adapter_init, and its one batch."""
        lora = self.expected["lora"]
        trainer, init = (
            Trainer(self.model(), TrainOptions(n_ctx=64, max_grad_norm=0.0, **options)),
            self.adapter("init"),
        )
        adapted = {key_of(name) for name in init.bound(trainer.model.metadata).pairs}
        trainer.init_lora(lora["rank"], lora["alpha"], tuple(n for n in TARGETS if n in adapted), 1, init)
        return trainer, [Sample(np.array(ids, np.int32), np.arange(len(ids)) > 0) for ids in lora["sequences"]]


def checks(folder, activations="f32", threads=2):
    """Yield (name, what was found, the bound): a check holds where found <= bound."""
    golden = Golden(folder, activations, threads)
    yield from _logits(golden)
    yield from _greedy(golden)
    if "lora" in golden.expected:
        yield from _adapters(golden)
        yield from _training(golden)


def _worst(found, wanted):
    return float(np.abs(np.asarray(found) - np.asarray(wanted)).max())


def _logits(golden):
    wanted, at, n = golden.expected, golden.expected["positions"], len(golden.tokens)
    whole = logits_of(golden.model(), golden.tokens)
    yield "logits at once", _worst(whole[at], wanted["logits"]), LOGITS
    yield "likeliest tokens that differ", int((whole.argmax(axis=-1) != wanted["all_argmax"]).sum()), 0
    yield "mean nll", abs(mean_nll(whole, golden.tokens) - wanted["mean_nll"]), SAME
    ways = {"token by token": [1] * n, "in chunks": [7, 1, 30, n - 40, 2], "in halves": [n // 2, n - n // 2]}
    for way, sizes in ways.items():
        yield f"logits {way}", _worst(golden.in_parts(golden.model(), sizes)[at], wanted["logits"]), LOGITS
    # only some rows asked for: the last layer does less
    session, n = golden.model().new_session(1, N_CTX), np.arange(n)
    few = session.step(np.array(golden.tokens), n, np.zeros(len(n), int), np.array(at))
    yield "logits asked for alone", _worst(few, wanted["logits"]), LOGITS


def _greedy(golden):
    wanted, session, found = golden.expected["greedy"], golden.model().new_session(1, N_CTX), []
    ids, at = list(wanted["prompt"]), 0
    while len(found) < len(wanted["tokens"]):
        row = session.step(ids, np.arange(at, at + len(ids)), np.zeros(len(ids), int), [len(ids) - 1])[0]
        at, ids = at + len(ids), [int(row.argmax())]
        found += ids
    yield "greedy tokens that differ", sum(a != b for a, b in zip(found, wanted["tokens"], strict=True)), 0


def _adapters(golden):
    wanted, tokens = golden.expected["lora"], golden.tokens
    for which, key in (("init", "mean_nll_with_initial_adapter"), ("final", "mean_nll_with_final_adapter")):
        if key not in wanted:
            continue
        model = golden.model()
        model.add_adapter(golden.adapter(which))
        logits = logits_of(model, tokens)
        yield f"mean nll with adapter_{which}", abs(mean_nll(logits, tokens) - wanted[key]), SAME
        if which == "init":
            first = wanted["logits_with_initial_adapter"]
            yield "logits with adapter_init", _worst(logits[first["position"]], first["logits"]), LOGITS


def _training(golden):
    wanted = golden.expected["lora"]
    for flag in (False, True):
        trainer, batch = golden.trainer(checkpointing=flag)
        results = [trainer.step([batch], RATE) for _ in wanted["losses"]]
        losses = [*(result.loss for result in results), trainer.evaluate([batch])[0]]
        norms = [result.grad_norm for result in results]
        name = " recomputing" if flag else ""
        yield f"losses{name}", _worst(np.array(losses) / [*wanted["losses"], wanted["loss_after"]], 1), LOSS
        yield f"gradient norms{name}", _worst(np.array(norms) / wanted["grad_norms"], 1), NORM
    yield "gradients of what pads the pairs", _padding(trainer), 0
    if "mean_nll_with_final_adapter" not in wanted:
        return
    final = golden.adapter("final").bound(trainer.model.metadata).pairs
    trained = [(final[name], pair.a, pair.b) for name, pair in trainer.adapter().pairs.items() if not of_expert(name)]
    untrained = final.keys() - trainer.adapter().pairs.keys()
    yield "pairs of the adapter that were not trained", len(untrained), 0
    # PEFT's pairs on experts' gate and up share one A, so that their values go other ways
    yield "values of the trained adapter", max(max(_worst(a, p.a), _worst(b, p.b)) for p, a, b in trained), 1e-3


def _padding(trainer):
    """The sum of the last step's gradients beyond the columns of the pairs."""
    inside = sum(np.abs(part).sum(dtype=np.float64) for pair in trainer.gradients().values() for part in pair)
    return float(abs(np.abs(trainer._pass.grads).sum(dtype=np.float64) - inside) > 1e-6 * inside)


def main():
    """Check the folders named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--activations", default="f32")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    failed = False
    for folder in args.folders:
        print(folder)
        try:
            for name, found, bound in checks(folder, args.activations, args.threads):
                failed |= not found <= bound
                print(f"  {'ok   ' if found <= bound else 'FAILS'} {name}: {found:.3g} (bound {bound:g})", flush=True)
        except LlamacyError as error:
            failed = True
            print(f"  FAILS {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main())

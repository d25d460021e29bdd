"""DPO, ORPO and KTO: their gradients are finite differences of their losses, and their runs those of torch."""

import json

import numpy as np
import pytest

from llamacy.errors import LlamacyError, UsageError
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train.data import open_data
from llamacy.train.options import METHODS, TARGETS, TrainOptions
from llamacy.train.preference import CLASSES
from llamacy.train.samples import Encoder, Preference, Sample
from llamacy.train.trainer import Trainer
from tests.model import golden
from tests.model.tiny import tokens_of, write_llama
from tests.train.fakes import ByteTokenizer, shown

SMALL = twin.Config(n_vocab=97, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_layer=2)


def sample(seed, n_prompt, n_answer):
    n = n_prompt + n_answer
    return Sample(tokens_of(SMALL, n, seed=seed).astype(np.int32), np.arange(n) >= n_prompt)


PAIRS = [Preference((sample(i, 4 + i, 3 + i), sample(20 + i, 4 + i, 5)), (True, False)) for i in range(3)]
ROWS = [Preference((sample(40 + i, 5, 3 + i),), (i % 2 == 0,)) for i in range(3)]
CASES = {
    "dpo": ({"method": "dpo", "beta": 0.5}, PAIRS),
    "orpo": ({"method": "orpo", "beta": 0.7}, PAIRS),
    "orpo on all tokens": ({"method": "orpo", "mask_prompt": False}, PAIRS),
    "kto on labels": ({"method": "kto", "beta": 0.5}, ROWS),
    "kto on pairs": ({"method": "kto", "beta": 0.5}, PAIRS),
}


@pytest.fixture
def make(tmp_path):
    def trainer(threads=1, **options):
        path = tmp_path / "model.gguf"
        if not path.exists():
            write_llama(path, SMALL, twin.random_weights(SMALL, 5), "F32")
        made = Trainer(
            load_model(path, activations="f32", threads=threads), TrainOptions(n_ctx=64, max_grad_norm=0.0, **options)
        )
        made.init_lora(4, 8.0, tuple(TARGETS), 7)
        made._pass.params[:] = np.random.default_rng(3).normal(0, 0.05, len(made._pass.params))
        return made

    return trainer


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_differences_of_the_loss(make, case, monkeypatch):
    options, items = CASES[case]
    made = make(**options)
    if "kto" in case:  # a constant in the backward pass
        monkeypatch.setattr(made.objective, "_divergence", lambda trainer, rows: 0.3)
    result = made.probe(items)
    gradient, params = made._pass.grads.astype(np.float64), made._pass.params
    direction = np.random.default_rng(8).normal(0, 1, len(params)) * (gradient != 0)
    start, step = params.copy(), 2e-3
    losses = []
    for sign in (1, -1):
        params[:] = start + sign * step * direction
        losses.append(made.probe(items).loss)
    params[:] = start
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(gradient @ direction), rel=3e-3)
    assert result.grad_norm > 0


def test_the_reference_is_the_model_without_the_adapter(make):
    made = make(method="dpo")
    samples = [row for item in PAIRS for row in item.samples]
    before = made._pass.params.copy()
    with made.without_adapter():
        bare = [row.sum() for row in made.log_probabilities(samples)]
    np.testing.assert_array_equal(made._pass.params, before)
    fresh = make(method="dpo")
    fresh._pass.params[:] = 0
    assert bare == pytest.approx([row.sum() for row in fresh.log_probabilities(samples)], rel=1e-6)
    assert bare != pytest.approx([row.sum() for row in made.log_probabilities(samples)], rel=1e-3)
    # what is kept of it is used, and right
    first = made.objective.reference(made, samples)
    made.log_probabilities = None
    np.testing.assert_array_equal(made.objective.reference(made, samples), first)
    assert first == pytest.approx(bare, rel=1e-9)


def test_a_run_goes_on_alike_with_any_threads_and_under_dropout(make):
    found = []
    for threads in (1, 2):
        made = make(threads, method="dpo", lora_dropout=0.3)
        found.append([made.step([PAIRS], 1e-2).loss for _ in range(3)])
    assert found[0] == found[1] and found[0][2] < found[0][0]


def test_validation_is_the_methods_loss(make):
    made = make(method="dpo", lora_dropout=0.5)
    loss, n = made.evaluate([PAIRS[:2], PAIRS[2:]])
    plain = make(method="dpo")
    assert n == 3 and loss == pytest.approx(plain.probe(PAIRS).loss, rel=1e-6)


# ---- torch's runs ----


def answered(prompt, answer):
    return Sample(np.array(prompt + answer, np.int32), np.arange(len(prompt) + len(answer)) >= len(prompt))


def recorded_pairs():
    rows = golden.recorded("methods/pairs_tokens.json")
    return [Preference(tuple(answered(row["prompt"], row[key]) for key in ("chosen", "rejected")), (True, False))
            for row in rows]  # fmt: skip


def recorded_rows():
    rows = golden.recorded("methods/kto_rows.json")
    return [Preference((answered(row["prompt"], row["completion"]),), (row["label"],)) for row in rows]


RUNS = {
    "dpo_gentle": ({"method": "dpo"}, recorded_pairs, "int16", 1e-4, 3),
    "dpo": ({"method": "dpo"}, recorded_pairs, "f32", 1e-3, 2),
    "orpo": ({"method": "orpo"}, recorded_pairs, "int16", 1e-3, 3),
    "orpo_whole": ({"method": "orpo", "mask_prompt": False}, recorded_pairs, "f32", 1e-3, 2),
    "kto": ({"method": "kto"}, recorded_rows, "int16", 1e-3, 6),
}
# our names, theirs; KTO's accuracy is ours alone
LOGGED = {"reward_margin": "rewards/margins", "reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected",
          "nll_loss": "nll_loss", "log_odds_chosen": "log_odds_chosen"}  # fmt: skip
LOGPS = {"chosen_logp": "logps/chosen", "rejected_logp": "logps/rejected", "kl": "kl"}


@golden.needs_model
@pytest.mark.parametrize("name", RUNS)
def test_runs_are_those_of_torch(name):
    options, items, activations, rate, n = RUNS[name]
    trainer = Trainer(golden.model(activations), TrainOptions(max_grad_norm=0.0, **options))
    trainer.init_lora(golden.RANK, golden.ALPHA, tuple(TARGETS), 42, golden.stored_adapter("init"))
    data = items()
    for i, wanted in enumerate(golden.recorded(f"methods/{name}.json")[:n]):
        at = 2 * i % len(data)
        found = trainer.step([data[at : at + 2]], rate)
        assert abs(found.loss - wanted["loss"]) <= max(0.01, 0.01 * wanted["loss"])
        assert found.grad_norm == pytest.approx(wanted["grad_norm"], rel=0.01 if activations == "f32" else 0.025)
        for ours, theirs in LOGGED.items():
            if theirs in wanted:
                assert found.more[ours] == pytest.approx(wanted[theirs], abs=0.01), ours
        for ours, theirs in LOGPS.items():
            if theirs in wanted:
                assert found.more[ours] == pytest.approx(wanted[theirs], rel=0.01, abs=0.1), ours
        if i and "rewards/accuracies" in wanted:
            assert found.more["accuracy"] == wanted["rewards/accuracies"]


@golden.needs_model
def test_pairs_are_tokenised_as_recorded():
    tokenizer = golden.model("int8").tokenizer
    data = open_data([golden.GOLDEN / "methods" / "pairs.jsonl"], Encoder(tokenizer, 512), needs="pairs")
    wanted = recorded_pairs()
    assert len(data) == len(wanted) == 8
    for item, row in zip(data, wanted, strict=True):
        assert item.wanted == (True, False)
        for ours, theirs in zip(item.samples, row.samples, strict=True):
            assert ours.ids.tolist() == theirs.ids.tolist() and ours.trained.tolist() == theirs.trained.tolist()


# ---- data ----


@pytest.fixture
def load(tmp_path):
    def load_rows(*rows, needs, n_ctx=512):
        path = tmp_path / "data"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))

        def render(messages, add_generation_prompt):
            text = "".join(f"<{m['role']}>{m['content']}<|im_end|>" for m in messages)
            return text + ("<assistant>" if add_generation_prompt else "")

        return open_data([path], Encoder(ByteTokenizer(), n_ctx), render=render, needs=needs)

    return load_rows


U, A, B = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b")))
CHAT = ("<user>q<|im_end|><assistant>", "a<|im_end|>"), ("<user>q<|im_end|><assistant>", "b<|im_end|>")
ASKED = "### Instruction:\nq\n### Response:\n"
FORMS = {
    "texts": ({"prompt": "q", "chosen": "a", "rejected": "b"}, (("q", "a</s>"), ("q", "b</s>"))),
    "a question": ({"question": "q", "chosen": "a", "rejected": "b"}, ((ASKED, "a</s>"), (ASKED, "b</s>"))),
    "conversations": ({"chosen": [U, A], "rejected": [U, B]}, CHAT),
    "messages": ({"prompt": [U], "chosen": [A], "rejected": [B]}, CHAT),
    "one message": ({"prompt": [U], "chosen": A, "rejected": B}, CHAT),
    "texts that begin alike": ({"chosen": "Q: q A: a", "rejected": "Q: q A: b"},
                               (("Q: q A:", " a</s>"), ("Q: q A:", " b</s>"))),
    "nothing instead": ({"prompt": "q", "chosen": "a", "rejected": ""}, (("q", "a</s>"), ("q", "</s>"))),
}  # fmt: skip


@pytest.mark.parametrize("needs", ["pairs", "labels"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_pair(load, form, needs):
    row, wanted = FORMS[form]
    data = load(row, needs=needs)
    assert tuple(shown(row) for row in data[0].samples) == wanted and data[0].wanted == (True, False)
    assert data.report()[1:] == []


def test_labels(load):
    rows = [{"prompt": "p", "completion": "c", "label": True}, {"prompt": "p", "completion": "d", "label": 0}]
    data = load(*rows, needs="labels")
    assert [(shown(item.samples[0]), item.wanted) for item in data] == [
        (("p", "c</s>"), (True,)), (("p", "d</s>"), (False,))]  # fmt: skip


BAD = {
    "no pair": ({"prompt": "p", "completion": "c"}, "pairs", 'data:1: no preference: wanted "chosen" and "rejected"'),
    "a label where pairs are wanted": (
        {"prompt": "p", "completion": "c", "label": True}, "pairs", 'data:1: no preference: wanted "chosen"'),
    "no label": ({"prompt": "p", "completion": "c"}, "labels", 'and "label", for --method kto'),
    "a strange label": (
        {"prompt": "p", "completion": "c", "label": 2}, "labels", '"label" is 2, wanted true or false'),
    "plain text": ("just words", "pairs", "no preferences: wanted JSON or a table"),
    "no room for an answer": ({"prompt": "p" * 600, "chosen": "a", "rejected": "b"}, "pairs", "no usable sample"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_data_that_holds_no_preference_is_refused(load, case):
    row, needs, wanted = BAD[case]
    with pytest.raises(LlamacyError) as caught:
        load(row, needs=needs)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_prompts_are_not_learnt_from_preferences(method):
    with pytest.raises(UsageError, match=f"--train-on-prompt: --method {method} looks at the answers alone"):
        TrainOptions(method=method, mask_prompt=False)


def test_every_method_has_a_class():
    assert tuple(CLASSES) == METHODS


@pytest.mark.parametrize("case", CASES)
def test_the_log_tells_how_surprising_the_wanted_answers_are(make, case):
    """Their mean negative log-likelihood a token: above ln(vocabulary) the template does not fit."""
    options, items = CASES[case]
    made = make(**options)
    wanted = [each for item in items for each, good in zip(item.samples, item.wanted, strict=True) if good]
    if options.get("mask_prompt") is False:
        wanted = [Sample(each.ids, np.arange(len(each.ids)) > 0) for each in wanted]
    loss, _ = Trainer.evaluate(make(), [wanted])
    assert made.probe(items).more["nll_loss"] == pytest.approx(loss, rel=1e-5)

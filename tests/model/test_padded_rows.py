"""Matrices with more rows than the vocabulary has tokens: ids without a token cannot be seen by anyone.

The rows that only pad are made so large that each of them would win, and take all probability, if they counted.
"""

import math
import threading
import warnings

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.generate.engine import Engine, PromptError
from llamacy.generate.perplexity import measure
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.model.model import Session
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.model.tiny import CONFIG, logits_of, metadata, tokens_of, write_llama
from tests.server.service import ask, post, serving

N_TOKENS = 90
PARAMS = {"temp 0": {"temperature": 0}, "hot": {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}}


def vocabulary(n):
    """The metadata that change when the vocabulary has n tokens."""
    keys = ("tokens", "scores", "token_type")
    return {f"tokenizer.ggml.{key}": metadata(CONFIG)[f"tokenizer.ggml.{key}"][:n] for key in keys}


def weights():
    """Padding rows that point where the model looks: each has a logit above all others."""
    found = twin.random_weights(CONFIG, 20)
    found["output.weight"] = found["output.weight"].copy()
    found["output_norm.weight"] = np.r_[found["output_norm.weight"][:-1], 0.0]
    found["output.weight"][N_TOKENS:] *= 50
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(the model with fewer tokens than rows, the same with a token for every row)."""
    folder = tmp_path_factory.mktemp("padded")
    write_llama(folder / "padded.gguf", CONFIG, weights(), change=vocabulary(N_TOKENS))
    write_llama(folder / "whole.gguf", CONFIG, weights())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [load_model(folder / f"{name}.gguf", activations="f32", threads=1) for name in ("padded", "whole")]


def generate(model, n=40, **params):
    engine = Engine(model, n_ctx=64)
    chosen = []
    request = Request([1, 5, 9], SamplingParams(**params), n_predict=n, on_token=chosen.append)
    engine.run(request)
    return chosen


def test_the_padding_would_win_if_it_counted(models):
    whole = logits_of(models[1], tokens_of(CONFIG, 20))
    assert (whole.argmax(1) >= N_TOKENS).mean() > 0.9
    assert any(token.id >= N_TOKENS for token in generate(models[1], temperature=0))


def test_logits_end_with_the_tokens(models):
    tokens = tokens_of(CONFIG, 20) % N_TOKENS
    padded, whole = (logits_of(model, tokens) for model in models)
    assert padded.shape == (20, N_TOKENS) and whole.shape == (20, CONFIG.n_vocab)
    np.testing.assert_array_equal(padded, whole[:, :N_TOKENS])
    assert logits_of(models[0], tokens, hidden=True).shape == (20, CONFIG.n_embd)


@pytest.mark.parametrize("name", PARAMS)
def test_only_tokens_are_chosen_and_they_share_all_probability(models, name):
    chosen = generate(models[0], n_probs=N_TOKENS, **PARAMS[name])
    assert len(chosen) > 5
    for token in chosen:
        assert 0 <= token.id < N_TOKENS and {id for id, _ in token.top} == set(range(N_TOKENS))
        assert math.fsum(math.exp(logprob) for _, logprob in token.top) == pytest.approx(1, abs=1e-5)


def test_ids_without_a_token_are_refused(models):
    engine = Engine(models[0], n_ctx=64)
    with pytest.raises(PromptError, match=f"wanted token ids from 0 to {N_TOKENS - 1}, got {N_TOKENS}"):
        engine.submit(Request([1, N_TOKENS], SamplingParams()))
    with pytest.raises(LlamacyError, match=f"logit_bias: wanted a token id from 0 to {N_TOKENS - 1}"):
        generate(models[0], logit_bias=((N_TOKENS, 5.0),))


def test_perplexity_is_over_tokens(models):
    tokens = (tokens_of(CONFIG, 32) % N_TOKENS).tolist()
    logits = logits_of(models[0], [1, *tokens[1:31]]).astype(np.float64)
    chances = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = -chances[np.arange(16, 31), tokens[17:32]].mean()
    assert math.log(measure(models[0], tokens, 32).perplexity) == pytest.approx(wanted, abs=1e-5)


def test_a_server_answers(models, monkeypatch):
    monkeypatch.setattr(Session, "gate", threading.Event(), raising=False)
    with serving(models[0], n_ctx=64) as service:
        answer = post(service, "/completion", prompt=[1, 5, 9], n_predict=20, temperature=0, n_probs=3)
        assert max(answer["tokens"] or [0]) < N_TOKENS and answer["tokens_predicted"] > 0
        top = [entry["id"] for row in answer["completion_probabilities"] for entry in row["top_logprobs"]]
        assert top and max(top) < N_TOKENS
        post(service, "/v1/completions", prompt="<5>", max_tokens=5, logprobs=5, temperature=2)
        assert post(service, "/tokenize", content="<5>")["tokens"]
        status, answer, _ = ask(service, "POST", "/completion", {"prompt": [1, N_TOKENS]})
        assert status == 400 and f"at most {N_TOKENS - 1}, got {N_TOKENS}" in answer["error"]["message"]
        status, answer, _ = ask(service, "GET", "/v1/models")
        assert answer["data"][0]["meta"]["n_vocab"] == N_TOKENS


def test_training_keeps_the_matrix_softmax(models):
    """As transformers, which knows no tokens: every row counts in the loss, so that losses stay comparable."""
    ids = (tokens_of(CONFIG, 20) % N_TOKENS).astype(np.int32)
    losses = []
    for model in models:
        trainer = Trainer(model, TrainOptions(n_ctx=32))
        trainer.init_lora(2, 4.0, tuple(TARGETS), 7)
        losses.append(trainer.step([[Sample(ids, np.arange(20) > 0)]], 0.0).loss)
    logits = logits_of(models[1], ids[:-1]).astype(np.float64)
    wanted = np.log(np.exp(logits).sum(1)) - logits[np.arange(19), ids[1:]]
    assert losses[0] == losses[1] == pytest.approx(wanted.mean(), rel=1e-4)


def test_adapters_have_the_matrix_rows(models):
    rng = np.random.default_rng(1)
    pairs = {
        name: LoraPair(rng.normal(size=(2, 64)).astype(np.float32), rng.normal(size=(97, 2)).astype(np.float32))
        for name in ("output.weight", "token_embd.weight")
    }
    before = logits_of(models[0], [1, 2, 3])
    index = models[0].add_adapter(Adapter("llama", pairs))
    assert (logits_of(models[0], [1, 2, 3]) != before).any()
    models[0].set_adapter_scale(index, 0)


def test_fewer_rows_than_tokens(tmp_path):
    found = twin.random_weights(CONFIG, 20)
    for name in ("token_embd.weight", "output.weight"):
        found[name] = found[name][:96]
    write_llama(tmp_path / "m.gguf", CONFIG, found)
    with pytest.raises(LlamacyError, match=r"token_embd.weight has 96 rows for a vocabulary of 97 tokens"):
        load_model(tmp_path / "m.gguf", threads=1)
    write_llama(tmp_path / "m.gguf", CONFIG, found, change=vocabulary(96))
    assert load_model(tmp_path / "m.gguf", threads=1).config.n_vocab == 96

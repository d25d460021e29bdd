"""The default model against transformers in f32: next tokens, greedy text, perplexity, without and with an adapter.

What may differ, and by how much, is what docs/accuracy.md claims.
"""

import zlib
from contextlib import contextmanager

import numpy as np
import pytest

from llamacy.generate.perplexity import measure
from llamacy.model import load_model
from llamacy.text.tokenizer import Tokenizer
from tests.model import claims, golden

pytestmark = golden.needs_model


@contextmanager
def adapted(model, rows):
    """Within: the model as it was when `rows` of smollm2_eval.json were recorded."""
    if rows == "base":
        yield model
        return
    index = model.add_adapter(golden.stored_adapter("final"))
    try:
        yield model
    finally:
        model.set_adapter_scale(index, 0.0)


def differences(rows, logits):
    """Return |log-probability - recorded| of the ten likeliest next tokens of each prompt."""
    log_p = golden.log_softmax(logits)
    return np.array([abs(log_p[i, token] - want) for i, row in enumerate(rows) for token, want in row["next_top10"]])


def greedy(model, rows, n_tokens):
    """Return the logits after each prompt, and n_tokens greedy ids of each: all prompts in one batch."""
    session, slots = model.new_session(len(rows), 128), np.arange(len(rows))
    prompts = [row["tokens"] for row in rows]
    lengths = np.array([len(prompt) for prompt in prompts])
    positions = np.concatenate([np.arange(n) for n in lengths])
    first = session.step(np.concatenate(prompts), positions, np.repeat(slots, lengths), np.cumsum(lengths) - 1)
    chosen = [first.argmax(axis=1)]
    for i in range(n_tokens - 1):
        chosen.append(session.step(chosen[-1], lengths + i, slots, slots).argmax(axis=1))
    return first, np.transpose(chosen)


def recorded_rows():
    """(which, its rows) without and with the adapter."""
    return [(which, golden.recorded("smollm2_eval.json")[which]) for which in ("base", "with_final_adapter")]


def measured(model, n_tokens):
    """Return all differences and, for each of the ten prompts, the greedy ids beside the recorded ones."""
    found, texts = [], []
    for which, rows in recorded_rows():
        with adapted(model, which):
            first, chosen = greedy(model, rows, n_tokens)
        found.append(differences(rows, first))
        texts += [(ids, row["greedy_tokens"][:n_tokens]) for ids, row in zip(chosen.tolist(), rows, strict=True)]
    return found, texts


def common(ids, wanted):
    """How many ids are the wanted ones before the first other."""
    return next((i for i, want in enumerate(wanted) if ids[i] != want), len(wanted))


def test_the_recorded_prompts_are_read_as_recorded():
    for _, rows in recorded_rows():
        for row in rows:
            assert golden.model("f32").tokenizer.encode(row["prompt"]) == row["tokens"]


@pytest.mark.parametrize("activations", ["f32", "int16", "int8"])
def test_log_probabilities_and_greedy_text_are_as_near_as_claimed(activations):
    found, texts = measured(golden.model(activations), 32)
    *mean, worst = claims.numbers("ten likeliest", activations)
    assert [len(some) for some in found] == [50, 50]
    assert claims.holds(np.max(found), worst)
    if mean:
        assert all(claims.holds(some.mean(), mean[0]) for some in found)
    claim = claims.cell("up to 32 greedy", activations)
    equal = [common(ids, wanted) for ids, wanted in texts]
    others = sorted(n for n, (_, wanted) in zip(equal, texts, strict=True) if n < len(wanted))
    if claim == "all equal":
        assert not others
    else:
        n_equal, n_texts, *lengths = map(int, claims.numbers("up to 32 greedy", activations))
        assert len(texts) == n_texts and len(texts) - len(others) >= n_equal
        assert all(n >= length for n, length in zip(others, sorted(lengths), strict=False))


@pytest.mark.parametrize(("activations", "cache"), [("int16", "f16"), ("int8", "q8_0")])
def test_with_other_caches_too(activations, cache):
    model = load_model(golden.MODEL, activations=activations, threads=2, cache_types=(cache, cache))
    found, _ = measured(model, 1)
    assert claims.holds(np.mean(found), claims.sentence(f"N on average with a cache of {cache}")[0])


def test_the_readme_says_the_same():
    readme = (golden.ROOT / "README.md").read_text()
    default, int16 = (claims.numbers("ten likeliest", activations)[0] for activations in ("int8", "int16"))
    assert f"they differ by {default} on average, with `--activations int16` by {int16}." in readme.replace("\n", " ")


def tokens_split_as(pre, model):
    """The recorded text's ids under that pre-tokenizer, checked, with what was recorded of them."""
    recorded, text = golden.recorded("smollm2_perplexity.json")[pre], (golden.GOLDEN / "gpl3.txt").read_text()
    ids = Tokenizer.from_metadata(dict(model.metadata) | {"tokenizer.ggml.pre": pre}).encode(text)
    assert (len(ids), zlib.crc32(np.array(ids, "<i4").tobytes())) == (recorded["n_ids"], recorded["crc32"])
    return ids, recorded


ALLOWED = {"f32": 0.0005, "int16": 0.0005, "int8": 0.001}


@pytest.mark.parametrize("activations", ["f32", "int16", "int8"])
def test_perplexity_is_the_reference_s(activations):
    model, row = golden.model(activations), "perplexity, first 14 windows of 512"
    ids, recorded = tokens_split_as("smollm", model)
    totals = [(0, 0.0)]
    score = measure(model, ids, 512, lambda i, score: totals.append((score.n_tokens, score.nll)))
    assert (len(totals) - 1, score.n_tokens) == (14, 3570)
    assert score.perplexity == pytest.approx(recorded["perplexity"], rel=ALLOWED[activations])
    if activations == "f32":
        sums = np.diff(totals[: len(recorded["nll"]) + 1], axis=0)
        assert sums[:, 1] / sums[:, 0] == pytest.approx(recorded["nll"], abs=ALLOWED["f32"])
    # and what the document says of both
    assert claims.numbers(row, "reference") == [str(recorded["perplexity"])]
    claim, *share = claims.numbers(row, activations)
    assert abs(score.perplexity - float(claim)) < 2e-4
    for percent in share:
        assert claims.holds(abs(100 * (score.perplexity / recorded["perplexity"] - 1)), percent.lstrip("-"))


def test_perplexity_in_transformers_tokens():
    model = golden.model("f32")
    ids, recorded = tokens_split_as("gpt-2", model)
    # the first window is the same as with the file's own tokens
    score = measure(model, ids[512:1024], 512)
    assert score.nll / score.n_tokens == pytest.approx(recorded["nll"][1], abs=ALLOWED["f32"])

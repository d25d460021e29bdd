"""Windows, soft caps and sinks in whole models, against the float64 twin: bounds as in test_forward.py."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.model import windowed
from tests.model.tiny import logits_of, tokens_of, use_isa

TOKENS = tokens_of(windowed.WINDOWED, 100)


@pytest.fixture(params=windowed.CASES)
def case(request, tmp_path, monkeypatch):
    """(a function that opens the model, its logits by the twin, the twin's config)"""
    config = windowed.CASES[request.param]
    windowed.understand(monkeypatch, config)
    exact = windowed.write(tmp_path / "m.gguf", config)

    def opened(**how):
        return load_model(tmp_path / "m.gguf", **({"activations": "f32", "threads": 2} | how))

    return opened, lambda tokens: twin.forward(config, exact, tokens), config


def in_parts(session, tokens, sizes, slot=0):
    """Logits of all tokens, computed in steps of these sizes."""
    found, at = [], 0
    for size in sizes:
        n = np.arange(at, at + size)
        found.append(session.step(tokens[n], n, np.full(size, slot), np.arange(size)))
        at += size
    assert at == len(tokens)
    return np.concatenate(found)


def assert_near(found, exact, share=2e-5):
    np.testing.assert_allclose(found, exact, rtol=0, atol=share * np.abs(exact).max())


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("threads", [1, 3])
def test_logits_are_the_twins(case, isa, threads, monkeypatch):
    use_isa(monkeypatch, isa)
    opened, exact, _ = case
    assert_near(logits_of(opened(threads=threads), TOKENS), exact(TOKENS))


CACHES = {("f32", "s16"): 1e-3, ("s16", "s16"): 1e-3, ("f16", "f16"): 3e-3, ("q8_0", "q8_0"): 5e-2}


@pytest.mark.parametrize(("kinds", "share"), CACHES.items(), ids=str)
def test_every_cache_type(case, kinds, share):
    opened, exact, _ = case
    found = logits_of(opened(cache_types=kinds), TOKENS)
    assert_near(found, exact(TOKENS), share)
    np.testing.assert_array_equal(in_parts(opened(cache_types=kinds).new_session(1, 100), TOKENS, [1] * 100), found)


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [33, 1, 1, 60, 5], [20, 20, 20, 40]], ids=len)
@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_how_a_text_is_cut_into_steps_changes_no_bit(case, sizes, activations):
    opened, _, _ = case
    found = in_parts(opened(activations=activations, threads=3).new_session(1, 100), TOKENS, sizes)
    np.testing.assert_array_equal(found, logits_of(opened(activations=activations, threads=1), TOKENS))


@pytest.mark.parametrize("how", [{"activations": "f32"}, {"activations": "int8"}], ids=str)
def test_several_slots_beside_each_other(case, how):
    opened, _, _ = case
    model, texts = opened(**how), [tokens_of(windowed.WINDOWED, 90, seed) for seed in range(3)]
    alone = [logits_of(model, text) for text in texts]
    session, order = model.new_session(3, 100), np.random.default_rng(1)
    at, found = [0, 0, 0], [[], [], []]
    while min(at) < 90:
        sizes = [min(int(order.integers(0, 30)), 90 - a) for a in at]
        tokens = np.concatenate([text[a : a + n] for text, a, n in zip(texts, at, sizes, strict=True)])
        positions = np.concatenate([np.arange(a, a + n) for a, n in zip(at, sizes, strict=True)])
        slots = np.repeat([0, 1, 2], sizes)
        rows = session.step(tokens, positions, slots, np.arange(len(tokens)))
        for slot in range(3):
            found[slot].append(rows[slots == slot])
            at[slot] += sizes[slot]
    for slot in range(3):
        np.testing.assert_array_equal(np.concatenate(found[slot]), alone[slot])


# ---- what a file says ----


def windows_of(path, **change):
    windowed.write(path, windowed.WINDOWED, **{f"llama.attention.{key}": value for key, value in change.items()})
    config = load_model(path).config
    return [config.layer_window(layer) for layer in range(4)]


@pytest.mark.parametrize(
    ("pattern", "has"),
    [
        (None, [True] * 4),
        (0, [True] * 4),
        (1, [False] * 4),
        (2, [True, False, True, False]),
        (4, [True, True, True, False]),
        ([0, 1, 1, 0], [False, True, True, False]),
        ([True, False, False, True], [True, False, False, True]),
    ],
)
def test_patterns(tmp_path, pattern, has):
    found = windows_of(tmp_path / "m.gguf", sliding_window_pattern=pattern)
    assert found == [20 if one else None for one in has]


def test_no_window(tmp_path):
    assert windows_of(tmp_path / "m.gguf", sliding_window=0) == [None] * 4


@pytest.mark.parametrize("wrong", [[True, False], [0, 1, 2, 0], "2", 1.5, [0.0, 1.0, 0.0, 1.0]], ids=str)
def test_a_pattern_that_is_none(tmp_path, wrong):
    with pytest.raises(LlamacyError, match=r"attention.sliding_window_pattern: wanted "):
        windows_of(tmp_path / "m.gguf", sliding_window_pattern=wrong)

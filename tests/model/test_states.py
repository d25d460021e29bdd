"""What short convolutions saw lies in a ring of a step's tokens and a few more: sequences are cut back and kept.

What is compared with: a session that takes the whole text in one step (whose logits test_parts.py compares with the
float64 twin).
"""

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.generate.engine import Engine
from llamacy.generate.prompt_cache import PromptCache
from llamacy.model import load_model
from tests.model import parts
from tests.model.test_ring import generate, greedy, one
from tests.model.test_windows import in_parts
from tests.model.tiny import tokens_of

CASES = ("convolutions", "a last layer of attention")
N = 160
TEXT = tokens_of(parts.BASE, N)


@pytest.fixture(params=CASES)
def model(request, tmp_path, monkeypatch):
    parts.use(monkeypatch, parts.CASES[request.param])
    parts.write(tmp_path / "m.gguf", parts.CASES[request.param])
    return load_model(tmp_path / "m.gguf", threads=2)


def whole(model, tokens=TEXT):
    n = np.arange(len(tokens))
    return model.new_session(1, N, N).step(tokens, n, np.zeros(len(n), int), n)


def test_slots_beside_each_other_in_a_ring_that_came_round(model):
    texts, session = [TEXT, TEXT[::-1].copy()], model.new_session(2, N, 8)
    exact = [whole(model, text) for text in texts]
    for at in range(0, N, 4):
        n = np.arange(at, at + 4)
        # one token of each slot after the other
        tokens, slots = np.stack([text[n] for text in texts], 1).ravel(), np.tile([0, 1], 4)
        rows = session.step(tokens, np.repeat(n, 2), slots, np.arange(8))
        for slot in range(2):
            np.testing.assert_array_equal(rows[slot::2], exact[slot][n])


def test_going_back_as_far_as_the_ring_reaches(model):
    exact, session, n_taps = whole(model), model.new_session(2, N, 8), model.config.n_taps
    in_parts(session, TEXT[:80], [8] * 10)
    held = session.held_from(0)
    assert held == 80 - 8 - n_taps
    least = held + n_taps - 1
    assert [session.reusable(0, n) for n in (80, least, least - 1, 0)] == [80, least, 0, 0]
    session.step([5] * 8, range(72, 80), [0] * 8, [7])  # as rejected guesses leave it
    for at in range(least, 90):
        np.testing.assert_array_equal(one(session, TEXT[at], at)[0], exact[at])
    with pytest.raises(LlamacyError, match=rf"positions 60 to 60: layers with a window of {n_taps} hold"):
        one(session, TEXT[60], 60)
    np.testing.assert_array_equal(one(session, TEXT[90], 90)[0], exact[90])
    # a slot that begins anew
    np.testing.assert_array_equal(in_parts(session, TEXT[:20], [5] * 4), exact[:20])


@pytest.mark.parametrize("sizes", [(8, 8), (8, N), (N, 8)])
def test_what_was_seen_goes_to_another_session(model, sizes):
    exact, n = whole(model), 75
    first, second = model.new_session(1, N, sizes[0]), model.new_session(2, N, sizes[1])
    in_parts(first, TEXT[:n], [5] * 15)
    in_parts(second, TEXT[::-1][:90].copy(), [5] * 18, 1)  # what the slot held before must not matter
    states = first.read_states(0, n, 7)
    assert states.shape == (len(model.config.convolving), 7, model.config.n_embd)
    second.write_cache(1, first.read_cache(0, n), first.held_from(0))
    second.write_states(1, n, states)
    least = n - 7 + model.config.n_taps - 1
    assert [second.reusable(1, k) for k in (n, least, least - 1)] == [n, least, 0]
    for at in range(least, n + 20):
        np.testing.assert_array_equal(one(second, TEXT[at], at, 1)[0], exact[at])
    for wrong in (states[:, :, 1:], states[1:]):
        with pytest.raises(ValueError, match="do not fit"):
            second.write_states(1, n, wrong)
    with pytest.raises(ValueError, match="not all that the next sees is held"):
        second.read_states(1, least - 1, 7)


def test_a_short_sequence_is_kept_whole(model):
    exact, first, second = whole(model), model.new_session(1, N, 8), model.new_session(1, N, 8)
    in_parts(first, TEXT[:2], [2])
    second.write_cache(0, first.read_cache(0, 2), first.held_from(0))
    second.write_states(0, 2, first.read_states(0, 2, 64))
    assert [second.reusable(0, k) for k in (2, 1)] == [2, 1]
    np.testing.assert_array_equal(one(second, TEXT[1], 1)[0], exact[1])
    np.testing.assert_array_equal(one(second, TEXT[2], 2)[0], exact[2])


def test_an_engine_that_reuses_prefixes_and_guesses(model):
    engine, prompt = Engine(model, n_ctx=N, batch_size=16, draft_lookup=6), TEXT[:3].tolist() * 30
    found, result = generate(engine, prompt, 40)
    assert found == greedy(model, prompt, 40) and result.timings.draft_n > result.timings.draft_n_accepted
    for text, cached in ((prompt + found[:35], 124), (prompt[:40] + [7], 0)):
        more, result = generate(engine, text, 20)
        assert (result.timings.cache_n, more) == (cached, greedy(model, text, 20))


def test_a_context_that_is_shifted(model):
    prompt = TEXT[:40].tolist()
    engine = Engine(model, n_ctx=80, batch_size=16, context_shift=True)
    found, result = generate(engine, prompt, 60, n_keep=4)
    assert result.truncated and len(found) == 60
    text = prompt + greedy(model, prompt, 41)
    # full with 80 and the next one chosen: the older half of all but the first four goes
    assert text[40:] + greedy(model, text[:4] + text[42:], 19) == found


def test_a_prompt_cache_file(model, tmp_path):
    prompt, path = TEXT[:100].tolist(), tmp_path / "cache"
    for text, reused in ((prompt, 0), (prompt, 99), (prompt[:90] + [7], 90), (prompt[:30] + [7], 0)):
        engine = Engine(model, n_ctx=N, batch_size=64)
        kept = PromptCache(path, engine, writes=not reused)
        kept.restore(text)
        found, result = generate(engine, text, 20)
        kept.keep(text) if not path.exists() else None
        assert (result.timings.cache_n, found) == (reused, greedy(model, text, 20))
    small = Engine(model, n_ctx=50, batch_size=16)  # the file's end does not fit
    PromptCache(path, small).restore(prompt[:30])
    assert generate(small, prompt[:30], 10)[0] == greedy(model, prompt[:30], 10)

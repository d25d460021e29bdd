"""Layers with a window keep it and a step's tokens in the cache, in a ring: nothing but the memory may change.

What is compared with: a session that may take the whole text in one step, whose cache holds all (and whose logits
test_windows.py compares with the float64 twin).
"""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.generate.engine import Engine
from llamacy.generate.prompt_cache import PromptCache
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams
from llamacy.model import load_model
from tests.model import windowed
from tests.model.test_windows import in_parts
from tests.model.tiny import tokens_of, use_isa

N, EOS = 900, 2
TEXT = tokens_of(windowed.WINDOWED, N)
KINDS = ["f32", "f16", "q8_0", "s16"]


@pytest.fixture(params=windowed.CASES)
def opened(request, tmp_path, monkeypatch):
    """A function that opens the model; no layer's ring has more than two chunks where steps are short."""
    config = windowed.CASES[request.param]
    windowed.understand(monkeypatch, config)
    windowed.write(tmp_path / "m.gguf", config, "Q4_0")
    return lambda **how: load_model(tmp_path / "m.gguf", **({"threads": 2} | how))


def whole(model, tokens=TEXT):
    """Logits of all tokens at once, from a cache that holds all."""
    n = np.arange(len(tokens))
    return model.new_session(1, N, N).step(tokens, n, np.zeros(len(n), int), n)


def one(session, token, position, slot=0):
    return session.step([token], [position], [slot], [0])


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_ring_that_came_round_gives_the_same_bits(opened, kind, threads, isa, monkeypatch):
    use_isa(monkeypatch, isa)
    model = opened(threads=threads, cache_types=(kind, kind))
    sizes = [40, 1, 39, 2, 40, 18, *[40] * 9, *[1] * 400]
    found = in_parts(model.new_session(1, N, 40), TEXT, sizes)
    np.testing.assert_array_equal(found, whole(model))


def test_slots_beside_each_other_and_steps_of_several(opened):
    model = opened()
    texts = [TEXT[:600], TEXT[300:900], TEXT[::-1][:600].copy()]
    exact, session = [whole(model, text) for text in texts], model.new_session(3, N, 60)
    for at in range(0, 600, 20):
        n = np.arange(at, at + 20)
        tokens = np.concatenate([text[n] for text in texts])
        rows = session.step(tokens, np.tile(n, 3), np.repeat([0, 1, 2], 20), np.arange(60))
        for slot in range(3):
            np.testing.assert_array_equal(rows[20 * slot : 20 * slot + 20], exact[slot][n])


def test_the_cache_takes_no_more_than_the_window_and_a_step(opened):
    model = opened()
    layers = [model.config.layer_window(i) for i in range(4)]
    n_whole, n_windowed = layers.count(None), 4 - layers.count(None)
    chunk = model.new_session(1, 256, 16).cache_bytes // 4
    # window 20 and 16 tokens a step: one chunk of 256 positions is enough; with 300 it takes two
    assert model.new_session(2, 4096, 16).cache_bytes == 2 * chunk * (16 * n_whole + n_windowed)
    assert model.new_session(1, 4096, 300).cache_bytes == chunk * (16 * n_whole + 2 * n_windowed)
    assert model.new_session(1, 4096, 4096).cache_bytes == chunk * 16 * 4


def test_going_back_as_far_as_the_ring_reaches(opened):
    model = opened()
    exact, session = whole(model), model.new_session(1, N, 16)
    in_parts(session, TEXT[:700], [14] * 50)
    # 256 places for positions 444 to 699; 444 is the first that position 463 sees
    assert session.held_from(0) == 444
    assert [session.reusable(0, n) for n in (700, 463, 462, 300, 1, 0)] == [700, 463, 0, 0, 0, 0]
    wrong = session.step([5] * 10, range(690, 700), [0] * 10, [9])  # as rejected guesses leave it
    assert (wrong[0] != exact[699]).any()
    for at in range(463, 500):
        np.testing.assert_array_equal(one(session, TEXT[at], at)[0], exact[at])
    # and on to where the ring comes round again
    for at in range(500, 900, 10):
        rows = session.step(TEXT[at : at + 10], range(at, at + 10), [0] * 10, range(10))
        np.testing.assert_array_equal(rows, exact[at : at + 10])


def test_a_step_that_would_see_what_is_gone_is_refused_and_changes_nothing(opened):
    model = opened()
    exact, session = whole(model), model.new_session(2, N, 16)
    in_parts(session, TEXT[:700], [14] * 50)
    with pytest.raises(LlamacyError, match="slot 0, positions 462 to 462: layers with a window of 20 hold .* from 444"):
        one(session, TEXT[462], 462)
    with pytest.raises(LlamacyError, match="positions 500 to 800"):  # one takes the place of what the other sees
        session.step(TEXT[[500, 800]], [500, 800], [0, 0], [0])
    np.testing.assert_array_equal(one(session, TEXT[700], 700)[0], exact[700])
    np.testing.assert_array_equal(one(session, TEXT[0], 0, 1)[0], exact[0])
    # a slot that begins anew forgets what it held
    np.testing.assert_array_equal(in_parts(session, TEXT[:300], [10] * 30), exact[:300])
    assert session.held_from(0) == 44


@pytest.mark.parametrize("sizes", [(16, 16), (16, N), (N, 16), (300, 16)])
def test_a_cache_that_is_read_and_written_elsewhere(opened, sizes):
    model = opened()
    exact, n = whole(model), 555
    first, second = model.new_session(1, N, sizes[0]), model.new_session(2, N, sizes[1])
    in_parts(first, TEXT[:n], [5] * 111)
    tiles, held = first.read_cache(0, n), first.held_from(0)
    in_parts(second, TEXT[::-1][:600].copy(), [5] * 120, 1)  # what the slot held before must not matter
    second.write_cache(1, tiles, held)
    assert second.reusable(1, n) == n and second.reusable(1, n - 1) == n - 1
    for at in range(n - 1, n + 30):
        np.testing.assert_array_equal(one(second, TEXT[at], at, 1)[0], exact[at])
    if held:
        assert second.reusable(1, held) == 0
        with pytest.raises(ValueError, match="of which layers with a window hold those from"):
            first.read_cache(0, held)


def generate(engine, prompt, n_predict=30, **how):
    found, params = [], SamplingParams(temperature=0, ignore_eos=True)
    how["on_token"] = lambda token: found.append(token.id)
    return found, engine.run(Request(prompt, params, n_predict=n_predict, **how))


def greedy(model, prompt, n):
    """The likeliest tokens but the end of the text, from a cache that holds all."""
    session, tokens = model.new_session(1, N, N), list(prompt)
    row = session.step(tokens, range(len(tokens)), [0] * len(tokens), [len(tokens) - 1])[0]
    for at in range(len(prompt), len(prompt) + n):
        row[EOS] = -np.inf
        tokens.append(int(row.argmax()))
        row = one(session, tokens[-1], at)[0]
    return tokens[len(prompt) :]


def test_an_engine_that_reuses_prefixes_as_far_as_they_are_held(opened):
    model = opened()
    engine, prompt = Engine(model, n_ctx=N, batch_size=32), TEXT[:500].tolist()
    found, result = generate(engine, prompt)
    assert found == greedy(model, prompt, 30) and result.timings.cache_n == 0
    # what came last is there still; what lies further back is computed again from the beginning
    for text, cached in ((prompt + found[:20], 519), (prompt[:400] + [7], 400), (prompt[:100] + [8, 9], 0)):
        more, result = generate(engine, text)
        assert (result.timings.cache_n, more) == (cached, greedy(model, text, 30))


def test_guesses_that_are_rejected(opened):
    model, prompt = opened(), (TEXT[:30].tolist() * 20)[:590]
    found, result = generate(Engine(model, n_ctx=N, batch_size=32, draft_lookup=12), prompt, 200)
    assert found == greedy(model, prompt, 200) and 0 < result.timings.draft_n_accepted < result.timings.draft_n


def test_a_context_that_is_shifted(opened):
    model, prompt = opened(), TEXT[:300].tolist()
    engine = Engine(model, n_ctx=600, batch_size=32, context_shift=True)
    found, result = generate(engine, prompt, 400, n_keep=10)
    assert result.truncated and len(found) == 400
    text = prompt + greedy(model, prompt, 301)
    # full with 600 and the next one chosen: the older half of all but the first ten goes
    assert text[300:] + greedy(model, text[:10] + text[305:], 99) == found


def test_a_prompt_cache_file(opened, tmp_path):
    model, prompt, path = opened(), TEXT[:500].tolist(), tmp_path / "cache"
    for text, reused in ((prompt, 0), (prompt, 499), (prompt[:400] + [7], 400), (prompt[:100] + [7], 0)):
        engine, said = Engine(model, n_ctx=N, batch_size=32), []
        kept = PromptCache(path, engine, writes=not reused, note=said.append)
        kept.restore(text)
        found, result = generate(engine, text)
        kept.keep(text) if not path.exists() else None
        assert (result.timings.cache_n, found) == (reused, greedy(model, text, 30))


def test_a_prompt_that_is_no_longer_held_is_not_kept(opened, tmp_path):
    engine, said = Engine(opened(), n_ctx=N, batch_size=32), []
    kept = PromptCache(tmp_path / "cache", engine, note=said.append)
    kept.restore(TEXT[:300].tolist())
    generate(engine, TEXT[:300].tolist(), 400)
    kept.keep(TEXT[:300].tolist())
    assert "not written: layers with a window" in said[-1] and not (tmp_path / "cache").exists()

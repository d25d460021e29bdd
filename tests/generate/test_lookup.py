"""Drafts from the text itself: found as a search over all places finds them, and never a change of the text."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacy.generate.engine import Engine
from llamacy.generate.lookup import LONGEST, SHORTEST, STEP, TOKEN, Lookup, Trust
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.generate.fakes import FakeModel
from tests.generate.test_engine import ask, finish, ids
from tests.model.tiny import CONFIG, write_llama


def drafted(text, most):
    """What Lookup promises, by looking at every place."""
    best, place = SHORTEST - 1, None
    for end in range(SHORTEST, len(text)):
        n = 0
        while n < min(end, LONGEST) and text[end - 1 - n] == text[-1 - n]:
            n += 1
        if n >= max(best, SHORTEST):
            best, place = n, end
    if place is None:
        return []
    endless = list(text)
    for at in range(place, place + most):
        endless.append(endless[at])
    return endless[len(text) :]


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 9), st.integers(0, 60))
def test_drafts_are_what_followed_the_longest_equal_run(text, most, cut):
    lookup = Lookup()
    lookup.draft(text[:cut], 1)
    assert lookup.draft(text, most) == drafted(text, most)


def test_nothing_that_stood_before_is_no_draft():
    assert Lookup().draft([1, 2, 3, 4], 5) == []
    assert Lookup().draft([1, 2, 1, 2], 0) == []


@given(st.lists(st.booleans(), max_size=80), st.integers(0, 20), st.integers(1, 8))
def test_as_many_guesses_as_are_worth_their_time(past, most, n_sequences):
    trust = Trust()
    for right in past:
        trust.tell(right)
    number = trust.worth(most, n_sequences)
    assert number in {0, 3, 7, 11, 15, 19, most} and number <= most
    # the tokens that one step is expected to give, by playing all outcomes, against one that guesses nothing
    share, gained = trust.share, sum(trust.share**i for i in range(1, number + 1))
    assert 0 <= share <= 1
    assert (1 + gained) * (STEP / n_sequences + TOKEN) >= STEP / n_sequences + TOKEN * (1 + number)


def test_trust_is_lost_in_a_few_guesses_and_won_again():
    trust, wrong, right = Trust(), 0, 0
    assert trust.worth(8, 1) > 0
    while trust.worth(8, 1):
        trust.tell(False)
        wrong += 1
    for _ in range(100):
        trust.tell(False)
    while trust.worth(8, 1) < 7:
        trust.tell(True)
        right += 1
    assert wrong <= 4 and right <= 20
    # in a step of many sequences another token costs as much as it brings: guesses have to be surer
    shares = []
    for n_sequences in (1, 8):
        trust = Trust()
        while trust.worth(3, n_sequences):
            trust.tell(False)
        shares.append(trust.share)
    assert shares[0] < shares[1]


def test_few_guesses_in_text_that_goes_on_otherwise_each_time():
    # of three letters in no order any pair stood before, and what followed it is right one time in three
    noise, found = "".join(random.Random(1).choices("abc", k=300)), []
    for text in (noise, noise[:60] + "0123456789" * 30):
        request, model = ask("ab", n_predict=len(text)), FakeModel(answer=text.encode(), prompt_length=3)
        Engine(model, draft_lookup=8).run(request)
        assert ids(request) == list(text.encode())
        found.append((request.result.timings.draft_n, request.result.timings.draft_n_accepted))
    assert found[0][0] < 60
    assert found[1][1] > 0.8 * found[1][0] > 150


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_drafts_change_no_text(seed, most, always):
    # without temperature the hash's text repeats nothing, with an answer to copy nearly every draft is right
    prompt = "the cat sat on the mat; " * 3
    with pytest.MonkeyPatch.context() as patch:
        if always:
            patch.setattr(Trust, "worth", lambda self, most, n_sequences: most)
        check_drafts(prompt, seed, most)


def check_drafts(prompt, seed, most):
    for temperature, model in ((0.0, FakeModel()), (1.5, FakeModel(answer=prompt.encode(), prompt_length=73))):
        found = []
        for engine in (Engine(model, n_slots=2), Engine(model, n_slots=2, draft_lookup=most)):
            requests = [ask(prompt, seed=seed + i, n_predict=40 + i, temperature=temperature) for i in range(2)]
            finish(engine, *requests)
            found.append(
                ([ids(r) for r in requests], [r.result.stop_type for r in requests], len(engine.session.steps))
            )
        assert found[0][:2] == found[1][:2]
    assert found[1][2] < 0.75 * found[0][2]
    timings = requests[0].result.timings
    assert 0 < timings.draft_n_accepted <= timings.draft_n


def test_drafts_stay_within_the_context_and_the_number_of_tokens():
    model = FakeModel(answer=b"ab" * 500, prompt_length=9)
    for n_predict, n_ctx in ((30, 200), (-1, 64), (1, 12)):
        request, engine = ask("abababab", n_predict=n_predict), Engine(model, n_ctx=n_ctx, draft_lookup=8)
        engine.run(request)
        assert ids(request) == list(b"ab" * 500)[: len(ids(request))]
        assert len(ids(request)) == (n_predict if n_predict > 0 else n_ctx - 9 + 1)
        assert engine.slots[0].cached == engine.slots[0].history[: len(engine.slots[0].cached)]


def test_the_cache_after_drafts_serves_the_next_request():
    model, prompt = FakeModel(answer=b"abcabcabcXYZ" * 9, prompt_length=10), "abcabcabc"
    engine = Engine(model, draft_lookup=6)
    for tail in ("", "abc", "abcabcabcXY"):
        request, alone = ask(prompt + tail), ask(prompt + tail)
        engine.run(request)
        Engine(model).run(alone)
        assert ids(request) == ids(alone)


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_drafts_change_no_text_of_a_real_model(tmp_path, temperature, monkeypatch):
    # random weights; several tokens in a step must give the logits of each, bit for bit, rightly guessed or not
    monkeypatch.setattr(Trust, "worth", lambda self, most, n_sequences: most)
    write_llama(tmp_path / "tiny.gguf", CONFIG, twin.random_weights(CONFIG, 20), "Q4_0")
    model, found = load_model(tmp_path / "tiny.gguf", threads=2), []
    for draft_lookup in (0, 1, 5):
        request = ask([5, 6, 7, 8] * 4, temperature=temperature, top_k=3, n_predict=200, ignore_eos=True)
        Engine(model, n_ctx=256, draft_lookup=draft_lookup).run(request)
        found.append(ids(request))
    assert found[0] == found[1] == found[2]
    assert request.result.timings.draft_n_accepted > 0

"""Each sampler, alone and in chains of any order, against its twin; and the edges of its definition by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacy.errors import LlamacyError
from llamacy.generate.sampler import Sampler
from llamacy.generate.samplers import DEFAULT_ORDER, LETTERS, SAMPLERS
from llamacy.generate.samplers.dry import NONE, Breakers, BreakerTable
from llamacy.generate.samplers.params import SamplingParams, sampler_names, samplers_from_text
from llamacy.kernels.text import sampling
from tests.generate.fakes import N_VOCAB, FakeTokenizer
from tests.generate.sampler_twin import TWINS, distribution, mirostat

# All off: each test turns on what it is about.
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
NEUTRAL = SamplingParams(**OFF)


def spread(seed, n=300, scale=2.0):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def drawn(logits, history, params, chance=0.0, breakers=NONE):
    """Return the distribution (V) that a Sampler draws from; `chance` is xtc's random number."""
    sampler, row = Sampler(params, len(logits), breakers=breakers), logits.copy()
    sampler._chances = lambda: chance
    chosen = sampler.sample(row, list(history))
    assert (row == logits).all()
    result = np.zeros(len(logits))
    for token, probability in sampler.likely(chosen, len(logits)):
        result[token] = probability
    assert result[chosen] == pytest.approx(sampler.probability_of(chosen)) and result[chosen] > 0
    return result


def by_probabilities(probabilities, **params):
    """Return what a chain leaves of tokens with these probabilities, to five digits."""
    logits = np.log(np.array(probabilities, np.float32))
    history = params.pop("history", [])
    return drawn(logits, history, SamplingParams(**OFF | params)).round(5).tolist()


def test_every_sampler_has_a_twin_and_a_letter():
    assert set(TWINS) == set(SAMPLERS) and len(LETTERS) == len(SAMPLERS)


# Values of each field that turn it on, around the edges of its range too.
VALUES = {
    "temperature": st.sampled_from([-1.0, 0.0, 0.3, 1.0, 2.5]),
    "dynatemp_range": st.sampled_from([-1.0, 0.0, 0.4, 3.0]),
    "dynatemp_exponent": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    "top_k": st.integers(-1, 60),
    "top_p": st.floats(0, 1),
    "min_p": st.floats(0, 1),
    "typical_p": st.floats(0, 1),
    "top_n_sigma": st.floats(-1, 4),
    "xtc_probability": st.sampled_from([0.0, 0.3, 1.0]),
    "xtc_threshold": st.sampled_from([0.0, 0.02, 0.1, 0.4, 0.5, 0.6]),
    "min_keep": st.sampled_from([0, 0, 1, 2, 30]),
    "repeat_penalty": st.sampled_from([0.7, 1.0, 1.3]),
    "repeat_last_n": st.integers(-1, 12),
    "presence_penalty": st.sampled_from([-1.0, 0.0, 0.5]),
    "frequency_penalty": st.sampled_from([0.0, 0.3]),
    "dry_multiplier": st.sampled_from([0.0, 0.8]),
    "dry_base": st.sampled_from([1.0, 1.75, 3.0]),
    "dry_allowed_length": st.integers(0, 4),
    "dry_penalty_last_n": st.integers(-1, 20),
}
BREAKERS = {7: {()}, 8: {(), (9,)}, 5: {(6, 5)}}


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(10, 200),
    history=st.lists(st.integers(0, 9), max_size=30),
    chance=st.sampled_from([0.0, 0.5, 0.999]),
    bias=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([-math.inf, -2.0, 3.0])), max_size=3),
    names=st.lists(st.sampled_from(DEFAULT_ORDER), max_size=9) | st.just(DEFAULT_ORDER),
    values=st.fixed_dictionaries({}, optional=VALUES),
)
def test_any_chain_is_what_the_twins_make(seed, n, history, chance, bias, names, values):
    params = SamplingParams(**values, samplers=tuple(names), logit_bias=tuple(bias), seed=1)
    logits = spread(seed, n)
    excludes = chance <= params.xtc_probability
    sequences = [(head, *tail) for head, tails in BREAKERS.items() for tail in tails]
    expected = distribution(logits, history, params, excludes, sequences)
    got = drawn(logits, history, params, chance, Breakers(BREAKERS))
    assert got == pytest.approx(expected, abs=2e-6)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(2, 300),
    st.sampled_from([1, 2]),
    st.floats(0.01, 12),
    st.sampled_from([0.0, 0.5, 1.0, 1.7]),
)
def test_mirostat_is_what_its_twin_makes(seed, n, version, mu, temperature):
    params = SamplingParams(mirostat=version, temperature=temperature, mirostat_tau=mu / 2)
    assert drawn(spread(seed, n), [], params) == pytest.approx(mirostat(spread(seed, n), params, mu), abs=2e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_holds_a_text_near_its_surprise(version):
    """mu is the request's own, twice tau at first, and moves by eta times the error of each token."""
    params = SamplingParams(mirostat=version, mirostat_tau=2.5, mirostat_eta=0.3, temperature=1.0, seed=5)
    sampler, mu, surprises = Sampler(params, 300), 5.0, []
    for step in range(400):
        logits = spread(step)
        token = sampler.sample(logits, [])
        surprises.append(-math.log2(mirostat(logits, params, mu)[token]))
        mu -= 0.3 * (surprises[-1] - 2.5)
        assert sampler.mu == pytest.approx(mu, abs=1e-3)
        mu = sampler.mu
    assert np.mean(surprises[50:]) == pytest.approx(2.5, abs=0.1)
    assert Sampler(params, 300).mu == 5.0


def test_mirostat_takes_the_place_of_every_other_sampler():
    more = {"top_k": 1, "repeat_penalty": 9.0, "typical_p": 0.1, "dry_multiplier": 9.0, "xtc_probability": 1.0}
    for version in (1, 2):
        plain = SamplingParams(mirostat=version, logit_bias=((3, 6.0),))
        other = SamplingParams(mirostat=version, logit_bias=((3, 6.0),), **more)
        assert (drawn(spread(3), [3, 4], plain) == drawn(spread(3), [3, 4], other)).all()
        assert drawn(spread(3), [], plain)[3] > drawn(spread(3), [], SamplingParams(mirostat=version))[3]


@pytest.mark.parametrize(
    "logits", [np.zeros(50), np.array([5.0]), np.array([0, -np.inf, -np.inf]), [900, 0, -900, 3.0]]
)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [0.0, 1.0, 50.0])
def test_mirostat_of_extreme_logits(logits, version, tau):
    logits = np.array(logits, np.float32)
    sampler = Sampler(SamplingParams(mirostat=version, mirostat_tau=tau, temperature=1.0), len(logits))
    for _ in range(20):
        assert logits[sampler.sample(logits, [])] > -np.inf and math.isfinite(sampler.mu)


FOUR = (0.1, 0.2, 0.3, 0.4)
# Sums and bounds that are met exactly: what is at a bound stays.
EDGES = [
    ({"top_p": 0.7}, [0, 0, 3 / 7, 4 / 7]),
    ({"top_p": 0.71}, [0, 2 / 9, 3 / 9, 4 / 9]),
    ({"top_p": 0.0}, [0, 0, 0, 1]),
    ({"top_p": 0.1, "min_keep": 3}, [0, 2 / 9, 3 / 9, 4 / 9]),
    ({"min_p": 0.5}, [0, 2 / 9, 3 / 9, 4 / 9]),
    ({"min_p": 0.51}, [0, 0, 3 / 7, 4 / 7]),
    ({"min_p": 1.0}, [0, 0, 0, 1]),
    ({"min_p": 1.0, "min_keep": 2}, [0, 0, 3 / 7, 4 / 7]),
    ({"top_k": 3}, [0, 2 / 9, 3 / 9, 4 / 9]),
    ({"top_k": 1, "min_keep": 3}, [0, 0, 0, 1]),
    ({"top_n_sigma": 1.0}, [0, 0, 3 / 7, 4 / 7]),
    ({"top_n_sigma": 3.0}, [*FOUR]),
    ({"top_n_sigma": 0.0}, [*FOUR]),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.1}, [1, 0, 0, 0]),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.2}, [1 / 3, 2 / 3, 0, 0]),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.29}, [1 / 6, 2 / 6, 3 / 6, 0]),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.39}, [*FOUR]),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.1, "min_keep": 2}, [*FOUR]),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.51}, [*FOUR]),
    ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
    ({"temperature": 0.0}, [0, 0, 0, 1]),
]


@pytest.mark.parametrize(("params", "expected"), EDGES)
def test_four_tokens(params, expected):
    assert by_probabilities(FOUR, **params) == pytest.approx(expected, abs=1e-5)


def test_typical_tokens_may_leave_out_the_likeliest():
    assert by_probabilities([0.4, 0.2, 0.2, 0.2], typical_p=0.5) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=1e-5)
    assert by_probabilities([0.97, 0.01, 0.01, 0.01], typical_p=0.5)[0] == 1
    # Also at temperature 0: the likeliest of those that are left, the lowest id on ties.
    assert by_probabilities([0.4, 0.2, 0.2, 0.2], typical_p=0.5, temperature=0.0) == [0, 1, 0, 0]
    # The sum must be more than typical_p, not only reach it.
    assert by_probabilities([0.4, 0.2, 0.2, 0.2], typical_p=0.4)[3] > 0


def test_penalties_by_hand():
    """A logit of 1 or more is divided, one of at most 0 multiplied; then n times frequency and presence once."""
    params = SamplingParams(**OFF, repeat_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5, repeat_last_n=4)
    logits = np.array([2.0, -1.0, 3.0, 0.0], np.float32)
    expected = np.array([2 / 2 - 2 * 0.25 - 0.5, -1 * 2 - 0.25 - 0.5, 3.0, 0 - 0.25 - 0.5])
    got = drawn(logits, [2, 2, 0, 1, 0, 3], params)
    assert got == pytest.approx(np.exp(expected) / np.exp(expected).sum(), abs=1e-6)


def test_penalties_behind_a_cut_change_only_what_is_left():
    """Two of four tokens are left by top_k; each time that one was seen counts."""
    params = SamplingParams(**OFF | {"top_k": 2}, samplers=("top_k", "penalties"), frequency_penalty=1.5)
    got = drawn(np.array([3.0, 1.0, 2.0, 0.0], np.float32), [0, 0, 1, 3], params)
    expected = np.exp([3.0 - 2 * 1.5, 2.0])
    assert got == pytest.approx([expected[0] / expected.sum(), 0, expected[1] / expected.sum(), 0], abs=1e-6)


# Histories, what follows them, and how long the repeated sequence is that it would go on with.
SEQUENCES = [
    ([1, 2, 3, 1, 2], {3: 2}),
    ([1, 2, 3, 1, 2, 3, 1, 2], {3: 5}),
    ([1, 2, 3, 4, 2, 5, 1, 2], {3: 2, 5: 1}),
    ([1, 2, 5, 4, 2, 5, 3, 1, 2], {5: 2}),
    ([1, 1, 1, 1], {1: 3}),
    ([1, 2, 3, 4], {}),
    ([1], {}),
    ([], {}),
]


@pytest.mark.parametrize(("history", "lengths"), SEQUENCES)
@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_dry_by_hand(history, lengths, allowed):
    params = SamplingParams(**OFF, dry_multiplier=0.5, dry_base=2.0, dry_allowed_length=allowed)
    penalties = np.zeros(6)
    for token, length in lengths.items():
        penalties[token] = 0.5 * 2 ** (length - allowed) if length >= allowed else 0
    got = drawn(np.zeros(6, np.float32), history, params)
    assert got == pytest.approx(np.exp(-penalties) / np.exp(-penalties).sum(), abs=1e-6)


def test_dry_ends_sequences_at_breakers():
    params = SamplingParams(**OFF, dry_multiplier=1.0, dry_allowed_length=1)
    history = [1, 2, 3, 4, 1, 2, 3]
    assert drawn(np.zeros(6, np.float32), history, params)[4] < 0.1
    for tails in ({3: {()}}, {2: {(3,)}}):  # nothing behind the last breaker
        assert drawn(np.zeros(6, np.float32), history, params, breakers=Breakers(tails)) == pytest.approx(
            np.full(6, 1 / 6)
        )
    # One token behind it; the token 4 would go on with more. A token that is a breaker is never penalised.
    one = drawn(np.zeros(6, np.float32), history, params, breakers=Breakers({2: {()}}))
    assert one[4] / one[0] == pytest.approx(math.exp(-1))
    assert drawn(np.zeros(6, np.float32), history, params, breakers=Breakers({4: {()}})) == pytest.approx(
        np.full(6, 1 / 6)
    )


def test_dry_of_a_text_that_repeats_without_end_stays_a_number():
    params = SamplingParams(**OFF, dry_multiplier=1.0, dry_base=1.75)
    got = drawn(np.zeros(6, np.float32), [1] * 5000, params)
    assert got[1] == 0 and got[0] == pytest.approx(0.2)


@given(st.lists(st.integers(0, 2), max_size=40))
def test_repeats_are_the_longest_common_suffixes(window):
    counts = sampling.repeats(np.array(window, np.int32)).tolist()
    n = len(window)
    for i in range(n - 1):
        expected = next(k for k in range(i + 2) if k > i or window[i - k] != window[n - 1 - k])
        assert counts[i] == expected
    assert len(counts) == n and (not n or counts[-1] == 0)


def test_breakers_of_a_vocabulary():
    """Tokens that hold a text, and those that end as it begins, with the tokens that would make it whole."""
    table = BreakerTable(FakeTokenizer(), N_VOCAB)
    assert table.get(("\n",)).single == {10} and table.get(("\n",)) is table.get(("\n",))
    found = table.get(("top", ""))
    assert found.single == {260}
    assert found._tails[262] == {tuple(b"op")} and found._tails[ord("t")] == {tuple(b"op")}
    assert set(found._tails) == {260, 262, ord("t")}
    assert found.tokens_since([1, 262, *b"op", 5]) == 1
    assert found.tokens_since([1, 262, *b"ox", 5]) == 5
    assert found.tokens_since([1, 260, 5, 6]) == 2
    # A character cut in two, and no more than 40 bytes of a breaker.
    assert table.get(("本",))._tails[0xE6] == {(0x9C, 0xAC)}
    long = table.get(("q" * 100,))
    assert max(map(len, long._tails[ord("q")])) == 20


def test_xtc_has_random_numbers_of_its_own():
    def draws(**more):
        sampler = Sampler(SamplingParams(seed=3, **OFF, **more), 50)
        return [sampler.sample(spread(i, 50), []) for i in range(200)]

    assert draws() == draws(xtc_probability=1e-9) == draws(xtc_probability=1.0, xtc_threshold=0.6)
    assert draws() != draws(xtc_probability=0.5)
    # It comes as often as it says: of two tokens the likelier one is then left out.
    sampler = Sampler(SamplingParams(seed=3, **OFF, xtc_probability=0.3), 2)
    logits = np.array([9.0, 9.5], np.float32)
    alone = sum(sampler.sample(logits, []) is not None and len(sampler.drawn_from.ids) == 1 for _ in range(3000))
    assert alone / 3000 == pytest.approx(0.3, abs=0.05)


def test_dynamic_temperature_by_hand():
    """Between temperature - range and + range by the entropy over the largest possible one of all candidates."""
    params = {"temperature": 1.0, "dynatemp_range": 0.5, "dynatemp_exponent": 2.0}
    q = np.array(FOUR)
    entropy = -(q * np.log(q)).sum()
    for forbidden in (0, 3):  # tokens at minus infinity are candidates too
        t = 0.5 + (entropy / math.log(4 + forbidden)) ** 2
        expected = q ** (1 / t) / (q ** (1 / t)).sum()
        logits = np.log(np.array([*FOUR, *[1.0] * forbidden], np.float32))
        bias = tuple((4 + i, -math.inf) for i in range(forbidden))
        got = drawn(logits, [], SamplingParams(**OFF | params, logit_bias=bias))
        assert got[:4] == pytest.approx(expected, abs=1e-6)
    assert by_probabilities([0.25] * 4, **params) == [0.25] * 4
    # What top_n_sigma forbids stays a candidate: two of four are left, but the largest entropy is that of four.
    t = 0.5 + (-(3 / 7 * math.log(3 / 7) + 4 / 7 * math.log(4 / 7)) / math.log(4)) ** 2
    two = np.array([3.0, 4.0]) ** (1 / t)
    assert by_probabilities(FOUR, **params, top_n_sigma=1.0) == pytest.approx([0, 0, *(two / two.sum())], abs=1e-5)
    # At temperature 0 the range is from 0 to itself, as in llama.cpp: no greedy choice.
    assert by_probabilities(FOUR, temperature=0.0, dynatemp_range=1.0)[3] < 0.5


def test_without_temperature_in_the_chain_there_is_none():
    assert by_probabilities(FOUR, temperature=0.0, samplers=("top_k",)) == pytest.approx(FOUR)
    assert by_probabilities(FOUR, temperature=0.0, top_k=1, samplers=()) == pytest.approx(FOUR)


def test_names_of_samplers():
    assert sampler_names(("top-k", "nucleus", "typical", "temp", "top_k")) == (
        *("top_k", "top_p", "typ_p", "temperature", "top_k"),
    )
    assert samplers_from_text("edskypmxt") == DEFAULT_ORDER == samplers_from_text(";".join(DEFAULT_ORDER))
    assert samplers_from_text("kt") == samplers_from_text("top_k; temperature") == ("top_k", "temperature")
    assert samplers_from_text("") == () and samplers_from_text("dry") == ("dry",)
    for text in ("top_k;best", "kq"):
        with pytest.raises(LlamacyError, match="^samplers: wanted names of penalties, dry, .*, got '(best|kq)'"):
            samplers_from_text(text)
    with pytest.raises(LlamacyError, match="samplers: wanted at most 64, got 65"):
        sampler_names(("top_k",) * 65)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("xtc_probability", 1.1),
        ("xtc_threshold", -0.1),
        ("dry_base", 0.9),
        ("dry_multiplier", -1),
        ("dry_allowed_length", 1.5),
        ("dry_penalty_last_n", -2),
        ("mirostat", 3),
        ("mirostat_tau", -1),
        ("mirostat_eta", "x"),
        ("dynatemp_exponent", -1),
        ("min_keep", -1),
        ("top_n_sigma", math.nan),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(LlamacyError, match=f"^{field}: wanted .*, got "):
        SamplingParams(**{field: value})

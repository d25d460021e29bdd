"""The sampler against a plain NumPy twin, stage by stage and as a distribution."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacy.errors import LlamacyError
from llamacy.generate.sampler import Sampler, token_probs
from llamacy.generate.samplers.params import SamplingParams
from llamacy.kernels.text import sampling
from tests.generate.sampler_twin import distribution, softmax

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "temperature": 1.0}


def spread(seed, n=300, scale=2.0):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


CHAINS = {
    "defaults": {},
    "no filter": OFF,
    "top_k": OFF | {"top_k": 5},
    "top_k above V": OFF | {"top_k": 10**6},
    "top_p": OFF | {"top_p": 0.6},
    "top_p 0": OFF | {"top_p": 0.0},
    "min_p": OFF | {"min_p": 0.1},
    "top_p and min_p": OFF | {"top_p": 0.7, "min_p": 0.02},
    "typical": OFF | {"typical_p": 0.4},
    "typical and top_p": OFF | {"typical_p": 0.8, "top_p": 0.5, "top_k": 50},
    "hot": {"temperature": 2.0, "min_p": 0.0},
    "cold": {"temperature": 0.3},
    "penalties": {"repeat_penalty": 1.7, "frequency_penalty": 0.4, "presence_penalty": 0.3, "repeat_last_n": 6},
    "penalties, all": {"repeat_penalty": 1.3, "repeat_last_n": -1},
    "penalties off": {"repeat_penalty": 9.0, "repeat_last_n": 0},
    "bias": {"logit_bias": ((3, 4.0), (9, -math.inf), (3, 1.0))},
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_draws_by_the_twin_s_distribution(name):
    params, history = SamplingParams(seed=7, **CHAINS[name]), [1, 5, 5, 9, 200, 5, 17, 1]
    logits, draws = spread(11), 4000
    before = logits.copy()
    expected = distribution(logits, history, params)
    sampler = Sampler(params, len(logits))
    counts = np.bincount([sampler.sample(logits, history) for _ in range(draws)], minlength=len(logits))
    assert (logits == before).all()
    assert (counts[expected == 0] == 0).all()
    # Chi-square over the likely tokens, the rest in one bin; the bound is about six standard deviations.
    likely = expected * draws >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum()) * draws
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    chi, degrees = ((observed - wanted) ** 2 / wanted).sum(), len(wanted)
    assert chi < degrees + 6 * math.sqrt(2 * degrees) + 6


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 200),
    top_k=st.integers(-1, 250),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    typical_p=st.floats(0, 1),
)
def test_what_can_be_drawn_is_what_the_twin_leaves(seed, n, top_k, top_p, min_p, typical_p):
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, seed=1)
    logits = spread(seed, n)
    expected, sampler = distribution(logits, [], params), Sampler(params, n)
    for uniform in (0.0, 0.5, 1 - 2**-53):
        sampler._random = lambda uniform=uniform: uniform
        drawn = sampler.sample(logits, [])
        # On the very edge of a filter a rounding of the sums decides: the twin must agree for a neighbouring bound.
        near = [
            distribution(
                logits,
                [],
                SamplingParams(top_k=top_k, top_p=move(top_p, d), min_p=move(min_p, d), typical_p=move(typical_p, -d)),
            )[drawn]
            for d in (-1e-6, 1e-6)
        ]
        assert expected[drawn] > 0 or max(near) > 0


def move(p, by):
    return p if p in (0.0, 1.0) else min(1.0, max(0.0, p + by))


def test_greedy_takes_the_lowest_id_on_ties():
    logits = np.zeros(1000, np.float32)
    logits[[313, 77, 999]] = 4
    for temperature in (0, -1.0):
        assert Sampler(SamplingParams(temperature=temperature), 1000).sample(logits, []) == 77
    ids, values = sampling.top_k(logits, 5)
    assert ids.tolist() == [77, 313, 999, 0, 1] and values.tolist() == [4, 4, 4, 0, 0]


def test_same_seed_same_tokens_and_another_seed_others():
    def draw(seed):
        sampler = Sampler(SamplingParams(seed=seed), 300)
        return [sampler.sample(spread(i), []) for i in range(50)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(-1) != draw(-1)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 128, 1000])
def test_kernels_on_odd_sizes(n):
    for seed in range(20):
        x = np.round(spread(seed, n) * 2) / 2  # many ties
        order = np.lexsort((np.arange(n), -x))
        assert sampling.argmax(x) == order[0]
        for k in (0, 1, n // 2, n, n + 5):
            ids, values = sampling.top_k(x, k)
            assert ids.tolist() == order[:k].tolist() and values.tolist() == x[order[:k]].tolist()
        y = x.astype(np.float64)
        assert abs(sampling.log_sum_exp(x) - (y.max() + np.log(np.exp(y - y.max()).sum()))) < 1e-6


def test_extreme_values():
    inf, nan = math.inf, math.nan
    x = np.array([-inf, 0, nan, -200, 3, nan], np.float32)
    assert sampling.argmax(x) == 4
    assert sampling.top_k(x, 3)[0].tolist() == [4, 1, 3]
    assert sampling.log_sum_exp(x) == pytest.approx(math.log(math.exp(3) + 1), abs=1e-6)
    assert sampling.argmax(np.full(99, nan, np.float32)) == -1
    assert sampling.argmax(np.zeros(0, np.float32)) == -1
    assert sampling.log_sum_exp(np.full(99, -inf, np.float32)) == -inf
    big = np.array([3e38, -3e38, 3e38], np.float32)
    assert sampling.log_sum_exp(big) == pytest.approx(float(np.float32(3e38)))


@pytest.mark.parametrize("params", [{}, OFF, {"temperature": 0}, {"typical_p": 0.5}, {"top_k": 0}])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_nothing_to_choose_from_is_an_error(params, value):
    with pytest.raises(LlamacyError, match="no token can be chosen"):
        Sampler(SamplingParams(**params), 100).sample(np.full(100, value, np.float32), [])


def test_ignore_eos_forbids_every_end_token():
    sampler = Sampler(SamplingParams(ignore_eos=True, temperature=0), 50, eog_ids=frozenset({3, 4}))
    logits = np.zeros(50, np.float32)
    logits[[3, 4, 9]] = 9, 8, 7
    assert sampler.sample(logits, []) == 9


def test_penalties_check_their_ids():
    with pytest.raises(IndexError):
        sampling.penalize(np.zeros(5, np.float32), np.array([1, 5], np.int32), 1.1, 0, 0)


def test_log_probabilities_are_of_the_whole_softmax():
    logits = spread(5, 49152)
    logprob, top = token_probs(logits, 123, 4)
    expected = np.log(softmax(logits.astype(np.float64)))
    assert logprob == pytest.approx(expected[123], abs=1e-5)
    assert [i for i, _ in top] == np.argsort(-expected, kind="stable")[:4].tolist()
    assert [q for _, q in top] == pytest.approx(np.sort(expected)[::-1][:4], abs=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", 1.5),
        ("top_p", 1.01),
        ("top_p", -0.1),
        ("min_p", math.inf),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("seed", -2),
        ("seed", 2**64),
        ("n_probs", -1),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(LlamacyError, match=f"^{field}: wanted .*, got "):
        SamplingParams(**{field: value})


def test_a_bias_for_a_token_that_does_not_exist():
    with pytest.raises(LlamacyError, match="logit_bias: wanted a token id from 0 to 99, got 100"):
        Sampler(SamplingParams(logit_bias=((100, 1.0),)), 100)

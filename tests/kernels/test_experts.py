"""The router against its twin and finite differences, and tokens sorted by expert."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.kernels.reference import experts as twin

WAYS = [
    {"scores": "softmax", "renormalised": False, "scale": 1.0},
    {"scores": "softmax", "renormalised": True, "scale": 1.0},
    {"scores": "softmax", "renormalised": False, "scale": 2.5},
    {"scores": "sigmoid", "renormalised": False, "scale": 1.0},
    {"scores": "sigmoid", "renormalised": True, "scale": 2.5},
]
SIZES = [(1, 1), (3, 1), (5, 2), (5, 5), (64, 8), (129, 9), (1024, 4)]


def logits_of(n, T=7, spread=2.0):
    return (np.random.default_rng(n).normal(size=(T, n)) * spread).astype(np.float32)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_choice_and_weights(isa, n, k, how):
    logits = logits_of(n)
    chosen, weights = kernels.load("experts", isa).routes(logits, k, *how.values())
    wanted, exact = twin.route(logits, k, **how)
    np.testing.assert_array_equal(chosen, wanted)
    np.testing.assert_allclose(weights, exact, rtol=2e-7)


def test_logits_far_apart_and_alike(isa):
    routes = kernels.load("experts", isa).routes
    chosen, weights = routes(np.array([[1e4, -1e4, 0, 1e4], [3, 3, 3, 3]], np.float32), 2, "softmax", True)
    np.testing.assert_array_equal(chosen, [[0, 3], [0, 1]])
    np.testing.assert_array_equal(weights, 0.5)
    # two scores that f32 cannot tell from one: the larger logit is the first
    chosen, _ = routes(np.array([[40, 41, 42]], np.float32), 2, "sigmoid")
    np.testing.assert_array_equal(chosen, [[2, 1]])


def test_a_selection_bias_decides_and_does_not_weigh(isa):
    logits, bias = logits_of(6), np.array([0, 0.9, -0.9, 0.3, 0, 0])
    chosen, weights = kernels.load("experts", isa).routes(logits, 2, "sigmoid", True, 1, bias)
    wanted, exact = twin.route(logits, 2, "sigmoid", selection=bias)
    np.testing.assert_array_equal(chosen, wanted)
    np.testing.assert_allclose(weights, exact, rtol=2e-7)
    assert (chosen != twin.route(logits, 2, "sigmoid")[0]).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_numbers_choose_experts_that_exist_and_stay_what_they_are(isa, value):
    logits = logits_of(5)
    logits[2, 3] = value
    chosen, weights = kernels.load("experts", isa).routes(logits, 2)
    assert ((chosen >= 0) & (chosen < 5)).all() and len(set(chosen[2])) == 2
    assert np.isfinite(weights[2]).all() == (value == -np.inf) and np.isfinite(np.delete(weights, 2, 0)).all()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 2), (5, 5), (129, 9)])
def test_gradients(isa, n, k, how):
    logits = logits_of(n, spread=1.0)
    chosen, weights = twin.route(logits, k, **how)
    dweights = np.random.default_rng(k).normal(size=weights.shape)
    exact = twin.route_backward(dweights, logits, chosen, **how)
    found = kernels.load("experts", isa).routes(logits, k, *how.values(), e=weights * dweights)
    np.testing.assert_allclose(found, exact, atol=2e-6 * how["scale"])

    def total(moved):
        s = twin._scores(moved, how["scores"])
        own = np.take_along_axis(s, chosen, 1)
        return how["scale"] * np.sum(dweights * (own / own.sum(1, keepdims=True) if how["renormalised"] else own))

    for i in range(3):
        direction = np.random.default_rng(i).normal(size=logits.shape)
        slope = (total(logits + 1e-6 * direction) - total(logits - 1e-6 * direction)) / 2e-6
        assert np.sum(exact * direction) == pytest.approx(slope, abs=1e-8)


def test_the_gradient_of_a_weight_of_nothing_is_finite(isa):
    logits = np.array([[0, -1000, -2000]], np.float32)
    found = kernels.load("experts", isa).routes(logits, 2, "softmax", True, e=np.array([[0.5, 0.0]]))
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize(("n", "k", "T"), [(1, 1, 1), (5, 2, 1), (5, 2, 40), (7, 7, 3), (300, 4, 9)])
def test_sorted_rows(isa, n, k, T):
    rng = np.random.default_rng(T)
    chosen = np.array([rng.permutation(n)[:k] for _ in range(T)], np.int32)
    first, place, token_of, active = kernels.load("experts", isa).sorted_rows(chosen, n)
    np.testing.assert_array_equal(active, np.unique(chosen))
    assert sorted(place.ravel()) == list(range(T * k))
    for e in range(n):
        np.testing.assert_array_equal(token_of[first[e] : first[e + 1]], np.flatnonzero((chosen == e).any(axis=1)))
    for t in range(T):
        for j in range(k):
            assert token_of[place[t, j]] == t and first[chosen[t, j]] <= place[t, j] < first[chosen[t, j] + 1]

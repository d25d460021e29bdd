"""Steps of a run: every sample once per epoch, the order a function of seed and step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamacy.train.batches import Plan, permutation, split
from llamacy.train.options import TrainOptions

SIZES = {"n": st.integers(1, 60), "batch_size": st.integers(1, 7), "grad_acc": st.integers(1, 4)}


@given(**SIZES, epochs=st.integers(1, 3), shuffle=st.booleans())
def test_an_epoch_takes_every_sample_once(n, epochs, shuffle, **sizes):
    plan = Plan(n, TrainOptions(epochs=epochs, shuffle=shuffle, **sizes))
    seen = {}
    for step in range(plan.n_steps):
        micro_batches = plan.step(step)
        assert 1 <= len(micro_batches) <= sizes["grad_acc"]
        assert all(1 <= len(batch) <= sizes["batch_size"] for batch in micro_batches)
        seen.setdefault(plan.epoch(step), []).extend(sum(micro_batches, []))
        if plan.ends_epoch(step):
            assert sorted(seen[plan.epoch(step)]) == list(range(n))
            assert shuffle or seen[plan.epoch(step)] == list(range(n))
    assert sorted(seen) == list(range(epochs)) and plan.ends_epoch(plan.n_steps - 1)


@given(**SIZES, step=st.integers(0, 200))
def test_a_step_does_not_depend_on_the_steps_before(n, step, **sizes):
    plan = Plan(n, TrainOptions(epochs=1000, **sizes))
    assert Plan(n, TrainOptions(epochs=1000, **sizes)).step(step) == [plan.step(i) for i in range(step + 1)][-1]


def test_the_order_follows_the_seed_and_the_epoch():
    def order(seed, epoch):
        plan = Plan(100, TrainOptions(seed=seed, batch_size=100, epochs=3))
        return plan.step(epoch)[0]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_the_order_never_changes_between_versions():
    assert permutation(10, 42, 0).tolist() == [4, 8, 1, 9, 3, 6, 0, 7, 2, 5]


def test_the_shorter_of_epochs_and_steps_ends_the_run():
    assert Plan(10, TrainOptions(epochs=2)).n_steps == 20
    assert Plan(10, TrainOptions(epochs=2, max_steps=7)).n_steps == 7
    assert Plan(10, TrainOptions(epochs=2, max_steps=70, batch_size=3, grad_acc=2)).n_steps == 4


@pytest.mark.parametrize(("n", "fraction", "held"), [(10, 0.0, 0), (10, 0.25, 2), (10, 0.01, 1), (2, 0.9, 1)])
def test_a_split_parts_the_samples(n, fraction, held):
    train, validation = split(n, fraction, 42)
    assert len(validation) == held and sorted([*train, *validation]) == list(range(n))
    assert train.tolist() == sorted(train) and split(n, fraction, 42)[1].tolist() == validation.tolist()

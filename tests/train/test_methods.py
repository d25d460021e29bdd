"""LoRA+, PiSSA and NEFTune: what each changes, alone and against the recorded runs of PEFT."""

import numpy as np
import pytest

from llamacy.errors import UsageError
from llamacy.formats.adapter import load_adapter, save_adapter
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train import lora
from llamacy.train.lora import principal_pair
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.model import golden
from tests.model.tiny import tokens_of, write_llama
from tests.train.test_trainer_golden import recorded_samples

SMALL = twin.Config(n_vocab=97, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_layer=2)
SAMPLES = [Sample(tokens_of(SMALL, n, seed=n).astype(np.int32), np.arange(n) > 2) for n in (9, 21, 5)]


@pytest.fixture
def make(tmp_path):
    def trainer(init=None, **options):
        path = tmp_path / "model.gguf"
        if not path.exists():
            write_llama(path, SMALL, twin.random_weights(SMALL, 5), "F32")
        options = TrainOptions(**({"n_ctx": 64, "max_grad_norm": 0.0} | options))
        made = Trainer(load_model(path, activations="f32", threads=2), options)
        made.init_lora(4, 8.0, tuple(TARGETS), 7, init)
        return made

    return trainer


def parts(made):
    """{name: (A, B^T)} as they are now, copied."""
    return {name: (a.copy(), b.copy()) for name, a, b, _ in made._views(made._pass.params)}


def test_b_learns_at_so_many_times_the_rate_of_a(make):
    plain, plus = make(), make(loraplus_ratio=16.0)
    for made in (plain, plus):
        made._pass.params[:] = np.random.default_rng(1).normal(0, 0.05, len(made._pass.params))
    start = parts(plain)
    for made in (plain, plus):
        made.step([SAMPLES], 1e-4)
    for name, (_, b) in start.items():
        (a1, b1), (a2, b2) = parts(plain)[name], parts(plus)[name]
        np.testing.assert_array_equal(a2, a1)
        np.testing.assert_allclose(b2 - b, 16 * (b1 - b), rtol=1e-3, atol=1e-6)


def test_a_pair_of_principal_values_changes_nothing_and_holds_the_largest(monkeypatch):
    w = np.random.default_rng(2).normal(size=(48, 80)).astype(np.float32)
    monkeypatch.setattr(lora, "WHOLE", 200)
    large = np.random.default_rng(3).normal(size=(260, 240)) @ np.diag(0.9 ** np.arange(240))
    for matrix in (w, w.T.copy(), large):
        pair = principal_pair(matrix.astype(np.float32), 5, 2.0)
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        best = (u[:, :5] * s[:5]) @ vt[:5]
        assert pair.a.shape[0] == 10 and np.abs(pair.b @ pair.a).max() < 1e-4 * s[0]
        np.testing.assert_allclose(2.0 * pair.b[:, :5] @ pair.a[:5], best, atol=2e-4 * s[0])
        # both share the values alike
        np.testing.assert_allclose(np.linalg.norm(pair.a[:5], axis=1), np.linalg.norm(pair.b[:, :5], axis=0), rtol=1e-3)


def test_pissa_begins_as_the_model_trains_half_and_is_saved_as_plain_lora(make, tmp_path):
    made = make(init_weights="pissa", weight_decay=0.1)
    base = make().evaluate([SAMPLES])[0]
    assert made.evaluate([SAMPLES])[0] == pytest.approx(base, abs=1e-5)
    start = parts(made)
    losses = [made.step([SAMPLES], 1e-3).loss for _ in range(5)]
    assert losses[-1] < losses[0]
    for name, (a, b) in parts(made).items():
        np.testing.assert_array_equal(a[4:], start[name][0][4:])
        np.testing.assert_array_equal(b[4:], start[name][1][4:])
        assert (a[:4] != start[name][0][:4]).any() and (b[:4] != start[name][1][:4]).any()
    trained = made.evaluate([SAMPLES])[0]
    for form in ("gguf", "ggla"):
        save_adapter(str(tmp_path / form), made.adapter(), form, made.model.metadata)
        again = make(load_adapter(str(tmp_path / form)))
        assert again.evaluate([SAMPLES])[0] == pytest.approx(trained, abs=1e-5)


def test_noise_is_uniform_and_smaller_in_longer_sequences(make):
    made = make(neftune_alpha=5.0)
    starts = np.array([0, 4, 20])
    noise = made._noise(0, starts)
    assert noise.shape == (20, 64) and noise.dtype == np.float32
    for low, high in ((0, 4), (4, 20)):
        bound = 5.0 / np.sqrt((high - low) * 64)
        part = noise[low:high]
        assert 0.97 * bound < np.abs(part).max() <= bound * (1 + 1e-6)
        assert part.std() == pytest.approx(bound / np.sqrt(3), rel=0.08) and abs(part.mean()) < 0.1 * bound
    np.testing.assert_array_equal(made._noise(0, starts), noise)
    assert (made._noise(1, starts) != noise).any()
    first = made.step([SAMPLES], 1e-3)
    assert (made._noise(0, starts) != noise).any()
    plain = make()
    assert plain._noise(0, starts) is None
    assert first.loss != plain.probe(SAMPLES).loss
    # only in training
    assert make(neftune_alpha=5.0).evaluate([SAMPLES]) == plain.evaluate([SAMPLES])


@golden.needs_model
def test_a_run_of_lora_plus_is_that_of_peft():
    found = run_of("loraplus", {"loraplus_ratio": 16.0}, "init", 2e-4, 3)
    for result, wanted in found:
        assert result.loss == pytest.approx(wanted["loss"], rel=0.005)
        assert result.grad_norm == pytest.approx(wanted["grad_norm"], rel=0.01)


def run_of(name, options, init, rate, n, activations="f32"):
    """Return [(a step's result, what was recorded of it), ...]."""
    trainer = Trainer(golden.model(activations), TrainOptions(max_grad_norm=0.0, **options))
    start = golden.stored_adapter(init) if init else None
    trainer.init_lora(golden.RANK, golden.ALPHA, tuple(TARGETS), 42, start)
    samples, found = recorded_samples(), []
    for i, wanted in enumerate(golden.recorded(f"methods/{name}.json")[:n]):
        at = 2 * i % len(samples)
        found.append((trainer.step([samples[at : at + 2]], rate), wanted))
    return found


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UsageError, match="--neftune-alpha: --method dpo looks at an answer twice"):
        TrainOptions(method="dpo", neftune_alpha=5.0)
    with pytest.raises(UsageError, match="--warmup-steps and --warmup-ratio are both given"):
        TrainOptions(warmup_steps=3, warmup_ratio=0.1)

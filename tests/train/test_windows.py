"""Training of layers with windows, soft caps and sinks: loss and every gradient are the float64 twin's."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.model import windowed
from tests.model.tiny import tokens_of, use_isa

# beyond the window, within it, and beyond a block of the backward pass
LENGTHS = (70, 9, 33)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", windowed.CASES)
def test_gradients_are_the_twins(tmp_path, monkeypatch, name, checkpointing, threads, isa):
    use_isa(monkeypatch, isa)
    config, scale = windowed.CASES[name], 1.5
    windowed.understand(monkeypatch, config)
    exact = windowed.write(tmp_path / "m.gguf", config)
    lora = twin.random_lora(config, 4, 3)
    pairs = {key: LoraPair(a.astype(np.float32), b.astype(np.float32), scale) for key, (a, b) in lora.items()}
    model = load_model(tmp_path / "m.gguf", activations="f32", threads=threads)
    trainer = Trainer(model, TrainOptions(n_ctx=128, max_grad_norm=0.0, checkpointing=checkpointing))
    trainer.init_lora(4, 4 * scale, tuple(TARGETS), 7, Adapter("llama", pairs, 4 * scale))
    texts = [tokens_of(config, n, seed=n).astype(np.int32) for n in LENGTHS]
    result = trainer.step([[Sample(text, np.arange(len(text)) > 0) for text in texts]], 0.0)
    tokens, segments = np.concatenate(texts), np.repeat(np.arange(len(texts)), LENGTHS)
    targets = twin.next_token_targets(tokens, segments)
    loss, gradients, _ = twin.loss_and_gradients(config, exact, tokens, targets, segments, lora, scale)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    found = trainer.gradients()
    assert found.keys() == gradients.keys()
    for key, wanted in gradients.items():
        for a, b in zip(found[key], wanted, strict=True):
            # f32 sums of at most 97 terms, layer after layer: 1e-4 of the matrix's largest gradient
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max(), err_msg=key)

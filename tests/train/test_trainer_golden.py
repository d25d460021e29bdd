"""Training the default model: PEFT's recorded run step by step, and a set of two questions learnt by heart."""

import json

import numpy as np
import pytest

from llamacy.generate.engine import Engine
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams
from llamacy.train.data import open_data
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Encoder, Sample
from llamacy.train.trainer import Trainer
from tests.model import claims, golden

pytestmark = golden.needs_model
RATE, EPOCHS, BATCH = 1e-3, 3, 2


def recorded_samples():
    """The eight samples whose ids are recorded, their completions trained."""
    found = []
    for row in json.loads((golden.DATA / "sft_tokens.json").read_text()):
        ids = row["prompt"] + row["completion"]
        found.append(Sample(np.array(ids, np.int32), np.arange(len(ids)) >= len(row["prompt"])))
    return found


def new_trainer(activations, init=None):
    trainer = Trainer(golden.model(activations), TrainOptions(max_grad_norm=0.0))
    trainer.init_lora(golden.RANK, golden.ALPHA, tuple(TARGETS), 42, init)
    return trainer


@pytest.mark.parametrize("activations", ["f32", "int16"])
def test_peft_s_run(activations):
    trainer, samples = new_trainer(activations, golden.stored_adapter("init")), recorded_samples()
    batches = [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)] * EPOCHS
    results = [trainer.step([batch], RATE) for batch in batches]
    wanted = golden.recorded("sft_peft_log.json")
    assert [result.trained_tokens for result in results] == [row["tokens"] for row in wanted]
    for key, percent in zip(("loss", "grad_norm"), claims.numbers("12 training steps", activations), strict=True):
        found, known = np.array([getattr(result, key) for result in results]), np.array([row[key] for row in wanted])
        assert claims.holds(100 * np.max(np.abs(found / known - 1)), percent), key


def test_training_by_default_rounds_to_16_bits():
    first = {a: new_trainer(a).step([recorded_samples()[:2]], RATE).loss for a in ("int8", "int16", "f32")}
    assert first["int8"] == first["int16"] != first["f32"]


def answer(engine, sample, tokenizer):
    """Return what the engine says after a sample's prompt, at temperature 0, as text."""
    ids, prompt = [], sample.ids[: int(np.argmax(sample.trained))].tolist()

    def keep(token):
        if not token.is_end:
            ids.append(token.id)
        return False

    engine.run(Request(prompt, SamplingParams(temperature=0.0), n_predict=100, on_token=keep))
    return tokenizer.decode(ids)


def test_two_questions_are_learnt_by_heart():
    model = golden.model("int8")
    data = open_data([golden.ROOT / "examples" / "finetune-data.txt"], Encoder(model.tokenizer, 512))
    samples, trainer = [data[i] for i in range(len(data))], new_trainer("int8")
    for _ in range(9):
        for sample in samples:
            trainer.step([[sample]], 2 * RATE)
    index = model.add_adapter(trainer.adapter())
    try:
        engine = Engine(model, n_ctx=256)
        for sample in samples:
            wanted = model.tokenizer.decode(sample.ids[sample.trained][:-1].tolist())
            assert len(wanted) > 20
            assert answer(engine, sample, model.tokenizer) == wanted
    finally:
        model.set_adapter_scale(index, 0.0)

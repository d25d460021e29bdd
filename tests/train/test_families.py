"""Training an adapter on other families: PEFT's recorded steps, loss and gradients."""

import numpy as np
import pytest

from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.model import families, hf

RATE = 1e-3


def trained(family, activations):
    """A Trainer that starts from the recorded adapter, and the batch of its steps."""
    wanted = families.expected(family)["lora"]
    trainer = Trainer(families.model(family, activations), TrainOptions(n_ctx=64, max_grad_norm=0.0))
    trainer.init_lora(wanted["rank"], wanted["alpha"], tuple(TARGETS), 1, families.adapter(family, "init"))
    rows = [np.array(ids, np.int32) for ids in wanted["sequences"]]
    return trainer, [Sample(ids, np.arange(len(ids)) > 0) for ids in rows]


@pytest.mark.parametrize(("activations", "share"), [("f32", 1e-5), ("int16", 1e-3)])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_peft_s_steps(family, activations, share):
    wanted = families.expected(family)["lora"]
    trainer, batch = trained(family, activations)
    results = [trainer.step([batch], RATE) for _ in wanted["losses"]]
    assert results[0].trained_tokens == 94
    np.testing.assert_allclose([result.loss for result in results], wanted["losses"], rtol=share)
    np.testing.assert_allclose([result.grad_norm for result in results], wanted["grad_norms"], rtol=10 * share)
    assert trainer.evaluate([batch])[0] == pytest.approx(wanted["loss_after"], rel=share)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_first_step_s_gradients_tensor_by_tensor(family):
    wanted = families.expected(family)["lora"]["first_step_grad_norm_by_tensor"]
    trainer, batch = trained(family, "f32")
    trainer.step([batch], RATE)
    found = {}
    for name, (da, db) in trainer.gradients().items():
        module = f"base_model.model.{hf.hf_name(name).removesuffix('.weight')}"
        found |= {f"{module}.lora_A.weight": np.linalg.norm(da), f"{module}.lora_B.weight": np.linalg.norm(db)}
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[name] for name in wanted], list(wanted.values()), rtol=1e-4)

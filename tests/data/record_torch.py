"""Record what torch says of a small llama in torch_tiny.npz: `python tests/data/record_torch.py`, where there is torch.

In the file: `case` (JSON: config, seeds, rank, scale, AdamW's settings; the weights come back from the seeds through
llamacy.kernels.reference.model), tokens, segments, targets, logits, loss, each LoRA gradient as `<tensor>.a` and `.b`,
and the losses and gradient norms of a few AdamW steps. All in float64.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parent
sys.path.insert(0, str(DATA.parents[1]))

from llamacy.kernels.reference import model  # noqa: E402  found through the line above
from tests.peers import torch_llama  # noqa: E402

# Sizes in whole blocks of 32, so that quantised kernels can run the case too.
CONFIG = model.Config(n_vocab=97, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_layer=2)
ADAMW = {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1}
CASE = {
    "config": asdict(CONFIG), "weights_seed": 20, "lora_seed": 21, "tokens_seed": 22, "rank": 4, "scale": 2.0,
    "steps": 4, "max_norm": 1.0, "adamw": ADAMW,
}  # fmt: skip
LENGTHS, PROMPTS = [9, 1, 14, 8], [3, 1, 5, 0]


def packed_samples():
    """Return tokens, segments and targets of four samples, one of a single token, their prompts not trained on."""
    segments = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    tokens = np.floor((model.uniform(CASE["tokens_seed"], segments.shape) + 1) / 2 * CONFIG.n_vocab).astype(np.int64)
    trained = np.concatenate([np.arange(n) >= prompt for n, prompt in zip(LENGTHS, PROMPTS, strict=True)])
    return tokens, segments, model.next_token_targets(tokens, segments, trained)


def main():
    """Compute the case in torch and write the file."""
    tokens, segments, targets = packed_samples()
    dtype = torch_llama.DTYPES["f64"]
    weights = torch_llama.tensors(model.random_weights(CONFIG, CASE["weights_seed"]), dtype)
    lora = torch_llama.tensors(model.random_lora(CONFIG, CASE["rank"], CASE["lora_seed"]), dtype, requires_grad=True)
    llama = torch_llama.TorchLlama(CONFIG, weights, lora, CASE["scale"])
    loss = llama.loss(tokens, segments, targets)
    loss.backward()
    answers = {"logits": llama.logits(tokens, segments).detach().numpy(), "loss": float(loss.detach())}
    answers |= {name: x.grad.numpy().copy() for name, x in lora.items()}
    losses, norms = torch_llama.train(llama, tokens, segments, targets, CASE["steps"], CASE["max_norm"], **ADAMW)
    case = {"case": json.dumps(CASE), "tokens": tokens, "segments": segments, "targets": targets}
    np.savez(DATA / "torch_tiny.npz", **case, **answers, losses=losses, grad_norms=norms)


if __name__ == "__main__":
    main()

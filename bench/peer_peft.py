"""PEFT + torch in f32 on the dequantised weights, trained as `bin/bench --train` trains; run by bench/run.py.

    python peer_peft.py MODEL BATCH TOKENS RANK THREADS STEPS
    python peer_peft.py MODEL BATCH SAMPLES.json RANK THREADS EPOCHS

LoRA on all linear matrices, random tokens, forward + backward + AdamW. Prints one JSON object:
{"ts": [tokens/s of each step], "peak_rss_bytes"}; for samples, [[ids, learnt 0 or 1], ...], samples/s of each epoch.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

WARM_UP_STEPS = 1


def peak_rss_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def forget_peak_rss():
    """Start the peak anew: converting the weights while loading takes more than training does."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class Training:
    """LoRA on all linear matrices of a model, a step at a time."""

    def __init__(self, path, rank):
        path = Path(path).resolve()
        base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model, self.n_vocab = get_peft_model(base, config), base.config.vocab_size
        self.model.config.use_cache = False
        self.adapted = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.adapted, lr=1e-4, weight_decay=0.0)
        forget_peak_rss()

    def step(self, **batch):
        self.model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.adapted, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def on_random_tokens(training, batch, tokens, steps):
    """Return the tokens per second of each step."""
    speeds = []
    for _ in range(steps + WARM_UP_STEPS):
        ids = torch.randint(0, training.n_vocab, (batch, tokens))
        begin = time.perf_counter()
        training.step(input_ids=ids, labels=ids)
        speeds.append(batch * tokens / (time.perf_counter() - begin))
    return speeds[WARM_UP_STEPS:]


def padded(samples):
    """Return samples as a batch, padded behind to the longest; padding is neither seen nor learnt."""
    width = max(len(ids) for ids, _ in samples)
    ids, seen = torch.zeros(len(samples), width, dtype=torch.long), torch.zeros(len(samples), width, dtype=torch.long)
    labels = torch.full((len(samples), width), -100)
    for row, (tokens, learnt) in enumerate(samples):
        n = len(tokens)
        ids[row, :n], seen[row, :n] = torch.tensor(tokens), 1
        labels[row, :n] = torch.where(torch.tensor(learnt) > 0, ids[row, :n], -100)
    return {"input_ids": ids, "attention_mask": seen, "labels": labels}


def on_samples(training, batch, samples, epochs):
    """Return the samples per second of each epoch."""
    speeds = []
    for _ in range(epochs + WARM_UP_STEPS):
        begin = time.perf_counter()
        for i in range(0, len(samples), batch):
            training.step(**padded(samples[i : i + batch]))
        speeds.append(len(samples) / (time.perf_counter() - begin))
    return speeds[WARM_UP_STEPS:]


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model_path, n_batch, what, *numbers = sys.argv[1:]
    lora_rank, n_threads, n_times = map(int, numbers)
    torch.set_num_threads(n_threads)
    lora = Training(model_path, lora_rank)
    if what.endswith(".json"):
        result = on_samples(lora, int(n_batch), json.loads(Path(what).read_text()), n_times)
    else:
        result = on_random_tokens(lora, int(n_batch), int(what), n_times)
    print(json.dumps({"ts": result, "peak_rss_bytes": peak_rss_bytes()}))

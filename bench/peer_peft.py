"""PEFT + torch on the dequantised weights, trained as `bin/bench --train` trains; run by bench/run.py.

    python peer_peft.py MODEL BATCH TOKENS RANK THREADS STEPS PRECISION
    python peer_peft.py MODEL BATCH SAMPLES.json RANK THREADS EPOCHS PRECISION

LoRA on all linear matrices, random tokens, forward + backward + AdamW. PRECISION, of the frozen weights and of what is
computed with them: f32, bf16, or nf4: bitsandbytes' 4-bit weights, computed with in bf16; the pairs are f32. Prints one
JSON object: {"ts": [tokens/s of each step], "peak_rss_bytes"}; for samples, [[ids, learnt 0 or 1], ...], samples/s of
each epoch.
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

# The first step or epoch is not counted, where first times matter: where it takes longer, it is what is measured.
WARM_UP_SECONDS = 20
# An epoch ends after so long, what it did until then counts.
EPOCH_SECONDS = 90


def peak_rss_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def forget_peak_rss():
    """Start the peak anew: converting the weights while loading takes more than training does."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def to_nf4(model):
    """Replace all linear matrices but the output head by bitsandbytes' 4-bit ones, as loading with its settings does.

    Settings of a quantisation and a GGUF cannot be given to from_pretrained at once.
    """
    from bitsandbytes.nn import Linear4bit

    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, linear in parent.named_children():
            if isinstance(linear, torch.nn.Linear) and linear is not head:
                small = Linear4bit(
                    linear.in_features, linear.out_features, linear.bias is not None, torch.bfloat16, quant_type="nf4"
                )
                small.load_state_dict(linear.state_dict())
                setattr(parent, name, small.to("cpu"))
    model.is_loaded_in_4bit = True


class Training:
    """LoRA on all linear matrices of a model, a step at a time."""

    def __init__(self, path, rank, precision):
        path = Path(path).resolve()
        dtype = torch.float32 if precision == "f32" else torch.bfloat16
        base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
        if precision == "nf4":
            to_nf4(base)
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


def measured(run, times):
    """Call run() `times` times after a first one; return what it returns (count) per second, of each.

    A first one that takes long is the only one.
    """
    speeds = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        count = run()
        seconds = time.perf_counter() - begin
        speeds.append(count / seconds)
        if len(speeds) == 1 and seconds > WARM_UP_SECONDS:
            return speeds
    return speeds[1:]


def on_random_tokens(training, batch, tokens, steps):
    """Return the tokens per second of each step."""

    def step():
        ids = torch.randint(0, training.n_vocab, (batch, tokens))
        training.step(input_ids=ids, labels=ids)
        return batch * tokens

    return measured(step, steps)


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

    def epoch():
        end = time.perf_counter() + EPOCH_SECONDS
        for i in range(0, len(samples), batch):
            training.step(**padded(samples[i : i + batch]))
            if time.perf_counter() > end:
                break
        return min(i + batch, len(samples))

    return measured(epoch, epochs)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model_path, n_batch, what, *numbers, kind = sys.argv[1:]
    lora_rank, n_threads, n_times = map(int, numbers)
    torch.set_num_threads(n_threads)
    lora = Training(model_path, lora_rank, kind)
    if what.endswith(".json"):
        result = on_samples(lora, int(n_batch), json.loads(Path(what).read_text()), n_times)
    else:
        result = on_random_tokens(lora, int(n_batch), int(what), n_times)
    print(json.dumps({"ts": result, "peak_rss_bytes": peak_rss_bytes()}))

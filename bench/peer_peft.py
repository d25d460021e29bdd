"""PEFT + torch in f32 on the dequantised weights, trained as `bin/bench --train` trains; run by bench/run.py.

    python peer_peft.py MODEL BATCH TOKENS RANK THREADS STEPS

LoRA on all linear matrices, random tokens, forward + backward + AdamW. Prints one JSON object:
{"ts": [tokens/s of each step], "peak_rss_bytes"}.
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


def train(path, batch, tokens, rank, steps):
    """Return the tokens per second of each step."""
    path = Path(path).resolve()
    base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.config.use_cache = False
    adapted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapted, lr=1e-4, weight_decay=0.0)
    forget_peak_rss()
    n_vocab, speeds = base.config.vocab_size, []
    for _ in range(steps + WARM_UP_STEPS):
        ids = torch.randint(0, n_vocab, (batch, tokens))
        begin = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(adapted, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        speeds.append(batch * tokens / (time.perf_counter() - begin))
    return speeds[WARM_UP_STEPS:]


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model_path, *numbers = sys.argv[1:]
    n_batch, n_tokens, lora_rank, n_threads, n_steps = map(int, numbers)
    torch.set_num_threads(n_threads)
    result = train(model_path, n_batch, n_tokens, lora_rank, n_steps)
    print(json.dumps({"ts": result, "peak_rss_bytes": peak_rss_bytes()}))

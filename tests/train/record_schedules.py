"""Record what transformers' schedules give into tests/data/schedules.json; needs torch and transformers to run."""

import json
import sys
from pathlib import Path

CASES = [(10, 0, 10), (25, 5, 25), (40, 10, 30), (8, 12, 10), (3, 0, 1), (4, 1, 1)]


def main():
    import torch
    import transformers
    from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

    schedules = {
        "constant": lambda optimizer, warmup, _: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": transformers.get_linear_schedule_with_warmup,
        "cosine": transformers.get_cosine_schedule_with_warmup,
        "constant_with_warmup": lambda optimizer, warmup, _: transformers.get_constant_schedule_with_warmup(
            optimizer, warmup
        ),
        "cosine_with_min_lr": lambda optimizer, warmup, n: get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, warmup, n, min_lr_rate=0.1
        ),
        "polynomial": transformers.get_polynomial_decay_schedule_with_warmup,
        "wsd": lambda optimizer, warmup, n: transformers.get_wsd_schedule(
            optimizer, warmup, num_decay_steps=round(0.1 * n), num_training_steps=n
        ),
    }
    rows = []
    for name, make in schedules.items():
        for n_taken, n_warmup, n_steps in CASES:
            if name in ("polynomial", "wsd") and n_warmup >= n_steps:
                continue  # a division by zero
            optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
            schedule = make(optimizer, n_warmup, n_steps)
            rates = []
            for _ in range(n_taken):
                rates.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            rows.append({"schedule": name, "n_warmup": n_warmup, "n_steps": n_steps, "peak": 1e-3, "rates": rates})
    source = f"transformers {transformers.__version__}, get_*_schedule_with_warmup, written by {Path(__file__).name}"
    target = Path(__file__).parents[1] / "data" / "schedules.json"
    target.write_text(json.dumps({"source": source, "rows": rows}) + "\n")


if __name__ == "__main__":
    sys.exit(main())

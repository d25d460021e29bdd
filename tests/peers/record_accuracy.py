"""Record tests/data/accuracy.json: how far each family's log-probabilities are off with default activations.

    PYTHONPATH=. bench/.venv/bin/python -m tests.peers.record_accuracy [NAME ...]

The models of tests/model/family_cases.py, four times as wide: whole blocks of 32, as 4- and 8-bit weights want them.
"f32": the largest difference of a logit from transformers' with `--activations f32`, weights in f32. "F32", "Q8_0",
"Q4_0": by the type of the weights, the mean |difference| of all tokens' log-probabilities at 48 positions with default
activations, from transformers' (F32) or from those of the same file with `--activations f32`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from llamacy.errors import LlamacyError
from llamacy.library.files import convert, quantize
from llamacy.model import load_model
from tests.model import family_cases as cases
from tests.model.golden import log_softmax
from tests.peers import record_families

FACTS, WIDER, TYPES = cases.DATA.parent / "accuracy.json", 4, ("F32", "Q8_0", "Q4_0")
WIDTHS = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "head_dim",
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
)  # fmt: skip


def wider(config):
    """Return a config.json with WIDER times the widths; factors of rope are repeated."""
    found = json.loads(json.dumps(config))
    found |= {key: found[key] * WIDER for key in WIDTHS if found.get(key)}
    rope = found["rope_parameters"]
    rope |= {key: np.repeat(rope[key], WIDER).tolist() for key in ("short_factor", "long_factor") if key in rope}
    return found


def log_p_of(path, ids, activations="int8"):
    """Return the logits of one sequence and their log-probabilities."""
    session, n = load_model(path, activations=activations, threads=1).new_session(1, 64), np.arange(len(ids))
    logits = session.step(ids, n, np.zeros(len(n), int), n)
    return logits, log_softmax(logits)


def measured(case):
    """Return what is recorded of a case; None where the family does not run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases.write_folder(folder / "m", case, record_families.saved_shapes(case, folder / "saved"))
        convert(folder / "m", folder / "F32.gguf", type="f32", threads=1)
        ids = cases.rows(1, record_families.N)[0]
        try:
            logits, _ = log_p_of(folder / "F32.gguf", ids, "f32")
        except LlamacyError as error:
            print(f"{case}: {error}")
            return None
        wanted = record_families.logits_of(record_families.loaded(folder / "m", case), ids)
        found = {"f32": float(abs(logits - wanted).max())}
        for kind in TYPES:
            path, exact = folder / f"{kind}.gguf", log_softmax(wanted)
            if kind != "F32":
                quantize(folder / "F32.gguf", path, kind, threads=1)
                exact = log_p_of(path, ids, "f32")[1]
            found[kind] = float(abs(log_p_of(path, ids)[1] - exact).mean())
        return {key: float(f"{value:.2g}") for key, value in found.items()}


def widened():
    """Let every recorder see the wider models."""
    cases.CASES.update({case: wider(config) for case, config in cases.CASES.items()})


def main(names):
    widened()
    facts = json.loads(FACTS.read_text()) if FACTS.exists() else {}
    for case in names or cases.CASES:
        torch.manual_seed(1)
        facts[case] = measured(case)
        print(case, facts[case], flush=True)
        lines = ",\n".join(f'"{key}": {json.dumps(facts[key])}' for key in cases.CASES if key in facts)
        FACTS.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])

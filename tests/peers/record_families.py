"""Record tests/data/families/NAME.json: what transformers, PEFT and llama.cpp say of tests/model/family_cases.py.

    PYTHONPATH=. bench/.venv/bin/python -m tests.peers.record_families [NAME ...] [--converter LLAMA_CPP_FOLDER]

All in float32 with eager attention and without a cache, so that windows and long positions are transformers' own.
The converter is llama.cpp's, but for its vocabulary step, which knows no tokenizer of 128 tokens and is left out.
"""

import argparse
import importlib
import json
import pkgutil
import sys
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.model import family_cases as cases

N, POSITIONS, RANK, ALPHA = 48, (5, 17, 33, 47), 3, 6
MODEL_TYPES = {name: kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if isinstance(name, str)}
NOT_ADAPTED = ("lm_head", "gate", "router", "layer", "shared_expert_gate")


def settings(case):
    """config.json; a copy, for transformers writes into what it is given."""
    name = cases.CASES[case]["architectures"][0]
    return json.loads(json.dumps(cases.CASES[case])) | {"model_type": MODEL_TYPES[name]}


def saved_shapes(case, folder):
    """The tensors that transformers saves of such a model: {name: shape}."""
    config = AutoConfig.for_model(**settings(case))
    with torch.device("cpu"):
        AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def loaded(folder, case):
    path = folder / "config.json"
    path.write_text(json.dumps(settings(case) | {"dtype": "float32"}))
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()


def nll(logits, ids):
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -float(log_p[np.arange(len(ids) - 1), ids[1:]].mean())


def rounded(values):
    return np.round(values, 5).tolist()


def closest(logits):
    """How far the second likeliest token is at least."""
    top = np.sort(logits, axis=-1)
    return (top[:, -1] - top[:, -2]).min()


def clear_rows(model, n_prompt):
    """The first random ids whose likeliest next tokens no rounding confuses, and a prompt with 6 such answers."""
    rows = (cases.rows(1, N, seed)[0] for seed in range(200))
    ids = next(ids for ids in rows if closest(logits_of(model, ids)) > 1e-3)
    prompts = (greedy(model, cases.rows(1, n_prompt, 1000 + seed)[0]) for seed in range(50))
    return ids, next(found for found in prompts if len(found["tokens"]) >= 6)


def greedy(model, prompt):
    ids, margins = list(prompt), []
    for _ in range(16):
        best = np.sort(logits_of(model, ids)[-1])
        if best[-1] - best[-2] < 0.02:
            break
        margins.append(round(float(best[-1] - best[-2]), 3))
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    return {"prompt": list(prompt), "tokens": ids[len(prompt) :], "margins": margins}


def lora(model, folder, ids):
    """PEFT's four steps from the seeded adapter."""
    linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    targets = sorted(linear - set(NOT_ADAPTED))
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM"))
    model.save_pretrained(folder / "a")
    with safe_open(folder / "a" / "adapter_model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    cases.write_adapter(folder / "init", shapes, RANK, ALPHA, targets)
    model = PeftModel.from_pretrained(model.unload(), folder / "init", is_trainable=True)
    logits = logits_of(model.eval(), ids)
    found = {
        "rank": RANK, "alpha": ALPHA, "target_modules": targets, "tensors": shapes,
        "sequences": cases.rows(2, 24, 1), "losses": [], "grad_norms": [],
        "mean_nll_with_initial_adapter": nll(logits, ids),
        "logits_with_initial_adapter": {"position": N - 1, "logits": rounded(logits[-1])},
    }  # fmt: skip
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    batch = torch.tensor(found["sequences"])

    def loss_of():
        logits = model(batch, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))

    for _ in range(4):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        found["losses"].append(loss.item())
        found["grad_norms"].append(float(torch.sqrt(sum((p.grad.double() ** 2).sum() for p in params))))
        optimizer.step()
    with torch.no_grad():
        found["loss_after"] = loss_of().item()
    return found


@cache
def converter(source):
    """llama.cpp's conversion script as a module, its vocabulary step taken out."""
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    script = importlib.import_module("convert_hf_to_gguf")
    package = importlib.import_module("conversion")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"conversion.{module.name}")

    def without_vocabulary(kind):
        if kind.__name__ != "Mistral3Model" and "set_vocab" in vars(kind):
            kind.set_vocab = lambda self: None
        for sub in kind.__subclasses__():
            without_vocabulary(sub)

    without_vocabulary(importlib.import_module("conversion.base").TextModel)
    return script


def converted(source, folder, case):
    """What llama.cpp's converter makes of the folder: {name: [shape, crc32]} and keys; None for no such family."""
    # it asks for this key, which transformers does not write
    more = {"rotary_pct": 1.0} if case == "cohere2" else {}
    (folder / "config.json").write_text(json.dumps(settings(case) | more))
    out = folder.parent / "theirs.gguf"
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(out), "--outtype", "f32"]
    try:
        converter(source).main()
    except (SystemExit, ValueError) as error:  # helium it does not have, norms of stablelm's heads it stumbles over
        print(f"{case}: {error}")
        return None
    reader = importlib.import_module("gguf").GGUFReader(out)  # late: the script's own
    tensors = {
        t.name: [[int(n) for n in reversed(t.shape)], f"{zlib.crc32(np.ascontiguousarray(t.data).tobytes()):08x}"]
        for t in reader.tensors
    }
    arch = reader.get_field("general.architecture").contents()
    names = [name for name in reader.fields if name.startswith(f"{arch}.")]
    names += ["general.architecture", "general.size_label"]
    return {"tensors": tensors, "keys": {name: reader.get_field(name).contents() for name in names}}


def record(case, source):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes = saved_shapes(case, folder / "saved")
        cases.write_folder(folder / "m", case, shapes)
        model = loaded(folder / "m", case)
        # longrope's factors go by the length, which should not change on the way
        ids, tokens = clear_rows(model, 20 if case == "phi3-long" else 7)
        logits = logits_of(model, ids)
        found = {
            "tensors": shapes, "token_ids": ids, "positions": list(POSITIONS),
            "logits": rounded(logits[list(POSITIONS)]),
            "all_argmax": logits.argmax(-1).tolist(), "mean_nll": nll(logits, ids), "logits_std": float(logits.std()),
            "greedy": tokens, "lora": lora(model, folder, ids),
            "converter": converted(source, folder / "m", case) if source else None,
        }  # fmt: skip
    text = json.dumps(found, separators=(",", ":"))
    (cases.DATA / f"{case}.json").write_text(text + "\n")
    print(f"{case}: {len(text)} bytes, std {logits.std():.2f}, nll {found['mean_nll']:.3f}, "
          f"greedy {len(found['greedy']['tokens'])}, closest two {closest(logits):.4f}, "
          f"losses {found['lora']['losses'][0]:.4f} {found['lora']['loss_after']:.4f}", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--converter", type=Path)
    args = parser.parse_args()
    for case in args.names or cases.CASES:
        torch.manual_seed(1)
        record(case, args.converter)


if __name__ == "__main__":
    main()

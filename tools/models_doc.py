"""Write docs/models.md from the table of families and the facts that are recorded of them (`make docs`)."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
FACTS = ROOT / "tests" / "data" / "families"
ACCURACY = ROOT / "tests" / "data" / "accuracy.json"

INTRODUCTION = """\
# Model families

`make docs` writes this page from the table in `llamacy/formats/architectures.py` and the facts in
`tests/data/families`. A family that runs also trains; one that does not is refused by a line that names what is
missing. *Small models*: random models with the parts of the family, one for each listed form, whose conversion,
logits (within 2e-4; at once, in parts and token by token), greedy tokens, four steps of LoRA training and adapters
in all formats `make test` compares with transformers 5.23, PEFT 0.21.2 and llama.cpp's converter, all in float32.
*Golden*: the same of a model that transformers saved and llama.cpp's converter made a file of, with the trained
adapter's values. *Real*: a published model against transformers and llama.cpp, in `make test-peers`.
*Off by*: with default activations, the mean |difference| of all tokens' log-probabilities, at 48 positions of random
models with 192 channels; of several forms the largest. Weights in f32: against transformers (with `--activations f32`
no logit is off by more than 1e-4); rounded: against the same file with `--activations f32`. The narrower a model the
more 8-bit activations, which only 4- and 5-bit matrices have, blur it: published ones are [nearer](accuracy.md).
Mixtures of experts are further off where a random router is torn between two experts.
`PYTHONPATH=. bench/.venv/bin/python -m tests.peers.record_accuracy` measures it anew.
"""

CONVERSION = """\
## Conversion of Hugging Face folders

`bin/convert` writes the tensors, names, shapes, values and keys of llama.cpp's converter. Where the two differ:

- Windows of Mistral and StarCoder 2 are written (`attention.sliding_window`); llama.cpp's converter leaves them out,
  and its engine runs these models without.
- Which layers have a window is written (`attention.sliding_window_pattern`) where that is not the family's rule.
- Gemma 2 and 3: `attention.scale` where `query_pre_attn_scalar` is not the head's size; llama.cpp goes by the number
  of layers. Rows of Gemma 3's embedding behind the last token stay.
- gpt-oss and others with yarn: `rope.scaling.yarn_truncate` false where the configuration says so; llama.cpp always
  truncates.
- Qwen and OLMo mixtures of experts: `expert_weights_norm` where `norm_topk_prob` is not the family's rule.
- StableLM without `use_parallel_residual` is sequential, as in transformers. OLMoE keeps its configuration's
  epsilon.
- `rope_freqs` of Llama 3 are computed in float64 here: the last bit may differ.
- `general.name` is the folder's name as it stands; descriptions of the model's card are left out.
- Helium, which llama.cpp does not have, becomes an architecture of its own.
- A vocabulary's own differences (scores of tokens from a `tokenizer.json` with byte fallback are the ranks of their
  merges, `<unk>` stays unknown, the file says whether a space is put in front) make no difference to the ids.

Latent attention (`deepseek2`) keeps keys and values of every head, not the short row that they are made of, and the
matrix that makes them is in f32 here; adapters know it by PEFT's name (`kv_b_proj`, in GGUF `attn_kv_b`), which
llama.cpp cannot load. Groups of experts go by their best (DeepSeek-V2) or by their two best (V3), as in transformers.
A short convolution (`lfm2`) keeps what it saw of the last positions, as many as a step has tokens and a few more: a
text that goes on from further back is computed again.

Of Gemma 3 and Mistral Small with images the text model is converted, and a note says how many tensors are left out.
Dynamic rope scaling, which changes nothing within the trained context, is left out with a note.
"""

HEAD = "| family | in config.json | runs and trains | compared | off by, F32 / Q8_0 / Q4_0 weights |"
REAL = {"llama": "SmolLM2-135M-Instruct", "qwen2": "Qwen2.5-Coder-0.5B-Instruct", "gemma3": "Gemma 3 270M"}


def compared(family, row):
    """Return what was compared: golden models, small ones by their forms, real ones."""
    small = [path.stem for path in sorted(FACTS.glob("*.json")) if family_of(path.stem) == family]
    run = [case for case in small if not row.missing and not waits(case)]
    found = [f"small: {', '.join(run)}"] if run else []
    found += [f"conversion only: {', '.join(case for case in small if case not in run)}"] if run != small else []
    found += ["golden"] if (FACTS / family).is_dir() else []
    return "; ".join(found + ([f"real: {REAL[family]}"] if family in REAL and not row.missing else []))


def off_by(family):
    """Return how far default activations are off, by the type of the weights; "-" where a family does not run."""
    facts = json.loads(ACCURACY.read_text())
    rows = [row for case, row in facts.items() if family_of(case) == family and row]
    return " / ".join(f"{max(row[kind] for row in rows):.1g}" for kind in ("F32", "Q8_0", "Q4_0")) if rows else "-"


def family_of(case):
    """Return the family of a recorded case."""
    from llamacy.model.hf_config import FAMILIES
    from tests.model.family_cases import CASES

    return FAMILIES[CASES[case]["architectures"][0]]


def waits(case):
    """Whether a form of a family that runs has a part that is still missing."""
    from llamacy.formats.architectures import MISSING
    from tests.model.family_cases import CASES

    config = CASES[case]
    windows = config.get("sliding_window") and "windows" in MISSING
    return bool(windows or ("num_local_experts" in config and "experts" in MISSING))


def render():
    """Return the page."""
    from llamacy.formats.architectures import ARCHITECTURES

    lines = [HEAD, "|---|---|---|---|---|"]
    for name, row in ARCHITECTURES.items():
        runs = f"not yet: {', '.join(row.missing)}" if row.missing else "yes"
        classes = ", ".join(f"`{one}`" for one in row.hf)
        lines.append(f"| `{name}` | {classes} | {runs} | {compared(name, row)} | {off_by(name)} |")
    return "\n".join([INTRODUCTION, *lines, "", CONVERSION])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(render(), encoding="utf-8")

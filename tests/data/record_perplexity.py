"""Record what transformers and torch say of the perplexity text: `python tests/data/record_perplexity.py MODEL.gguf`.

Writes golden/smollm2_perplexity.json: for each way to split the text into words, how many ids there are, their CRC-32
as little-endian int32, the mean negative log-likelihood of the second half of the first two windows of 512, in f32 on
the dequantised weights, and for "smollm" the perplexity over all windows. "gpt-2" are transformers' own ids: it reads
the GGUF's vocabulary but not its pre-tokenizer. "smollm", the pre-tokenizer that the file names, are llamacy's ids,
which llama.cpp makes too.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path.insert(0, str(GOLDEN.parents[2]))

from llamacy.formats.model_file import open_model  # noqa: E402  found through the line above
from llamacy.text.tokenizer import Tokenizer  # noqa: E402

WINDOW, N_RECORDED = 512, 2


def window_means(model, ids):
    """Return the mean NLL of tokens 257 to 511 of each whole window."""
    means = []
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(window).logits[0].double(), dim=-1)
        half = torch.arange(WINDOW // 2, WINDOW - 1)
        means.append(float(-log_p[half, window[0, half + 1]].mean()))
    return means


def main(path):
    """Compute and write the record."""
    folder, name = str(path.parent), path.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    text = (GOLDEN / "gpl3.txt").read_text()
    ids = {
        "gpt-2": AutoTokenizer.from_pretrained(folder, gguf_file=name)(text)["input_ids"],
        "smollm": Tokenizer.from_metadata(open_model(path).metadata).encode(text),
    }
    rows = {}
    for pre, some in ids.items():
        crc32 = zlib.crc32(np.array(some, "<i4").tobytes())
        means = window_means(model, some)
        rows[pre] = {"n_ids": len(some), "crc32": crc32, "nll": means[:N_RECORDED]}
        if pre == "smollm":
            rows[pre]["perplexity"] = round(float(np.exp(np.mean(means))), 4)
    (GOLDEN / "smollm2_perplexity.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

"""Record what PEFT makes of adapters on embeddings: `python tests/data/record_peft_embeddings.py`, where there is PEFT.

`peft-embeddings/` is an adapter on q_proj, embed_tokens and lm_head of a model that has one matrix for both, as PEFT
saves it (`base_layer.weight` included); `peft_embeddings.json` the mean negative log-likelihoods of 40 tokens under it,
under its parts, and under the same pairs on a model with two matrices. Weights and pairs come from seeds.
"""

import json
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parent
sys.path.insert(0, str(DATA.parents[1]))

from tests.peers import peft_embeddings as case  # noqa: E402  found through the line above

PARTS = (["q_proj"], ["q_proj", "embed_tokens"], ["q_proj", "lm_head"], ["q_proj", "embed_tokens", "lm_head"])


def main():
    """Compute all cases and write both."""
    facts = []
    for tied in (False, True):
        facts += [{"tied": tied, "targets": [], "nll": case.mean_nll(case.base(tied))}]
        for targets in PARTS:
            facts.append({"tied": tied, "targets": targets, "nll": case.mean_nll(case.adapted(tied, targets))})
    tokens = case.TOKENS.tolist()
    content = {
        "weights_seed": case.WEIGHTS_SEED,
        "embedding_scale": case.EMBEDDING_SCALE,
        "tokens": tokens,
        "cases": facts,
    }
    (DATA / "peft_embeddings.json").write_text(json.dumps(content) + "\n")
    folder = case.saved(case.adapted(True, PARTS[-1]), DATA / "peft-embeddings")
    (folder / "README.md").unlink(missing_ok=True)
    assert abs(case.mean_nll(case.loaded(True, folder)) - facts[-1]["nll"]) < 1e-6


if __name__ == "__main__":
    main()

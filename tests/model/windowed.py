"""Small llamas whose layers have windows, soft caps and sinks, as a GGUF file and as the float64 twin has them."""

from dataclasses import replace

import numpy as np

from llamacy.formats.architectures import ARCHITECTURES
from llamacy.formats.metadata_keys import KEYS
from llamacy.kernels.reference import model as twin
from tests.model.tiny import CONFIG, write_llama

# three layers of four with a window; every family's parts in one
LAYERS = (0, 1, 3)
WINDOWED = replace(CONFIG, n_layer=4, window=20, windowed=LAYERS)
ALL = replace(WINDOWED, score_cap=2.0, logit_cap=3.0)
CASES = {"every layer": replace(WINDOWED, windowed=None), "by pattern": WINDOWED, "caps and sinks": ALL}


def understand(monkeypatch, config):
    """Let llama's row understand what other families have, as far as a model of this Config has it."""
    row = ARCHITECTURES["llama"]
    keys = KEYS | dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"))
    monkeypatch.setitem(
        ARCHITECTURES, "llama", replace(row, vectors=("attn_sinks",) if config.score_cap else (), keys=keys)
    )


def write(path, config, type_name="F32", seed=20, **more):
    """Write a model of this Config with random weights; return them dequantised. With caps there are sinks too."""
    weights = twin.random_weights(config, seed)
    change = {"llama.attention.sliding_window": config.window}
    if config.windowed is not None:
        change["llama.attention.sliding_window_pattern"] = [n in config.windowed for n in range(config.n_layer)]
    if config.score_cap:
        change |= {"llama.attn_logit_softcapping": config.score_cap}
        change |= {"llama.final_logit_softcapping": config.logit_cap}
        for n in range(config.n_layer):
            weights[f"blk.{n}.attn_sinks.weight"] = np.linspace(-1, 2, config.n_head) * (n - 1)
    return write_llama(path, config, weights, type_name, change=change | more)

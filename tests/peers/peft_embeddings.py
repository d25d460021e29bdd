"""A small llama in transformers whose embeddings, or what else, PEFT adapts; weights and pairs come from seeds."""

import contextlib
import warnings

import numpy as np
import peft
import torch
import transformers

from llamacy.kernels.reference import model as twin
from tests.model import hf

CONFIG = twin.Config(n_vocab=97, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_layer=2)
WEIGHTS_SEED, TOKENS = 20, np.floor((twin.uniform(30, (40,)) + 1) / 2 * CONFIG.n_vocab).astype(np.int64)
# small, so that the logits of a model with one matrix for both sides stay moderate
EMBEDDING_SCALE = 0.15
RANK, ALPHA = 4, 6
SIDES = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def weights_of(tied):
    """Return {name: array} by GGUF's names."""
    weights = twin.random_weights(CONFIG, WEIGHTS_SEED, tied)
    return weights | {"token_embd.weight": EMBEDDING_SCALE * weights["token_embd.weight"]}


def base(tied):
    """Return the model, f32."""
    weights = weights_of(tied)
    settings = hf.config_json(CONFIG, tie_word_embeddings=tied)
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, attn_implementation="eager"))
    rows = {hf.hf_name(name): hf.in_halves(name, x, CONFIG.head_dim) for name, x in weights.items()}
    state = {name: torch.tensor(values).float() for name, values in rows.items()}
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    llama.load_state_dict(state)
    return llama.eval()


def adapted(tied, targets, **settings):
    """Return the PEFT model with a LoRA on `targets`, its numbers a function of the tensors' names."""
    with _quiet():
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets), **settings)
        llama = peft.get_peft_model(base(tied), config)
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if any(f".{side}." in name for side in SIDES):
                parameter.copy_(torch.tensor(0.4 * twin.uniform(sum(name.encode()), tuple(parameter.shape))))
            elif ".lora_magnitude_vector." in name:
                parameter.mul_(torch.tensor(1 + 0.4 * twin.uniform(sum(name.encode()), tuple(parameter.shape))))
    return llama.eval()


def saved(llama, path, **how):
    """Save the adapter as PEFT does, and return its folder."""
    with _quiet():
        llama.save_pretrained(path, **how)
    return path


def loaded(tied, path):
    """Return the base with the adapter at `path`, as PEFT loads it."""
    with _quiet():
        return peft.PeftModel.from_pretrained(base(tied), path).eval()


def mean_nll(llama):
    """The mean negative log-likelihood of TOKENS from the second on."""
    ids = torch.tensor(TOKENS)[None]
    with torch.no_grad():
        return float(llama(input_ids=ids, labels=ids).loss)


@contextlib.contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

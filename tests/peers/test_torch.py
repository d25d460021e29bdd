"""The float64 llama against torch: autograd on a model of plain torch functions, and transformers with PEFT."""

from dataclasses import replace

import numpy as np
import pytest

from llamacy.kernels.reference import model

torch = pytest.importorskip("torch")
from tests.peers import torch_llama  # noqa: E402  it needs torch

CONFIG = model.Config(n_vocab=61, n_embd=32, n_head=4, n_head_kv=2, n_ff=48, n_layer=2)
LENGTHS = [6, 1, 9, 4]
SEGMENTS = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
TOKENS = np.random.default_rng(31).integers(0, CONFIG.n_vocab, SEGMENTS.size)
TRAINED = np.random.default_rng(32).random(SEGMENTS.size) < 0.7
TARGETS = model.next_token_targets(TOKENS, SEGMENTS, TRAINED)
RANK, SCALE = 3, 1.5

# float64 sums in another order; float32 keeps 6e-8 an operation, some hundred of them in a row here
BOUND = {"f64": 1e-11, "f32": 1e-5}


def assert_close(found, expected, bound):
    """Compare within `bound` of the largest number."""
    expected = np.asarray(expected, np.float64)
    assert np.abs(expected).max() > 1e-4, "nothing to compare"
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("change", [{}, {"n_head_kv": 4, "n_layer": 1}, {"n_head_kv": 1, "rope_theta": 500.0}])
def test_loss_and_lora_gradients(dtype, tied, change):
    config = replace(CONFIG, **change)
    weights, lora = model.random_weights(config, 1, tied), model.random_lora(config, RANK, 2)
    loss, gradients, _ = model.loss_and_gradients(config, weights, TOKENS, TARGETS, SEGMENTS, lora, SCALE)
    as_tensors = torch_llama.tensors(weights, torch_llama.DTYPES[dtype])
    pairs = torch_llama.tensors(lora, torch_llama.DTYPES[dtype], requires_grad=True)
    llama = torch_llama.TorchLlama(config, as_tensors, pairs, SCALE)
    expected = llama.loss(TOKENS, SEGMENTS, TARGETS)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=BOUND[dtype])
    for name, pair in gradients.items():
        for letter, gradient in zip("ab", pair, strict=True):
            assert_close(gradient, pairs[f"{name}.{letter}"].grad.numpy(), BOUND[dtype])


HF_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
HF_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name):
    """blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj, as transformers calls the module."""
    parts = name.split(".")
    return HF_TOP[parts[0]] if parts[0] in HF_TOP else f"model.layers.{parts[1]}.{HF_NAMES[parts[2]]}"


def as_halves(name, x, config):
    """Reorder the rows of q and k, of which transformers turns (i, i + D / 2), from GGUF's adjacent pairs."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return x
    heads = x.shape[0] // config.head_dim
    return x.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)


def peft_llama(config, weights, lora):
    """Return transformers' llama with these weights, wrapped by PEFT with these pairs, in float32."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    settings = transformers.LlamaConfig(
        vocab_size=config.n_vocab, hidden_size=config.n_embd, intermediate_size=config.n_ff,
        num_hidden_layers=config.n_layer, num_attention_heads=config.n_head, num_key_value_heads=config.n_head_kv,
        rms_norm_eps=config.rms_eps, rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(settings)
    state = {f"{hf_name(n)}.weight": torch.tensor(as_halves(n, x, config)).float() for n, x in weights.items()}
    llama.load_state_dict(state)
    targets = [name.split(".")[-1] for name in list(HF_NAMES.values())[:7]]
    llama = peft.get_peft_model(llama, peft.LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=targets))
    parameters = dict(llama.named_parameters())
    with torch.no_grad():
        for name, (a, b) in lora.items():
            at = f"base_model.model.{hf_name(name)}.lora_"
            parameters[f"{at}A.default.weight"].copy_(torch.tensor(a))
            parameters[f"{at}B.default.weight"].copy_(torch.tensor(as_halves(name, b, config)))
    return llama, parameters


def test_loss_and_lora_gradients_of_peft_on_padded_samples():
    weights, lora = model.random_weights(CONFIG, 1), model.random_lora(CONFIG, RANK, 2)
    loss, gradients, _ = model.loss_and_gradients(CONFIG, weights, TOKENS, TARGETS, SEGMENTS, lora, SCALE)
    llama, parameters = peft_llama(CONFIG, weights, lora)

    ids, labels = np.zeros((2, len(LENGTHS), max(LENGTHS)), np.int64)
    labels -= 100
    for i, length in enumerate(LENGTHS):
        ids[i, :length], trained = TOKENS[i == SEGMENTS], TRAINED[i == SEGMENTS]
        labels[i, :length] = np.where(trained, ids[i, :length], -100)
    padding = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": padding}
    expected = llama(**{name: torch.tensor(x) for name, x in batch.items()}).loss
    expected.backward()

    assert loss == pytest.approx(float(expected.detach()), rel=BOUND["f32"])
    for name, (da, db) in gradients.items():
        at = f"base_model.model.{hf_name(name)}.lora_"
        assert_close(da, parameters[f"{at}A.default.weight"].grad.numpy(), BOUND["f32"])
        expected_db = parameters[f"{at}B.default.weight"].grad.numpy()
        assert_close(as_halves(name, db, CONFIG), expected_db, BOUND["f32"])

"""The forms of a layer, one by one and together: the compiled steps against the twin in f64."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.model import parts, tiny

# f32 sums of some hundred terms in three layers, beside logits near 1; activations of 8 bits
F32, INT8 = 2e-5, 0.15


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that writes a case's model: (the model opened, its weights)."""

    def opened(name, **how):
        config = parts.CASES[name]
        parts.use(monkeypatch, config)
        weights = parts.write(tmp_path / "m.gguf", config)
        return load_model(tmp_path / "m.gguf", threads=how.pop("threads", 2), **how), weights

    return opened


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("case", parts.CASES)
def test_logits(make, case, isa, monkeypatch):
    tiny.use_isa(monkeypatch, isa)
    model, weights = make(case, activations="f32")
    config = parts.CASES[case]
    tokens = tiny.tokens_of(config, 41)
    exact = twin.forward(config, weights, tokens)
    bound = F32 * np.abs(exact).max()
    np.testing.assert_allclose(tiny.logits_of(model, tokens), exact, atol=bound)
    # in steps of one and of several tokens, of which the last layer does some only
    session, n = model.new_session(1, 64), np.arange(len(tokens))
    for part, wanted in ((n[:1], [0]), (n[1:2], [0]), (n[2:39], [5, 30]), (n[39:], [1])):
        found = session.step(tokens[part], part, np.zeros(len(part), int), wanted)
        np.testing.assert_allclose(found, exact[part[wanted]], atol=bound)


@pytest.mark.parametrize("case", parts.CASES)
def test_rounded_activations(make, case):
    model, weights = make(case)
    config = parts.CASES[case]
    tokens = tiny.tokens_of(config, 30)
    exact = twin.forward(config, weights, tokens)
    found = tiny.logits_of(model, tokens)
    assert np.sqrt(np.mean((found - exact) ** 2)) < INT8 * exact.std()
    # one token after the other and all at once: bit for bit
    session = model.new_session(1, 64)
    alone = [session.step(tokens[t : t + 1], [t], [0], [0])[0] for t in range(len(tokens))]
    np.testing.assert_array_equal(alone, found)


@pytest.mark.parametrize("case", parts.CASES)
def test_adapters(make, case):
    """On every matrix, and each token with its own scale of them."""
    model, weights = make(case, activations="f32")
    config = parts.CASES[case]
    tokens, lora = tiny.tokens_of(config, 20), twin.random_lora(config, 3, 2)
    pairs = {name: LoraPair(a.astype(np.float32), b.astype(np.float32), 0.5) for name, (a, b) in lora.items()}
    model.add_adapter(Adapter(parts.NAME, pairs, 1.5))
    for scale in (np.ones(20), np.linspace(0, 2, 20)):
        exact = twin.forward(config, weights, tokens, lora=lora, scale=0.5 * scale)
        found = tiny.logits_of(model, tokens, lora_scales=scale[:, None])
        np.testing.assert_allclose(found, exact, atol=F32 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("parallel", ["blk.1.attn_norm", "output_norm"]),
        ("head norms", ["blk.0.attn_q_norm", "blk.2.attn_k_norm", "blk.2.ffn_norm"]),
        ("row norms", ["blk.0.attn_q_norm", "blk.1.attn_k_norm"]),
        ("layer norms before and behind", ["blk.1.post_ffw_norm", "blk.1.post_attention_norm", "output_norm"]),
    ],
)
def test_adapters_of_norms(make, case, names):
    model, weights = make(case, activations="f32")
    config, tokens = parts.CASES[case], tiny.tokens_of(parts.BASE, 12)
    deltas = {f"{name}.weight": np.linspace(-0.4, 0.4, len(weights[f"{name}.weight"])) for name in names}
    model.add_adapter(Adapter(parts.NAME, {}, norms={name: d.astype(np.float32) for name, d in deltas.items()}))
    for scale in (1.0, 0.5, 0.0):
        model.set_adapter_scale(0, scale)
        moved = weights | {name: weights[name] + scale * delta for name, delta in deltas.items()}
        exact = twin.forward(config, moved, tokens)
        np.testing.assert_allclose(tiny.logits_of(model, tokens), exact, atol=F32 * np.abs(exact).max())


@pytest.mark.parametrize("case", ["head norms", "row norms", "all at once", "all at once, parallel"])
def test_threads_change_no_bit(make, case):
    tokens = tiny.tokens_of(parts.BASE, 40)
    found = [tiny.logits_of(make(case, threads=threads)[0], tokens) for threads in (1, 2, 3)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("case", ["scales", "layer norm with bias", "all at once, parallel"])
def test_the_final_norm_s_output(make, case):
    """What embeddings are made of: before the output matrix, and before what is done to logits."""
    model, weights = make(case, activations="f32")
    config = parts.CASES[case]
    tokens = tiny.tokens_of(config, 9)
    head = {name: values for name, values in weights.items() if name != "output.bias"}
    head["output.weight"] = np.eye(config.n_embd)
    plain = {"logit_scale": 1.0, "biases": ()}
    exact = twin.forward(parts.replace(config, **plain), head, tokens)
    found = model.new_session(1, 16).step(tokens, np.arange(9), np.zeros(9, int), np.arange(9), hidden=True)
    np.testing.assert_allclose(found[:, : config.n_embd], exact, atol=F32 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("case", "tensor"),
    [
        ("head norms", "blk.1.attn_q_norm.weight"),
        ("norms behind", "blk.2.post_ffw_norm.weight"),
        ("layer norm with bias", "blk.0.ffn_norm.bias"),
        ("layer norm with bias", "output_norm.bias"),
        ("biases", "output.bias"),
        ("biases", "blk.1.ffn_down.bias"),
    ],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, case, tensor):
    parts.use(monkeypatch, parts.CASES[case])
    parts.write(tmp_path / "m.gguf", parts.CASES[case], leave_out=(tensor,))
    with pytest.raises(LlamacyError, match=rf"tensor {tensor.replace('.', '[.]')} is missing"):
        load_model(tmp_path / "m.gguf", threads=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts.attention.value_length": 16}, r"parts\.attention\.value_length.* is 16"),
        ({"parts.residual_scale": -0.5}, r"parts\.residual_scale: wanted a positive number, got -0\.5"),
        ({"parts.attention.scale": float("inf")}, r"parts\.attention\.scale: wanted a positive number"),
        ({"parts.hidden_act": "gelu"}, r"parts\.hidden_act.* is 'gelu'.*wanted silu or swish"),
    ],
)
def test_numbers_that_cannot_be(tmp_path, monkeypatch, change, message):
    parts.use(monkeypatch, parts.BASE)
    parts.write(tmp_path / "m.gguf", parts.BASE, change=change)
    with pytest.raises(LlamacyError, match=message):
        load_model(tmp_path / "m.gguf", threads=1)


def test_norms_of_very_long_heads_are_refused(tmp_path, monkeypatch):
    config = parts.replace(parts.CASES["head norms"], n_head=1, n_head_kv=1, n_layer=1)
    for length in (1024, 1026):
        long = parts.replace(config, key_length=length)
        parts.use(monkeypatch, long)
        weights = parts.write(tmp_path / "m.gguf", long)
        if length > 1024:
            with pytest.raises(LlamacyError, match="norms of heads of 1026 elements, wanted heads of at most 1024"):
                load_model(tmp_path / "m.gguf", threads=1)
        else:
            model = load_model(tmp_path / "m.gguf", activations="f32", threads=1)
            tokens = tiny.tokens_of(long, 5)
            exact = twin.forward(long, weights, tokens)
            np.testing.assert_allclose(tiny.logits_of(model, tokens), exact, atol=5 * F32 * np.abs(exact).max())


def test_norms_that_some_layers_have_are_refused(tmp_path, monkeypatch):
    """Of norms that a family's files may leave out, all layers have what the first one has."""
    config = parts.CASES["head norms"]
    monkeypatch.setitem(
        parts.ARCHITECTURES, parts.NAME, parts.replace(parts.row(config), optional=("attn_q_norm", "attn_k_norm"))
    )
    first = [f"blk.0.attn_{part}_norm.weight" for part in "qk"]
    for leave_out, message in (
        (first, "layer 1 has a tensor attn_q_norm.weight, which layer 0 does not have"),
        ([f"blk.2.attn_{part}_norm.weight" for part in "qk"], "blk.2.attn_q_norm.weight is missing"),
        ([f"blk.{i}.attn_k_norm.weight" for i in range(3)], "norms of queries or of keys alone"),
    ):
        parts.write(tmp_path / "m.gguf", config, leave_out=leave_out)
        with pytest.raises(LlamacyError, match=message):
            load_model(tmp_path / "m.gguf", threads=1)

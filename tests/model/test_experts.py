"""Models with experts against the float64 twin: any type, one token or many, adapters on each expert."""

from dataclasses import replace

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.formats.architectures import ARCHITECTURES
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.model.tiny import logits_of, tokens_of, use_isa, write_llama

# an odd number of experts, more than the tokens of some steps choose
FIVE = twin.Config(
    n_vocab=97, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_layer=3, n_expert=5, n_used=2, n_ff_expert=32
)
CONFIGS = {
    "five": FIVE,
    "all of them": replace(FIVE, n_used=5, n_layer=1),
    "one": replace(FIVE, n_expert=1, n_used=1, n_layer=1),
    "many": replace(FIVE, n_expert=33, n_used=4, renormalised=False, n_layer=2),
    "sigmoid": replace(FIVE, scores="sigmoid", expert_scale=2.5, n_layer=2),
    "shared": replace(FIVE, n_ff_shared=96, renormalised=False),
    "after a dense layer": replace(FIVE, n_dense=1),
}
EXACT = 2e-4


def written(path, config, type_name="F32", **how):
    """Write random weights of a config; return them as the file holds them."""
    return write_llama(path / "m.gguf", config, twin.random_weights(config, 5), type_name, **how)


def opened(path, activations="f32", threads=2):
    return load_model(path / "m.gguf", activations=activations, threads=threads)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_twin_s(name, isa, tmp_path, monkeypatch):
    use_isa(monkeypatch, isa)
    weights, tokens = written(tmp_path, CONFIGS[name]), tokens_of(FIVE, 70)
    np.testing.assert_allclose(
        logits_of(opened(tmp_path), tokens), twin.forward(CONFIGS[name], weights, tokens), atol=EXACT
    )


BIASES = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def as_gpt_oss(monkeypatch):
    """Let llama's experts be clamped, and have biases in files that have them; return such a config."""
    row = replace(ARCHITECTURES["llama"], expert_activation="swiglu_clamped", biases=BIASES)
    monkeypatch.setitem(ARCHITECTURES, "llama", row)
    return replace(FIVE, activation="swiglu_clamped", biases=BIASES, n_layer=2)


@pytest.mark.parametrize("isa", kernels.available())
def test_clamped_experts_with_biases(isa, tmp_path, monkeypatch):
    use_isa(monkeypatch, isa)
    config, tokens = as_gpt_oss(monkeypatch), tokens_of(FIVE, 50)
    weights = twin.random_weights(config, 5)
    # far beyond what is cut off, too
    weights["blk.1.ffn_gate_exps.weight"] *= 8
    weights["blk.1.ffn_up_exps.weight"] *= 8
    write_llama(tmp_path / "m.gguf", config, weights)
    exact = twin.forward(config, weights, tokens)
    np.testing.assert_allclose(logits_of(opened(tmp_path), tokens), exact, atol=EXACT)
    np.testing.assert_array_equal(in_steps(opened(tmp_path), tokens, [1] * 50), logits_of(opened(tmp_path), tokens))


def test_a_bias_of_experts_may_not_be_missing_where_the_family_has_them(tmp_path, monkeypatch):
    config = as_gpt_oss(monkeypatch)
    written(tmp_path, config, leave_out=("blk.1.ffn_down_exps.bias",))
    with pytest.raises(LlamacyError, match=r"blk\.1\.ffn_down_exps\.bias is missing"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q5_0", "MXFP4"])
def test_experts_of_any_type(kind, tmp_path):
    def of(name):
        return kind if "_exps" in name else "F32"

    weights, tokens = written(tmp_path, FIVE, of), tokens_of(FIVE, 40)
    exact = twin.forward(FIVE, weights, tokens)
    np.testing.assert_allclose(logits_of(opened(tmp_path), tokens), exact, atol=EXACT)
    # 16 bits, then 8 of what enters the experts' matrices, where the type takes such
    for activations, bound in (("int16", 2e-3), ("int8", 0.15)):
        error = logits_of(opened(tmp_path, activations), tokens) - exact
        assert np.sqrt(np.mean(error**2)) < bound


def in_steps(model, tokens, sizes):
    """Logits of one sequence, in steps of those sizes."""
    session, at, found = model.new_session(1, 256), 0, []
    for size in sizes:
        n = np.arange(at, at + size)
        found.append(session.step(tokens[n], n, np.zeros(size, int), np.arange(size)))
        at += size
    return np.concatenate(found)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("name", ["five", "shared", "many"])
@pytest.mark.parametrize("activations", ["int8", "int16", "f32"])
def test_the_same_bits_alone_in_chunks_and_for_any_threads(name, activations, isa, tmp_path, monkeypatch):
    use_isa(monkeypatch, isa)
    written(tmp_path, CONFIGS[name], "Q4_0")
    tokens = tokens_of(FIVE, 90)
    wanted = logits_of(opened(tmp_path, activations), tokens)
    for threads, sizes in ((1, [1] * 90), (2, [1, 3, 40, 2, 44]), (3, [90]), (5, [17, 1, 72])):
        np.testing.assert_array_equal(in_steps(opened(tmp_path, activations, threads), tokens, sizes), wanted)
    # of some tokens only: the last layer then has fewer rows
    some = np.array([0, 50, 89])
    session, n = opened(tmp_path, activations).new_session(1, 256), np.arange(90)
    np.testing.assert_array_equal(session.step(tokens, n, np.zeros(90, int), some), wanted[some])


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_wide_models_round_many_rows_otherwise_and_give_the_same_bits(activations, tmp_path):
    """From n_embd 1024 on 8-bit codes of more than 16 rows lie differently: each expert has its own count of rows."""
    config = twin.Config(
        n_vocab=97, n_embd=1024, n_head=4, n_head_kv=2, n_ff=64, n_layer=1, n_expert=3, n_used=2, n_ff_expert=64
    )
    written(tmp_path, config, "Q4_0")
    tokens = tokens_of(config, 40)
    wanted = logits_of(opened(tmp_path, activations), tokens)
    np.testing.assert_array_equal(in_steps(opened(tmp_path, activations), tokens, [1] * 10 + [3, 27]), wanted)


def adapter_of(config, lora, scale=1.0):
    return Adapter(
        "llama", {name: LoraPair(*(x.astype(np.float32) for x in pair), scale) for name, pair in lora.items()}
    )


@pytest.mark.parametrize("name", ["five", "shared"])
@pytest.mark.parametrize("activations", ["f32", "int16"])
def test_adapters_on_each_expert(name, activations, tmp_path):
    config = CONFIGS[name]
    weights, tokens = written(tmp_path, config, "Q8_0"), tokens_of(FIVE, 50)
    first, second = twin.random_lora(config, 3, 1), twin.random_lora(config, 20, 2)
    # the second sits on some experts only
    second = {key: pair for key, pair in second.items() if ".0.weight" in key or ".3.weight" in key}
    model = opened(tmp_path, activations)
    model.add_adapter(adapter_of(config, first, 0.5), 2.0)
    bound = EXACT if activations == "f32" else 0.02
    exact = twin.forward(config, weights, tokens, lora=first)
    np.testing.assert_allclose(logits_of(model, tokens), exact, atol=bound)
    one = in_steps(model, tokens, [1, 1, 4, 44])
    np.testing.assert_array_equal(one, logits_of(model, tokens))
    model.add_adapter(adapter_of(config, second), 0.0)
    np.testing.assert_array_equal(logits_of(model, tokens), one)
    # each token its own scales
    scales = np.random.default_rng(1).uniform(0, 1.5, (len(tokens), 2)).astype(np.float32)
    model.set_adapter_scale(1, 1.0)
    found = logits_of(model, tokens, lora_scales=scales)
    with_first = twin.forward(config, weights, tokens, lora=first, scale=scales[:, 0])
    only_first = logits_of(model, tokens, lora_scales=scales * [1, 0])
    np.testing.assert_allclose(only_first, with_first, atol=bound)
    assert np.abs(found - only_first).max() > 0.01


def test_files_of_2023_have_a_tensor_for_each_expert(tmp_path):
    stacked, config = twin.random_weights(FIVE, 5), FIVE
    apart = {}
    for name, values in stacked.items():
        one = (
            {name.replace("_exps", f".{e}"): part for e, part in enumerate(values)}
            if "_exps" in name
            else {name: values}
        )
        apart |= one
    (tmp_path / "new").mkdir()
    write_llama(tmp_path / "m.gguf", config, apart, "Q8_0")
    write_llama(tmp_path / "new" / "m.gguf", config, stacked, "Q8_0")
    tokens = tokens_of(config, 20)
    found, wanted = (logits_of(opened(folder, "int8"), tokens) for folder in (tmp_path, tmp_path / "new"))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("change", "leave_out", "words"),
    [
        ({"llama.expert_used_count": 6}, (), "6 of 5 experts"),
        ({"llama.expert_used_count": 0}, (), "0 of 5 experts"),
        ({"llama.expert_count": 4}, (), "wanted (4, 64)"),
        ({"llama.expert_count": 100000}, (), "experts for each token"),
        ({"llama.expert_feed_forward_length": 48}, (), "wanted (5, 48, 64)"),
        ({"llama.expert_gating_func": 9}, (), "expert_gating_func"),
        ({"llama.expert_weights_scale": float("nan")}, (), "expert_weights_scale"),
        ({"llama.expert_group_count": 8}, (), "from 0 of 8 groups, wanted groups of one size"),
        ({}, ("blk.1.ffn_up_exps.weight",), "blk.1.ffn_up.0.weight is missing"),
        ({}, tuple(f"blk.{i}.ffn_gate_inp.weight" for i in range(3)), "no layer has a tensor ffn_gate_inp"),
        ({"llama.expert_count": 0, "llama.expert_used_count": 0}, (), "mixture of experts"),
    ],
)
def test_what_does_not_fit_together_is_said(change, leave_out, words, tmp_path):
    written(tmp_path, FIVE, change=change, leave_out=leave_out)
    with pytest.raises(LlamacyError) as caught:
        opened(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_found_in_any_expert(tmp_path):
    weights = twin.random_weights(FIVE, 5)
    weights["blk.1.ffn_down_exps.weight"][4, 7, 3] = np.nan
    write_llama(tmp_path / "m.gguf", FIVE, weights)
    with pytest.raises(LlamacyError, match=r"blk\.1\.ffn_down_exps\.weight holds values that are not finite"):
        opened(tmp_path)

"""What we export in other engines: PEFT loads our folder, llama.cpp our GGUF adapters, merged and legacy models."""

import json
import warnings

import numpy as np
import pytest

from llamacy.cli import convert, export_lora
from llamacy.cli.run import run
from llamacy.formats.adapter import fitted, load_adapter, save_adapter
from llamacy.formats.model_file import open_model
from llamacy.model import load_model
from tests.model import golden
from tests.model.tiny import write_llama

LEGACY = golden.DATA / "tiny.ggmlv3.q4_0.bin"
TOKENS = [1, 910, 19245, 16690, 366, 304, 788, 304, 278, 13, 1678, 274]


def our_logits(path, tokens, adapter=None, activations="f32"):
    """Logits (T, V) of tokens, with an Adapter."""
    model = load_model(path, activations=activations, threads=2)
    if adapter is not None:
        model.add_adapter(adapter)
    n = np.arange(len(tokens))
    return model.new_session(1, 128).step(tokens, n, np.zeros(len(n), int), n)


def llama_cpp_logits(path, tokens, lora=None):
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(
        model_path=str(path), n_ctx=128, logits_all=True, verbose=False, lora_path=lora and str(lora)
    )
    llama.eval(list(map(int, tokens)))
    return np.array(llama.scores[: len(tokens)])


@golden.needs_model
def test_peft_loads_what_we_export(tmp_path):
    """Log-probabilities of all next tokens within 0.05 of ours: transformers in f32 on the same dequantised weights."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    with open_model(golden.MODEL) as file:
        metadata = file.metadata
    adapter = golden.stored_adapter("final")
    assert save_adapter(tmp_path / "peft", adapter, "peft", metadata) == []
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        golden.MODEL.parent, gguf_file=golden.MODEL.name, dtype=torch.float32
    ).eval()
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft")
    for prompt in golden.recorded("smollm2_eval.json")["base"][:2]:
        ids = prompt["tokens"]
        with torch.no_grad():
            wanted = golden.log_softmax(theirs(torch.tensor([ids])).logits[0].numpy())
        found = golden.log_softmax(our_logits(golden.MODEL, ids, adapter))
        assert np.abs(found - wanted).max() < 0.05
        with theirs.disable_adapter(), torch.no_grad():
            plain = golden.log_softmax(theirs(torch.tensor([ids])).logits[0].numpy())
        assert np.abs(found - plain).max() > 0.5


EMBEDDING_CASES = [
    (["q_proj", "embed_tokens", "lm_head"], {}, {}),
    (["embed_tokens"], {}, {}),
    (["lm_head"], {"use_rslora": True}, {}),
    (["q_proj", "embed_tokens"], {}, {"save_embedding_layers": False}),
    (["q_proj"], {}, {"save_embedding_layers": True}),
    (["q_proj", "embed_tokens"], {"ensure_weight_tying": True}, {}),
    (["q_proj", "lm_head"], {"ensure_weight_tying": True}, {}),
    (["q_proj", "embed_tokens", "lm_head"], {"rank_pattern": {"lm_head": 3}, "alpha_pattern": {"embed_tokens": 9}}, {}),
]


PATTERNS = {"rank_pattern": {r"layers\.1\..*q_proj": 5, "down_proj": 2}, "alpha_pattern": {r"^model\.layers\.0\..*": 3}}
DORA = {"use_dora": True}
DORA_CASES = [
    (["q_proj", "down_proj"], DORA, {}),
    (["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], DORA | {"use_rslora": True}, {}),
    (["q_proj", "down_proj"], DORA | PATTERNS, {}),
    (["q_proj", "down_proj"], PATTERNS, {}),
    (["v_proj", "lm_head"], DORA, {}),
]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("targets", "settings", "how"), [*EMBEDDING_CASES, *DORA_CASES])
def test_peft_s_adapters_both_ways(tmp_path, tied, targets, settings, how):
    """Its folder loads here without a word, ours loads there, and all mean negative log-likelihoods are the same."""
    pytest.importorskip("peft")
    from tests.peers import peft_embeddings as case

    write_llama(tmp_path / "m.gguf", case.CONFIG, case.weights_of(tied))
    llama = case.adapted(tied, targets, **settings)
    folder, wanted = case.saved(llama, tmp_path / "theirs", **how), case.mean_nll(llama)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = load_adapter(folder)
        found = our_logits(tmp_path / "m.gguf", case.TOKENS[:-1], adapter)
    n = np.arange(len(case.TOKENS) - 1)
    assert -golden.log_softmax(found)[n, case.TOKENS[1:]].mean() == pytest.approx(wanted, abs=1e-4)
    with open_model(tmp_path / "m.gguf") as file:
        assert save_adapter(tmp_path / "ours", fitted(adapter, file), "peft", file.metadata) == []
    assert case.mean_nll(case.loaded(tied, tmp_path / "ours")) == pytest.approx(wanted, abs=1e-4)


def test_the_recorded_adapter_on_embeddings():
    """tests/data/peft_embeddings.json says what PEFT says today."""
    pytest.importorskip("peft")
    from tests.peers import peft_embeddings as case

    for fact in json.loads((golden.DATA / "peft_embeddings.json").read_text())["cases"]:
        llama = case.adapted(fact["tied"], fact["targets"]) if fact["targets"] else case.base(fact["tied"])
        assert case.mean_nll(llama) == pytest.approx(fact["nll"], abs=2e-6)


@golden.needs_model
def test_llama_cpp_loads_our_gguf_adapter(tmp_path):
    adapter = golden.stored_adapter("final")
    assert save_adapter(tmp_path / "a.gguf", adapter) == []
    ids = golden.recorded("smollm2_eval.json")["base"][0]["tokens"]
    found = golden.log_softmax(our_logits(golden.MODEL, ids, adapter))
    wanted = golden.log_softmax(llama_cpp_logits(golden.MODEL, ids, tmp_path / "a.gguf"))
    likely = found > -8
    # it rounds activations to 8 bits
    assert np.abs(found - wanted)[likely].mean() < 0.15


def test_a_legacy_file_converted(tmp_path):
    """Blocks bit for bit, and llama.cpp's logits of the result are ours of the old file."""
    assert run(convert.main, [str(LEGACY), str(tmp_path / "new.gguf")]) == 0
    with open_model(LEGACY) as old, open_model(tmp_path / "new.gguf") as new:
        for name, info in old.tensors.items():
            assert new.tensors[name].type is info.type
            np.testing.assert_array_equal(new.data(name), old.data(name), name)
    found, wanted = our_logits(LEGACY, TOKENS), llama_cpp_logits(tmp_path / "new.gguf", TOKENS)
    np.testing.assert_allclose(wanted, found, rtol=0, atol=0.02 * np.abs(found).max())
    assert (wanted.argmax(1) == found.argmax(1)).all()


def test_a_merged_model(tmp_path):
    base, lora = golden.DATA / "tiny-q8_0.gguf", golden.DATA / "tiny-adapter-ggla.bin"
    for outtype, share in (("f32", 0.003), ("q8_0", 0.03)):
        flags = ["-m", str(base), "--lora", str(lora), "-o", str(tmp_path / "m.gguf"), "--outtype", outtype]
        assert run(export_lora.main, flags) == 0
        found = our_logits(tmp_path / "m.gguf", TOKENS)
        wanted = llama_cpp_logits(tmp_path / "m.gguf", TOKENS)
        np.testing.assert_allclose(wanted, found, rtol=0, atol=share * np.abs(found).max())

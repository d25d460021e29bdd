"""Models with adapters merged in, against sums in float64, the run-time adapter and what llama.cpp said."""

import gguf
import numpy as np
import pytest

from llamacy.cli import export_lora, perplexity
from llamacy.cli.run import run
from llamacy.errors import LlamacyError, UsageError
from llamacy.formats.adapter import FORMATS, Adapter, LoraPair, save_adapter
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.merge import merged
from llamacy.formats.model_file import open_model
from llamacy.formats.rewrite import writable, written_types
from llamacy.formats.types import by_name
from llamacy.kernels.reference import model as twin
from llamacy.kernels.reference import quants
from llamacy.model import load_model
from tests.model.tiny import CONFIG, logits_of, tokens_of, write_llama

SIMPLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
TOKENS = tokens_of(CONFIG, 19)


def adapter_of(names="", seed=5, norms=False):
    """An adapter on all matrices whose names hold `names`; with `norms`, on every norm too."""
    rng, pairs = np.random.default_rng(seed), {}
    for name, (a, b) in twin.random_lora(CONFIG, 4, seed).items():
        if names in name:
            pairs[name] = LoraPair(a.astype(np.float32), b.astype(np.float32), 0.5)
    found = ["output_norm", "blk.0.attn_norm", "blk.1.ffn_norm"] if norms else []
    deltas = {f"{name}.weight": rng.normal(0, 0.3, CONFIG.n_embd).astype(np.float32) for name in found}
    return Adapter("llama", pairs, 2.0, path="an.gguf", norms=deltas)


def base_of(path, type_name="Q4_1", tied=False):
    return write_llama(path, CONFIG, twin.random_weights(CONFIG, 20, tied), type_name)


def sums(exact, adapters):
    """W + scale * user * B A of every tensor, float64."""
    total = {name: np.array(values, np.float64) for name, values in exact.items()}
    for adapter, user in adapters:
        for name, pair in adapter.pairs.items():
            total[name] += pair.scale * user * (pair.b.astype(float) @ pair.a.astype(float))
        for name, delta in adapter.norms.items():
            total[name] += user * delta
    return total


def merge(tmp_path, adapters, **how):
    with open_model(tmp_path / "base.gguf") as model:
        metadata, tensors = merged(model, adapters, **how)
        write_gguf(tmp_path / "out.gguf", metadata, tensors, model.value_types)
    return tmp_path / "out.gguf"


@pytest.mark.parametrize("type_name", SIMPLE)
def test_each_tensor_keeps_its_type(tmp_path, type_name):
    exact = base_of(tmp_path / "base.gguf", type_name)
    adapters = [(adapter_of("attn_q", norms=True), 1.0), (adapter_of("blk.1", seed=6), -0.7)]
    out = merge(tmp_path, adapters, n_threads=2)
    total = sums(exact, adapters)
    touched = {name for adapter, _ in adapters for name in [*adapter.pairs, *adapter.norms]}
    assert 5 < len(touched) < len(exact)
    with open_model(tmp_path / "base.gguf") as base, open_model(out) as found:
        assert list(found.tensors) == list(base.tensors)
        assert {k: str(v) for k, v in found.metadata.items()} == {k: str(v) for k, v in base.metadata.items()}
        for name, info in found.tensors.items():
            assert info.type is base.tensors[name].type and info.shape == base.tensors[name].shape
            if name not in touched:
                np.testing.assert_array_equal(found.data(name), base.data(name), name)
                continue
            wanted = quants.quantize(info.type.name, total[name].astype(np.float32).reshape(info.n_rows, -1))
            values, ideal = (
                quants.dequantize(info.type.name, rows.reshape(info.n_rows, -1)) for rows in (found.data(name), wanted)
            )
            # f32 sums differ from float64's in a last bit, which may move a code by one step
            step = np.abs(ideal).max() * {"F32": 1e-6, "F16": 1e-3, "BF16": 8e-3}.get(info.type.name, 0.14)
            np.testing.assert_allclose(values, ideal, rtol=0, atol=step, err_msg=name)
            assert (values != ideal).mean() < 0.02 or info.type.name == "F32"


@pytest.mark.parametrize("tied", [False, True])
def test_the_f32_merge_says_what_the_adapter_says_at_run_time(tmp_path, tied):
    base_of(tmp_path / "base.gguf", "Q4_1", tied)
    rng = np.random.default_rng(3)
    on_embedding = LoraPair(*(rng.normal(0, 0.2, s).astype(np.float32) for s in ((3, 64), (97, 3))), 0.8)
    adapters = [(adapter_of(norms=True), 1.0), (adapter_of("ffn", seed=6), 0.3)]
    adapters[0][0].pairs["token_embd.weight"] = on_embedding
    out = merge(tmp_path, adapters, outtype=writable("f32"))
    model = load_model(tmp_path / "base.gguf", activations="f32", threads=2)
    plain = logits_of(model, TOKENS)
    for adapter, scale in adapters:
        model.add_adapter(adapter, scale)
    wanted, found = logits_of(model, TOKENS), logits_of(load_model(out, activations="f32", threads=2), TOKENS)
    assert np.abs(wanted - plain).max() > 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5 * np.abs(wanted).max())
    with open_model(out) as file:
        assert {info.type.name for info in file.tensors.values()} == {"F32"}
        assert file.metadata["general.file_type"] == 0 and "output.weight" in file.tensors


def test_what_llama_cpp_s_own_tools_said(tmp_path, data, capsys):
    """golden: 270.16 in exact arithmetic on the Q8_0 base with the adapter (norms and embeddings), 322.57 at half."""
    (tmp_path / "head.txt").write_bytes((data / "golden" / "gpl3.txt").read_bytes()[:6000])
    for scale, wanted in (("1", 270.16), ("0.5", 322.57)):
        lora = f"{data / 'tiny-adapter-ggla.bin'}:{scale}"
        flags = ["-m", str(data / "tiny-q8_0.gguf"), "--lora", lora, "-o", str(tmp_path / "m.gguf")]
        assert run(export_lora.main, [*flags, "--outtype", "f32"]) == 0
        capsys.readouterr()
        flags = ["-m", str(tmp_path / "m.gguf"), "-f", str(tmp_path / "head.txt"), "-c", "128"]
        assert run(perplexity.main, [*flags, "--activations", "f32"]) == 0
        assert float(capsys.readouterr().out.split()[2]) == pytest.approx(wanted, abs=0.006)


def test_every_adapter_format_merges_to_the_same_file(tmp_path):
    base_of(tmp_path / "base.gguf")
    contents = set()
    with open_model(tmp_path / "base.gguf") as base:
        metadata = base.metadata
    for format in FORMATS:
        save_adapter(tmp_path / format, adapter_of(), format, metadata)
        flags = ["-m", str(tmp_path / "base.gguf"), "--lora", str(tmp_path / format), "-o", str(tmp_path / "m.gguf")]
        assert run(export_lora.main, flags) == 0
        contents.add((tmp_path / "m.gguf").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("type_name", written_types())
def test_every_type_and_the_reference_reader(tmp_path, type_name):
    base_of(tmp_path / "base.gguf", "F32")
    outtype = writable(type_name.lower())
    out = merge(tmp_path, [(adapter_of(), 1.0)], outtype=outtype)
    reader = gguf.GGUFReader(out)
    # rows of 64 and 96 hold no blocks of 256: those matrices become F16
    wanted = type_name if outtype.block_size <= 32 else "F16"
    assert {t.tensor_type.name for t in reader.tensors if len(t.shape) == 2} == {wanted}
    assert {t.tensor_type.name for t in reader.tensors if len(t.shape) == 1} == {"F32"}


def test_what_does_not_fit_is_refused_and_the_old_file_stays(tmp_path, data, capsys):
    base_of(tmp_path / "base.gguf")
    (tmp_path / "out.gguf").write_bytes(b"precious")
    lora = str(data / "tiny-adapter-ggla.bin")
    flags = ["-m", str(tmp_path / "base.gguf"), "-o", str(tmp_path / "out.gguf")]
    assert run(export_lora.main, [*flags, "--lora", lora]) == 1
    assert "does not fit" in capsys.readouterr().err
    assert run(export_lora.main, flags) == 2
    assert run(export_lora.main, [*flags, "--lora", lora, "--outtype", "iq2_xxs"]) == 2
    assert "cannot be written, wanted one of F32, F16" in capsys.readouterr().err
    assert (tmp_path / "out.gguf").read_bytes() == b"precious"
    with pytest.raises(LlamacyError, match="not finite; damaged, or too large a scale"):
        merge(tmp_path, [(adapter_of(), 1e39)])
    other = adapter_of()
    other.architecture = "gemma"
    with pytest.raises(LlamacyError, match="for 'gemma', the model is 'llama'"):
        merge(tmp_path, [(other, 1.0)])
    with pytest.raises(UsageError):
        writable("nonsense")
    assert (tmp_path / "out.gguf").read_bytes() == b"precious"


def test_a_type_that_is_only_read_asks_for_another(tmp_path):
    rows = np.zeros((4, 66), np.uint8)
    write_gguf(tmp_path / "base.gguf", {"general.architecture": "llama"},
               [("x.weight", by_name("IQ2_XXS"), (4, 256), rows)])  # fmt: skip
    pair = LoraPair(np.ones((2, 256), np.float32), np.ones((4, 2), np.float32))
    adapter = Adapter("llama", {"x.weight": pair})
    with pytest.raises(LlamacyError, match="x.weight is IQ2_XXS, which can be read and not written; choose an --out"):
        merge(tmp_path, [(adapter, 1.0)])
    with open_model(merge(tmp_path, [(adapter, 1.0)], outtype=writable("f32"))) as file:
        np.testing.assert_array_equal(file.data("x.weight").view(np.float32), np.full((4, 256), 2, np.float32))

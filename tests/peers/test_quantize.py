"""bin/quantize beside llama.cpp's own quantiser: the same types, smaller errors, no higher perplexity, files for both.

A random model whose rows divide into 256 has every K type in it; the default model, where it is there, tells what the
errors do to a text.
"""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from llamacy import kernels
from llamacy.cli import convert, quantize
from llamacy.cli.run import run
from llamacy.formats.model_file import open_model
from llamacy.generate import perplexity as protocol
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.model.mixes import MIXES
from tests.model import golden, test_legacy_kquants
from tests.model.padded import write_padded
from tests.model.tiny import logits_of, tokens_of, write_imatrix, write_llama

llama_cpp = pytest.importorskip("llama_cpp")

CONFIG = twin.Config(n_vocab=97, n_embd=256, n_head=4, n_head_kv=2, n_ff=512, n_layer=9)
ROUNDED = ["BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"]
SEARCHED = ["Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS"]
# Importance of columns, made up: what some rules and all searches depend on
SPREAD = 1.5


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A function "random", "default" or "padded" -> path of that model in F16; skips where the default is missing."""
    folder = tmp_path_factory.mktemp("f16")

    @cache
    def path_of(which):
        out = folder / f"{which}.gguf"
        if which == "random":
            write_llama(out, CONFIG, twin.random_weights(CONFIG, 5, tied=False), "F16")
        elif not golden.MODEL.exists():
            pytest.skip(f"{golden.MODEL} is not there: run make")
        elif which == "padded":
            write_padded(golden.MODEL, out)
        else:
            assert run(quantize.main, [str(golden.MODEL), str(out), "F16", "--allow-requantize"]) == 0
        return out

    return path_of


@pytest.fixture(scope="session")
def pair_of(sources, tmp_path_factory):
    """A function (which model, mix) -> (our file, llama.cpp's)."""
    folder = tmp_path_factory.mktemp("quantised")

    @cache
    def paths_of(which, mix):
        source = sources(which)
        ours, theirs = folder / f"{which}-{mix}-ours.gguf", folder / f"{which}-{mix}-theirs.gguf"
        # of its MXFP4 files llama.cpp says that experts only are of that type, unless all matrices shall be
        pure = mix == "MXFP4"
        assert run(quantize.main, [str(source), str(ours), mix, *(["--pure"] if pure else [])]) == 0
        how = llama_cpp.llama_model_quantize_default_params()
        how.ftype, how.nthread, how.pure = MIXES[mix].file_type, 2, pure
        assert llama_cpp.llama_model_quantize(str(source).encode(), str(theirs).encode(), ctypes.byref(how)) == 0
        return ours, theirs

    return paths_of


def values_of(model, name):
    rows = np.ascontiguousarray(model.data(name)).view(np.uint8)
    return kernels.quants.dequantize(rows, model.tensors[name].type.number).astype(np.float64)


@pytest.mark.parametrize("which", ["random", "default"])
@pytest.mark.parametrize("mix", ROUNDED + SEARCHED)
def test_same_types_and_no_larger_errors(sources, pair_of, which, mix):
    ours, theirs = pair_of(which, mix)
    with open_model(sources(which)) as source, open_model(ours) as found, open_model(theirs) as expected:
        kinds = [{name: info.type.name for name, info in file.tensors.items()} for file in (found, expected)]
        assert kinds[0] == kinds[1]
        for key in ("general.file_type", "general.quantization_version"):
            assert found.metadata[key] == expected.metadata[key]
        for name, info in found.tensors.items():
            if not np.array_equal(found.data(name), expected.data(name)):
                exact = values_of(source, name)
                errors = [np.square(values_of(file, name) - exact).sum() for file in (found, expected)]
                # Q4_0 and Q5_0 round ties as the gguf package does, which moves a few codes either way
                assert errors[0] <= errors[1] * 1.0005, (name, info.type.name)


@pytest.mark.parametrize("mix", [*SEARCHED, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_same_types_and_no_larger_errors_by_importance(sources, tmp_path, mix):
    rng, ours, theirs = np.random.default_rng(6), tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    with open_model(sources("random")) as source:
        sizes = {name: info.shape[1] for name, info in source.tensors.items() if len(info.shape) > 1}
        means = {name: rng.lognormal(0, SPREAD, size).astype(np.float32) for name, size in sizes.items()}
        # the embedding has none, as in a file that imatrix wrote
        del means["token_embd.weight"]
        imatrix = write_imatrix(tmp_path / "imatrix.gguf", {name: (x[None], [1]) for name, x in means.items()})
        assert run(quantize.main, [str(source.path), str(ours), mix, "--imatrix", str(imatrix)]) == 0
        how = llama_cpp.llama_model_quantize_default_params()
        how.ftype, how.nthread = MIXES[mix].file_type, 2
        entries = [
            llama_cpp.llama_model_imatrix_data(name.encode(), x.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), x.size)
            for name, x in means.items()
        ]
        array = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(*entries)
        how.imatrix = array
        files = str(source.path).encode(), str(theirs).encode()
        assert llama_cpp.llama_model_quantize(*files, ctypes.byref(how)) == 0
        with open_model(ours) as found, open_model(theirs) as expected:
            for name, info in found.tensors.items():
                assert info.type is expected.tensors[name].type, name
                if name in means and not np.array_equal(found.data(name), expected.data(name)):
                    exact = values_of(source, name)
                    wrong = [means[name] * np.square(values_of(file, name) - exact) for file in (found, expected)]
                    assert wrong[0].sum() <= wrong[1].sum() * 1.0005, (name, info.type.name)


@pytest.mark.parametrize("mix", ["Q4_0", "Q4_K_M", "Q2_K", "Q3_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"])
def test_each_runs_the_other_s_file(pair_of, mix):
    tokens = tokens_of(CONFIG, 32)
    for path in pair_of("random", mix):
        ours = logits_of(load_model(path, activations="f32"), tokens)
        np.testing.assert_allclose(llama_cpp_logits(path, tokens), ours, rtol=0, atol=0.05 * np.abs(ours).max())


def llama_cpp_logits(path, tokens):
    llama = llama_cpp.Llama(model_path=str(path), n_ctx=64, logits_all=True, verbose=False)
    llama.eval([int(token) for token in tokens])
    return np.array(llama.scores[: len(tokens)])


def text_in(path):
    """Return (model, ids of the GPL's text)."""
    model = load_model(path, threads=2)
    return model, protocol.read_tokens(model, str(golden.GOLDEN / "gpl3.txt"), 512, None)


@cache
def log_p_of(path, i=1):
    """Return the log-probabilities after the tokens of window number i, float64 (448, n_vocab)."""
    model, ids = text_in(path)
    session, window, found = model.new_session(1, 512), np.array(ids[512 * i : 512 * (i + 1)]), []
    for start in range(0, 512, 64):
        n = np.arange(start, start + 64)
        found.append(golden.log_softmax(session.step(window[n], n, np.zeros(64, int), np.arange(64))))
    return np.concatenate(found[1:])


# The default model's rows of 576 make Q3_K_S the same as Q2_K.
@pytest.mark.parametrize("mix", [mix for mix in SEARCHED if mix != "Q3_K_S"])
def test_answers_are_no_further_from_the_model_s_own(sources, pair_of, mix):
    """Perplexity of the whole text at most 0.3 % higher; the divergence from F16 in one window, whose standard error
    is 3 to 6 %, at most 10 % larger."""
    exact = log_p_of(sources("default"))
    files = pair_of("default", mix)
    divergences = [(np.exp(exact) * (exact - log_p_of.__wrapped__(path))).sum(axis=1).mean() for path in files]
    assert divergences[0] <= divergences[1] * 1.1
    found = [protocol.measure(*text_in(path), 512).perplexity for path in files]
    assert found[0] <= found[1] * 1.003


def test_padding_changes_nothing(sources):
    exact, padded = log_p_of(sources("default")), log_p_of(sources("padded"))
    assert (np.exp(exact) * (exact - padded)).sum(axis=1).mean() < 0.002


# Of 2 and 3 bits little of so small a model is left (divergences of 2.8 and 0.4): the ratio of two files' divergences
# scatters by 13 % from window to window. Six windows know it to some 6 %, of which twice is allowed.
ROUGH, FINE = ((1, 3, 5, 7, 9, 11), 1.12), ((1, 9), 1.02)
WINDOWS = {"Q2_K": ROUGH, "Q3_K_M": ROUGH, "Q4_K_M": FINE, "Q5_K_M": FINE, "Q6_K": FINE, "IQ4_XS": FINE}


@pytest.mark.parametrize("mix", WINDOWS)
def test_answers_of_rows_of_whole_blocks_are_no_further(sources, pair_of, mix):
    """Divergences of the default model padded to rows of 768, where every matrix is what the mix names."""
    (windows, limit), divergences = WINDOWS[mix], []
    for path in pair_of("padded", mix):
        pairs = [(log_p_of(sources("padded"), i), log_p_of.__wrapped__(path, i)) for i in windows]
        divergences.append(np.mean([(np.exp(p) * (p - q)).sum(axis=1).mean() for p, q in pairs]))
    print(f"{mix}: divergence {divergences[0]:.4f}, llama.cpp's file {divergences[1]:.4f}")
    assert divergences[0] <= divergences[1] * limit


@pytest.mark.parametrize("kind", test_legacy_kquants.FTYPES)
def test_llama_cpp_runs_what_was_a_legacy_file(tmp_path, monkeypatch, kind):
    old, new = tmp_path / "old.bin", Path(tmp_path, "new.gguf")
    test_legacy_kquants.write(old, monkeypatch, kind)
    assert run(convert.main, [str(old), str(new)]) == 0
    tokens = np.random.default_rng(1).integers(3, 260, 24)
    ours = logits_of(load_model(old, activations="f32"), tokens)
    np.testing.assert_allclose(llama_cpp_logits(new, tokens), ours, rtol=0, atol=0.05 * np.abs(ours).max())

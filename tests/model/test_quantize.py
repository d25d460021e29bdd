"""bin/quantize: what a file's tensors become, what is refused, and that the result runs."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamacy import kernels
from llamacy.cli import quantize as command
from llamacy.cli.run import run
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.imatrix import read_imatrix
from llamacy.formats.layout import TensorInfo
from llamacy.formats.model_file import open_model
from llamacy.formats.types import TYPES, by_name
from llamacy.kernels.reference import model as twin
from llamacy.kernels.reference import quants as twins
from llamacy.model import load_model
from llamacy.model.mixes import MIXES
from llamacy.model.quantize import Step, write_model
from tests.model.tiny import logits_of, tokens_of, write_imatrix, write_llama

CONFIG = twin.Config(n_vocab=97, n_embd=256, n_head=4, n_head_kv=2, n_ff=512, n_layer=3)
NARROW = twin.Config(n_vocab=97, n_embd=96, n_head=3, n_head_kv=1, n_ff=256, n_layer=2)
F32 = by_name("F32")
DATA = Path(__file__).resolve().parents[1] / "data"
LIMITED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model in F32 whose rows divide into 256, with an output matrix."""
    path = tmp_path_factory.mktemp("in") / "f32.gguf"
    write_llama(path, CONFIG, twin.random_weights(CONFIG, 5, tied=False))
    return path


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """One with rows of 96 and no output matrix."""
    path = tmp_path_factory.mktemp("in") / "narrow.gguf"
    write_llama(path, NARROW, twin.random_weights(NARROW, 5, tied=True))
    return path


def call(capsys, *words):
    """Run the command and return (exit code, stdout, stderr)."""
    code = run(command.main, [str(word) for word in words])
    return code, *capsys.readouterr()


def refused(capsys, *words, code=1):
    found, out, error = call(capsys, *words)
    assert (found, out, error.count("\n")) == (code, "", 1)
    return error


def content(path):
    """Return {tensor: (type's name, values float32)} as the gguf package reads a file."""
    return {
        tensor.name: (tensor.tensor_type.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("mix", MIXES)
def test_every_mix_gives_a_file_that_the_gguf_package_reads(source, tmp_path, capsys, mix):
    out = tmp_path / "out.gguf"
    code, stdout, error = call(capsys, source, out, mix.lower(), "2")
    assert (code, stdout) == (0, "") and f"{mix}, 30 tensors" in error
    before, after = content(source), content(out)
    assert list(before) == list(after)
    for name, (kind, values) in after.items():
        exact = before[name][1].reshape(values.shape)
        error = np.square(values - exact).mean() / np.square(exact).mean()
        assert error < {"TQ": 0.8, "Q2": 0.2, "MX": 0.03}.get(kind[:2], 0.04), (name, kind)
        assert kind == "F32" if "norm" in name else kind == MIXES[mix].base or MIXES[mix].rules or "output" in name
    fields = gguf.GGUFReader(out).fields
    assert fields["general.file_type"].contents() == MIXES[mix].file_type
    assert fields["general.quantization_version"].contents() == 2
    assert fields["general.file_type"].types == [gguf.GGUFValueType.UINT32]


@pytest.mark.parametrize("mix", ["Q2_K", "Q4_K_M", "Q6_K", "IQ4_XS", "MXFP4"])
def test_what_was_written_runs(source, tmp_path, capsys, mix):
    out = tmp_path / "out.gguf"
    assert call(capsys, source, out, mix)[0] == 0
    tokens = tokens_of(CONFIG, 12)
    found, exact = (logits_of(load_model(path, activations="f32"), tokens) for path in (out, source))
    # what is left of the logits: 2 bits keep little of a random model
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > (0.8 if mix == "Q2_K" else 0.97)


def test_rows_are_those_of_the_kernels_with_any_number_of_threads(source, tmp_path, capsys):
    for threads in (1, 3):
        call(capsys, source, tmp_path / f"{threads}.gguf", "Q4_K_S", "-t", threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()
    with open_model(source) as before, open_model(tmp_path / "1.gguf") as after:
        for name, info in after.tensors.items():
            values = before.data(name).view(np.float32)
            np.testing.assert_array_equal(after.data(name), kernels.quants.quantize(values, info.type.number))


def test_a_tensor_is_rounded_in_pieces(source, tmp_path, capsys, monkeypatch):
    whole = tmp_path / "whole.gguf"
    call(capsys, source, whole, "Q5_K_M")
    monkeypatch.setattr("llamacy.model.quantize.CHUNK", 1000)
    call(capsys, source, tmp_path / "pieces.gguf", "Q5_K_M")
    assert (tmp_path / "pieces.gguf").read_bytes() == whole.read_bytes()


def test_rows_that_do_not_divide_fall_back_and_say_so(narrow, tmp_path, capsys):
    code, _, error = call(capsys, narrow, tmp_path / "out.gguf", "Q4_K_M")
    assert code == 0
    assert "Q4_K does not divide the rows of 11 tensors: they become Q5_0\n" in error
    kinds = {name: kind for name, (kind, _) in content(tmp_path / "out.gguf").items()}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == "Q5_0" and kinds["blk.1.ffn_down.weight"] == "Q6_K"


def test_quantised_input_wants_leave(source, tmp_path, capsys):
    first, out = tmp_path / "q8.gguf", tmp_path / "out.gguf"
    call(capsys, source, first, "Q8_0")
    error = refused(capsys, first, out, "Q4_0")
    assert "is Q8_0 already" in error and "--allow-requantize" in error and not out.exists()
    assert call(capsys, first, out, "Q4_0", "--allow-requantize")[0] == 0
    # what keeps its type is copied, and needs no leave
    assert call(capsys, first, out, "Q8_0")[0] == 0
    assert content(out).keys() == content(first).keys()
    with open_model(first) as before, open_model(out) as after:
        for name in before.tensors:
            np.testing.assert_array_equal(after.data(name), before.data(name))


def test_the_input_is_not_overwritten(source, tmp_path, capsys):
    copy = tmp_path / "m.gguf"
    copy.write_bytes(source.read_bytes())
    (tmp_path / "link.gguf").symlink_to(copy)
    for out in (copy, tmp_path / "link.gguf"):
        assert "is the input itself" in refused(capsys, copy, out, "Q4_0", code=2)
    assert copy.read_bytes() == source.read_bytes()


def test_wrong_words(source, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    assert "type 'q9' is unknown, wanted one of F32" in refused(capsys, source, out, "q9", code=2)
    for flag in ("--output-tensor-type", "--token-embedding-type"):
        assert "'iq2_xxs' cannot be written" in refused(capsys, source, out, "Q4_0", flag, "iq2_xxs", code=2)
    assert "No such file" in refused(capsys, tmp_path / "none.gguf", out, "Q4_0")
    assert not out.exists()


def test_wishes_for_single_tensors(source, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    call(capsys, source, out, "Q4_K_M", "--output_tensor_type", "q5_1", "--token-embedding-type", "Q8_0")
    assert [content(out)[name][0] for name in ("output.weight", "token_embd.weight")] == ["Q5_1", "Q8_0"]
    call(capsys, source, out, "Q4_K_M", "--leave-output-tensor")
    assert content(out)["output.weight"][0] == "F32"
    call(capsys, source, out, "Q4_K_M", "--pure")
    assert {kind for kind, _ in content(out).values()} == {"Q4_K", "F32"}


def test_a_dry_run_writes_nothing(source, tmp_path, capsys):
    code, stdout, _ = call(capsys, source, tmp_path / "out.gguf", "Q4_K_M", "--dry-run")
    assert code == 0 and list(tmp_path.iterdir()) == []
    lines = stdout.splitlines()
    assert len(lines) == 31 and lines[-1].startswith("30 tensors, ")
    total = sum(int(line.split()[-1]) for line in lines[:-1])
    call(capsys, source, tmp_path / "out.gguf", "Q4_K_M")
    with open_model(tmp_path / "out.gguf") as model:
        assert total == sum(info.nbytes for info in model.tensors.values())


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "Q4_0"), (np.inf, "Q6_K"), (1e6, "F16"), (1e30, "Q8_0")])
def test_numbers_that_a_type_cannot_hold_are_named(tmp_path, capsys, value, kind):
    weights = twin.random_weights(CONFIG, 5, tied=True)
    weights["blk.1.ffn_up.weight"][3, 5] = value
    write_llama(tmp_path / "in.gguf", CONFIG, weights)
    error = refused(capsys, tmp_path / "in.gguf", tmp_path / "out.gguf", kind)
    assert "blk.1.ffn_up.weight holds numbers that" in error
    assert not (tmp_path / "out.gguf").exists()


def test_legacy_and_split_input(tmp_path, capsys):
    out = tmp_path / "out.gguf"
    assert call(capsys, DATA / "tiny.ggmlv3.q4_0.bin", out, "Q8_0", "--allow-requantize")[0] == 0
    assert {kind for kind, _ in content(out).values()} == {"Q8_0", "F32"}
    values = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    for i in range(2):
        numbers = {"split.no": np.uint16(i), "split.count": np.uint16(2), "split.tensors.count": np.int32(2)}
        numbers |= {"general.architecture": "llama"} if i == 0 else {}
        part = tmp_path / f"m-{i + 1:05}-of-00002.gguf"
        write_gguf(part, numbers, [(f"blk.{i}.ffn_up.weight", F32, values.shape, values)])
    assert call(capsys, tmp_path / "m-00001-of-00002.gguf", out, "Q4_0")[0] == 0
    fields = gguf.GGUFReader(out).fields
    assert len(content(out)) == 2 and not any(name.startswith("split.") for name in fields)
    assert "is the input itself" in refused(
        capsys, tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf", "Q4_0", code=2
    )


class Stream:
    """A place to write to that may be a terminal."""

    def __init__(self, terminal):
        self.terminal, self.text = terminal, ""

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def show_all(stream, seconds):
    """Show four quarters of a run that takes `seconds`."""
    clock = iter(np.linspace(0, seconds, 5))
    bar = command.Bar(stream, lambda: float(next(clock)))
    step = Step(TensorInfo("blk.0.ffn_up.weight", F32, (4, 256), 0, 0), by_name("Q4_K"), by_name("Q4_K"))
    for done in (25, 50, 75, 100):
        bar.show(step, done, 100)
    bar.close()
    return stream.text


def test_a_terminal_sees_a_bar_that_goes_away(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = show_all(Stream(True), 40).split("\r")
    assert lines[2].startswith("[===============---------------]  50 %  blk.0.ffn_up.weight Q4_K  0:20 left")
    assert len(lines) == 7 and not lines[5].strip() and lines[6] == ""


def test_elsewhere_a_line_now_and_then():
    assert show_all(Stream(False), 4) == ""
    assert [line[:5] for line in show_all(Stream(False), 16).splitlines()] == [" 50 %", "100 %"]


# --- importance ------------------------------------------------------------------------------------------------------


NAME = "blk.1.attn_q.weight"


def test_importance_moves_the_error_to_columns_that_do_not_count(source, tmp_path, capsys):
    means = np.random.default_rng(3).lognormal(0, 2, 256)
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", {NAME: (means[None] * 20, [20])})
    plain, weighed = tmp_path / "plain.gguf", tmp_path / "weighed.gguf"
    call(capsys, source, plain, "Q3_K_S")
    assert call(capsys, source, weighed, "Q3_K_S", "--imatrix", imatrix)[0] == 0
    exact = content(source)[NAME][1]
    errors = [(np.square(content(path)[NAME][1] - exact) * means).sum() for path in (plain, weighed)]
    assert errors[1] < 0.8 * errors[0]
    with open_model(source) as before, open_model(weighed) as after:
        values = before.data(NAME).view(np.float32)
        np.testing.assert_allclose(read_imatrix(imatrix).columns[NAME][0], means, rtol=1e-6)
        expected = kernels.quants.quantize(values, by_name("Q3_K").number, 1, read_imatrix(imatrix).columns[NAME][0])
        np.testing.assert_array_equal(after.data(NAME), expected)
        assert after.metadata["quantize.imatrix.entries_count"] == 1


def test_experts_have_an_importance_each(tmp_path):
    values = np.random.default_rng(4).normal(size=(2, 8, 64)).astype(np.float32)
    means = np.random.default_rng(5).lognormal(0, 2, (2, 64)).astype(np.float32)
    name = "blk.0.ffn_up_exps.weight"
    write_gguf(tmp_path / "in.gguf", {"general.architecture": "llama"}, [(name, F32, values.shape, values)])
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", {name: (means * [[4], [0]], [4, 0])})
    run(command.main, [str(tmp_path / "in.gguf"), str(tmp_path / "out.gguf"), "Q4_0", "--imatrix", str(imatrix)])
    q4_0 = by_name("Q4_0").number
    # the second expert saw no token: all its columns count alike
    rows = [kernels.quants.quantize(values[i], q4_0, 1, means[0] if i == 0 else np.ones(64, "f4")) for i in range(2)]
    with open_model(tmp_path / "out.gguf") as model:
        np.testing.assert_array_equal(model.data(name), np.vstack(rows))


SUMS = np.ones((1, 256))
BAD_IMATRICES = {
    "another model's": ({NAME: (np.ones((1, 64)), [1])}, {}, "has 1 x 64 columns, the model's has 1 x 256"),
    "no counts": ({NAME: (SUMS, [1])}, {"without": [f"{NAME}.counts"]}, "is missing or not F32"),
    "nothing": ({NAME: (SUMS, [1])}, {"without": [f"{NAME}.in_sum2"]}, "holds no importance"),
    "negative": ({NAME: (-SUMS, [1])}, {}, "wanted finite sums"),
    "not finite": ({NAME: (SUMS * np.nan, [1])}, {}, "wanted finite sums"),
    "many counts": ({NAME: (SUMS, [1, 2, 3])}, {}, "256 sums and 3 counts"),
}


@pytest.mark.parametrize("case", BAD_IMATRICES)
def test_a_wrong_importance_matrix_is_named(source, tmp_path, capsys, case):
    entries, how, words = BAD_IMATRICES[case]
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", entries, **how)
    assert words in refused(capsys, source, tmp_path / "out.gguf", "Q4_K_M", "--imatrix", imatrix)
    assert not (tmp_path / "out.gguf").exists()


def test_what_is_no_importance_matrix(source, tmp_path, capsys):
    for data in (b"\x01\0\0\0 something else", b"text of any kind\n", b"\1", b"\0" * 40):
        (tmp_path / "old.dat").write_bytes(data)
        error = refused(capsys, source, tmp_path / "out.gguf", "Q4_0", "--imatrix", tmp_path / "old.dat")
        assert "wanted an importance matrix of llama.cpp, GGUF or .dat" in error
    assert "holds no importance" in refused(capsys, source, tmp_path / "out.gguf", "Q4_0", "--imatrix", source)


# --- anything survives -----------------------------------------------------------------------------------------------

# Relative squared error of normal numbers, with room: steps are uniform within a block, so that it goes with 4^-bits.
BUDGETS = {"Q2_K": 0.2, "Q3_K": 0.04, "Q4_0": 0.02, "Q4_1": 0.02, "Q4_K": 0.01, "IQ4_NL": 0.01, "IQ4_XS": 0.01}
BUDGETS |= {"MXFP4": 0.03, "Q5_0": 0.005, "Q5_1": 0.005, "Q5_K": 0.003, "Q6_K": 0.001, "Q8_0": 1e-4, "BF16": 1e-5}
BUDGETS |= {"F16": 1e-6, "F32": 0, "TQ1_0": 0.9, "TQ2_0": 0.9}


@LIMITED
@given(
    kind=st.sampled_from(sorted(BUDGETS)),
    rows=st.lists(st.integers(1, 5), max_size=3),
    n_blocks=st.integers(1, 4),
    size=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_any_shape_in_any_type_is_written_and_read(tmp_path, kind, rows, n_blocks, size, seed):
    quant_type = by_name(kind)
    shape = (*rows, n_blocks * quant_type.block_size)
    values = np.float32(size) * np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    write_gguf(tmp_path / "in.gguf", {"general.architecture": "llama"}, [("x.weight", F32, shape, values)])
    with open_model(tmp_path / "in.gguf") as model:
        info = model.tensors["x.weight"]
        assert isinstance(info, TensorInfo)
        write_model(model, tmp_path / "out.gguf", [Step(info, quant_type, quant_type)], 0)
    kind_read, found = content(tmp_path / "out.gguf")["x.weight"]
    assert kind_read == kind
    found, values = found.reshape(shape), values.astype(np.float64)
    assert np.square(found - values).sum() <= BUDGETS[kind] * max(np.square(values).sum(), 64 * size**2)
    with open_model(tmp_path / "out.gguf") as model:
        ours = kernels.quants.dequantize(np.ascontiguousarray(model.data("x.weight")), quant_type.number)
        np.testing.assert_array_equal(ours.reshape(shape), found)


def test_every_type_that_can_be_written_has_a_budget():
    assert set(BUDGETS) == {TYPES[number].name for number in kernels.quants.writable()}
    assert {name for name in twins.TYPES if twins.TYPES[name].quantize} <= set(BUDGETS)

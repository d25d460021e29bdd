"""bin/quantize as llama-quantize is used: places, COPY, types by name, other metadata, parts, parts of an imatrix."""

import numpy as np
import pytest

from llamacy.cli import quantize as command
from llamacy.errors import UsageError
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.kernels.reference import model as twin
from tests.cli.test_words import refusal
from tests.model.test_quantize import call, content, refused
from tests.model.tiny import write_dat, write_imatrix, write_llama

CONFIG = twin.Config(n_vocab=97, n_embd=256, n_head=4, n_head_kv=2, n_ff=512, n_layer=2)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in" / "f32.gguf"
    path.parent.mkdir()
    write_llama(path, CONFIG, twin.random_weights(CONFIG, 5, tied=False))
    return path


def types(path):
    """Return {tensor: its type's name} of a file, or of all parts of a split one."""
    with open_model(path) as model:
        return {info.name: info.type.name for info in model.tensors.values()}


@pytest.mark.parametrize(
    ("words", "output", "mix", "threads"),
    [
        ("m/a.gguf q4_0", "m/ggml-model-Q4_0.gguf", "Q4_0", None),
        ("a.gguf Q4_K", "ggml-model-Q4_K_M.gguf", "Q4_K_M", None),
        ("a.gguf 7", "ggml-model-Q8_0.gguf", "Q8_0", None),
        ("a.gguf q4_0 2", "ggml-model-Q4_0.gguf", "Q4_0", 2),
        ("a.gguf q4_0 7", "ggml-model-Q4_0.gguf", "Q4_0", 7),
        ("a.gguf copy", "ggml-model-COPY.gguf", "COPY", None),
        ("a.gguf b.gguf q4_0", "b.gguf", "Q4_0", None),
        ("a.gguf b.gguf copy 3", "b.gguf", "COPY", 3),
        ("a.gguf b.gguf 15 4", "b.gguf", "Q4_K_M", 4),
        ("a.gguf q4_0 q8_0", "q4_0", "Q8_0", None),
        ("a.gguf b.gguf q4_0 4 -t 2", "b.gguf", "Q4_0", 2),
    ],
)
def test_places(words, output, mix, threads):
    args = command.build_parser().parse_args(words.split())
    command.settle_places(args)
    assert (args.output, args.mix, args.threads) == (output, mix, threads)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a.gguf", "the type is missing: wanted IN [OUT] TYPE [THREADS]"),
        ("a.gguf b.gguf", "the type is missing: wanted IN [OUT] TYPE [THREADS]"),
        ("a.gguf b.gguf q9", "type 'q9' is unknown"),
        ("a.gguf q4_0 3 4", "'4' is one word too many"),
        ("a.gguf b.gguf q4_0 none", "THREADS: wanted a whole number from 1 to 1024, got 'none'"),
    ],
)
def test_wrong_places(words, message):
    args = command.build_parser().parse_args(words.split())
    with pytest.raises(UsageError) as caught:
        command.settle_places(args)
    assert message in str(caught.value)


def test_the_output_stands_beside_the_input(source, capsys):
    code, _, err = call(capsys, source, "q8_0")
    made = source.parent / "ggml-model-Q8_0.gguf"
    assert code == 0 and str(made) in err and types(made)["blk.0.attn_q.weight"] == "Q8_0"


def test_copy_changes_no_tensor(source, tmp_path, capsys):
    call(capsys, source, tmp_path / "q.gguf", "Q4_0")
    assert (
        call(capsys, tmp_path / "q.gguf", tmp_path / "copy.gguf", "COPY", "--override-kv", "general.name=str:new")[0]
        == 0
    )
    with open_model(tmp_path / "q.gguf") as before, open_model(tmp_path / "copy.gguf") as after:
        assert after.metadata.pop("general.name") == "new" and before.metadata.pop("general.name")
        assert repr(before.metadata) == repr(after.metadata) and before.value_types == after.value_types
        for name in before.tensors:
            np.testing.assert_array_equal(before.data(name), after.data(name))
    for words in (["--pure"], ["--tensor-type", "attn_q=q8_0"], ["--output-tensor-type", "q8_0"]):
        assert "COPY changes no tensor" in refused(capsys, source, tmp_path / "x.gguf", "copy", *words, code=2)


def test_types_by_name(source, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    (tmp_path / "types.txt").write_text("ffn_gate=q5_1  ffn=q5_0\n")
    words = [
        "--tensor-type",
        r"BLK\.1\.attn_v=q8_0",
        "--tensor-type",
        "attn_[qv]=f16",
        "--tensor-type-file",
        tmp_path / "types.txt",
    ]
    assert call(capsys, source, out, "Q4_K_M", *words, "--token-embedding-type", "q6_k")[0] == 0
    plain = tmp_path / "plain.gguf"
    call(capsys, source, plain, "Q4_K_M")
    found, before = types(out), types(plain)
    wanted = before | {"token_embd.weight": "Q6_K"}
    for i in range(2):
        wanted |= {f"blk.{i}.attn_q.weight": "F16", f"blk.{i}.attn_v.weight": ("F16", "Q8_0")[i]}
        wanted |= {f"blk.{i}.ffn_gate.weight": "Q5_1"} | {
            f"blk.{i}.ffn_{name}.weight": "Q5_0" for name in ("up", "down")
        }
    assert found == wanted
    # norms keep their type whatever is asked, and --pure is for what nobody names
    assert call(capsys, source, out, "Q4_0", "--pure", "--tensor-type", "attn=q8_0")[0] == 0
    kinds = types(out)
    assert kinds["blk.0.attn_norm.weight"] == "F32" and kinds["blk.0.attn_k.weight"] == "Q8_0"
    assert kinds["output.weight"] == kinds["blk.0.ffn_up.weight"] == "Q4_0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tensor-type", "attn_z=q8_0"], "--tensor-type attn_z: no matrix that is quantised has that in its name"),
        (["--tensor-type", "attn_norm=q8_0"], "--tensor-type attn_norm: no matrix that is quantised"),
        (["--tensor-type", "attn_q=q9"], "type 'q9' cannot be written"),
        (["--include-weights", "a"], "need an importance matrix: --imatrix FILE"),
    ],
)
def test_types_that_mean_nothing(source, tmp_path, capsys, words, message):
    assert message in refused(capsys, source, tmp_path / "out.gguf", "Q4_0", *words, code=2)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("word", ["attn_q", "=q8_0", "attn_q=", "attn_(=q8_0"])
def test_types_that_are_none(word, capsys):
    assert "argument --tensor-type: " in refusal(command.build_parser(), ["a", "b", "--tensor-type", word], capsys)


def test_other_metadata(source, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    line = "llama.context_length=int:4096,tokenizer.ggml.add_bos_token=bool:false"
    words = ["--override-kv", line, "--override-kv", "a.b=str:x,y", "--override-kv", "llama.rope.freq_base=float:5e5"]
    assert call(capsys, source, out, "Q8_0", *words)[0] == 0
    with open_model(out) as model:
        found = [model.metadata[key] for key in ("llama.context_length", "tokenizer.ggml.add_bos_token", "a.b")]
        assert found == [4096, False, "x,y"] and model.metadata["llama.rope.freq_base"] == 5e5


def split(source, folder, sizes):
    """Write the model again in parts of so many tensors; return the first one's path."""
    with open_model(source) as model:
        tensors = [(t.name, t.type, t.shape, model.data(t.name)) for t in model.tensors.values()]
        bounds = np.cumsum([0, *sizes, len(tensors) - sum(sizes)])
        count = len(bounds) - 1
        value_types = model.value_types | {"split.no": "u16", "split.count": "u16"}
        for i in range(count):
            about = {"split.no": i, "split.count": count, "split.tensors.count": len(tensors)}
            path = folder / f"m-{i + 1:05}-of-{count:05}.gguf"
            write_gguf(
                path, (model.metadata if i == 0 else {}) | about, tensors[bounds[i] : bounds[i + 1]], value_types
            )
    return folder / f"m-00001-of-{count:05}.gguf"


def test_a_split_model_keeps_its_parts(source, tmp_path, capsys):
    first = split(source, tmp_path, [7, 3])
    whole = tmp_path / "whole.gguf"
    assert call(capsys, first, whole, "Q4_K_M")[0] == 0
    code, _, err = call(capsys, first, tmp_path / "parts.gguf", "Q4_K_M", "--keep-split")
    made = [tmp_path / f"parts-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert code == 0 and str(made[0]) in err and all(path.exists() for path in made)
    assert [len(content(path)) for path in made] == [7, 3, len(content(whole)) - 10]
    with open_model(made[1]) as parts, open_model(whole) as model:
        assert list(parts.tensors) == list(model.tensors)
        assert repr(parts.metadata) == repr(model.metadata)
        for name in model.tensors:
            np.testing.assert_array_equal(parts.data(name), model.data(name))
    # onto itself, and a model of one file
    stem = tmp_path / "m.gguf"
    assert "is the input itself" in refused(capsys, first, stem, "Q4_0", "--keep-split", code=2)
    call(capsys, source, tmp_path / "one", "Q8_0", "--keep-split")
    assert types(tmp_path / "one-00001-of-00001.gguf") == {
        **types(source),
        **types(tmp_path / "one-00001-of-00001.gguf"),
    }


def test_parts_are_written_all_or_none(source, tmp_path, capsys, monkeypatch):
    from llamacy.formats import gguf_split

    first = split(source, tmp_path, [7])
    assert call(capsys, first, tmp_path / "p.gguf", "Q8_0", "--keep-split")[0] == 0
    before = [(tmp_path / f"p-0000{i}-of-00002.gguf").read_bytes() for i in (1, 2)]
    write = gguf_split.write_gguf_to

    def failing(file, path, *more):
        if "00002-of" in path:
            raise OSError(28, "No space left on device")
        write(file, path, *more)

    monkeypatch.setattr(gguf_split, "write_gguf_to", failing)
    assert "No space left" in refused(capsys, first, tmp_path / "p.gguf", "Q4_0", "--keep-split")
    assert [(tmp_path / f"p-0000{i}-of-00002.gguf").read_bytes() for i in (1, 2)] == before


def test_parts_of_an_importance_matrix(source, tmp_path, capsys):
    means = np.random.default_rng(3).lognormal(0, 2, 256).astype(np.float32)
    names = ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]
    new = write_imatrix(tmp_path / "i.gguf", {name: (means[None] * 4, [4]) for name in names})
    old = write_dat(tmp_path / "i.dat", dict.fromkeys(names, (4, means * 4)), "words.txt", 2)
    made = {}
    some = {"q": ["--include-weights", "attn_q"], "no q": ["--exclude-weights", "attn_q"]}
    runs = {"none": [], "new": ["--imatrix", new], "old": ["--imatrix", old]}
    for label, words in (runs | {name: ["--imatrix", old, *words] for name, words in some.items()}).items():
        out = tmp_path / f"{label}.gguf"
        assert call(capsys, source, out, "Q4_1", *words)[0] == 0
        with open_model(out) as model:
            made[label] = [np.array(model.data(name)) for name in names]
            about = model.metadata
        if label == "old":
            found = [about[f"quantize.imatrix.{key}"] for key in ("file", "dataset", "entries_count", "chunks_count")]
            assert found == [str(old), "words.txt", 2, 2]

    def same(a, b):
        return [bool((x == y).all()) for x, y in zip(made[a], made[b], strict=True)]

    assert same("new", "old") == [True, True] and same("none", "old") == [False, False]
    assert same("q", "old") == [True, False] and same("no q", "old") == [False, True]
    assert same("q", "none") == [False, True]
    both = ["--imatrix", old, "--include-weights", "a", "--exclude-weights", "b"]
    assert "both given: name one" in refused(capsys, source, tmp_path / "x", "Q4_0", *both, code=2)
    assert "no entry has 'z' in its name" in refused(
        capsys, source, tmp_path / "x", "Q4_0", "--imatrix", old, "--include-weights", "z"
    )


def test_a_dry_run_needs_no_output(source, capsys):
    code, out, _ = call(capsys, "--dry-run", source, "Q4_K_M", "--tensor-type", "attn_q=q8_0")
    assert code == 0 and "F32 -> Q8_0" in out and not (source.parent / "ggml-model-Q4_K_M.gguf").exists()

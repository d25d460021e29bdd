"""Divergence from a reference against NumPy over whole rows of logits; its files, whole, damaged and foreign."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest

import llamacy
from llamacy.cli import evaluate, perplexity
from llamacy.cli.run import run
from llamacy.errors import LlamacyError
from llamacy.evaluation.divergence import Compared, Divergence
from llamacy.evaluation.logits_file import LogitsFile, LogitsWriter
from llamacy.evaluation.reference import Reference, Writer, tokens_digest
from llamacy.kernels.reference import model as twin
from tests.model import tiny
from tests.server.test_server_command import ADAPTER, MODEL, ROOT

TEXT = str(ROOT / "tests" / "data" / "golden" / "gpl3.txt")
N_CTX, N_WINDOWS = 32, 3
HEADER = {"n_ctx": 8, "n_vocab": 0, "n_windows": 1, "model": "m", "digest": "", "vocabulary": "", "tokens": ""}


def windows_logits(adapters=()):
    """Return (log-probabilities f64 (rows, n_vocab), targets) of the scored halves, by whole windows at once."""
    with llamacy.load(MODEL, adapters=adapters, threads=1) as model:
        ids = model.tokenizer.encode(Path(TEXT).read_text(encoding="utf-8"), parse_special=False)
        found, targets = [], []
        for i in range(N_WINDOWS):
            window = ids[i * N_CTX : (i + 1) * N_CTX]
            logits = model.logits([model.tokenizer.bos_id, *window[1:]]).astype(np.float64)[N_CTX // 2 : N_CTX - 1]
            logits -= logits.max(axis=1, keepdims=True)
            found.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
            targets.append(window[N_CTX // 2 + 1 :])
    return np.concatenate(found), np.concatenate(targets)


@pytest.fixture(scope="module")
def exact():
    """What NumPy says of the model with its adapter beside the model alone: (P, Q, targets)."""
    base, targets = windows_logits()
    return base, windows_logits([ADAPTER])[0], targets


@pytest.fixture(scope="module")
def facts(exact):
    base, own, targets = exact
    kl = (np.exp(base) * (base - own)).sum(axis=1)
    rows = np.arange(len(targets))
    dp = np.exp(own[rows, targets]) - np.exp(base[rows, targets])
    return {
        "perplexity": np.exp(-own[rows, targets].mean()), "kl": kl.mean(), "kl_median": np.median(kl),
        "kl_999": np.quantile(kl, 0.999), "kl_max": kl.max(), "rms_dp": np.sqrt((dp**2).mean()),
        "same_top": (base.argmax(axis=1) == own.argmax(axis=1)).mean(), "kl_stderr": kl.std() / np.sqrt(len(kl) - 1),
        "dp": dp.mean(), "perplexity_stderr": np.exp(-own[rows, targets].mean())
        * own[rows, targets].std() / np.sqrt(len(kl) - 1),
    }  # fmt: skip


def words(*more):
    return ["-m", str(MODEL), "-f", TEXT, "-c", str(N_CTX), "--chunks", str(N_WINDOWS), "-t", "1", *map(str, more)]


def test_the_table_says_what_numpy_does(facts, capsys):
    assert facts["kl"] > 0.01
    assert run(evaluate.main, words("--lora", ADAPTER, "--json")) == 0
    alone, adapted = json.loads(capsys.readouterr().out)
    assert "kl" not in alone and alone["n_tokens"] == adapted["n_tokens"] == N_WINDOWS * (N_CTX // 2 - 1)
    for name in ("perplexity", "same_top", "rms_dp", "perplexity_stderr"):
        assert adapted[name] == pytest.approx(facts[name], rel=1e-4), name
    for name in ("kl", "kl_median", "kl_999", "kl_max", "kl_stderr"):  # with a sample of the unlikely words
        assert adapted[name] == pytest.approx(facts[name], rel=0.05), name


def test_llama_cpp_s_way(facts, tmp_path, capsys):
    base = tmp_path / "base.kld"
    assert run(perplexity.main, words("--kl-divergence-base", base)) == 0
    own = "-m", str(MODEL), "--lora", str(ADAPTER), "-t", "1"
    line = [*own, "--kl-divergence", "--kl-divergence-base", str(base)]
    capsys.readouterr()
    assert run(perplexity.main, line) == 0
    out, err = capsys.readouterr()
    assert f"Mean    KLD: {facts['kl']:10.6f}"[:-3] in out and f"Same top p: {100 * facts['same_top']:6.3f} ±" in out
    assert len(err.splitlines()) == 1 + N_WINDOWS and "KL Divergence" in err
    assert run(perplexity.main, [*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("perplexity", "kl", "kl_stderr", "rms_dp", "dp", "same_top"):
        assert found[name] == pytest.approx(facts[name], rel=5e-3), name
    assert found["kl_quantiles"]["50%"] == pytest.approx(facts["kl_median"], rel=1e-3)
    # `evaluate` reads it too
    assert run(evaluate.main, [*own[:2], *own[2:], "--reference", str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["kl"] == pytest.approx(facts["kl"], rel=1e-3)


def test_llama_cpp_s_file_is_as_its_source_says(tmp_path, exact):
    """Each position by hand: step, lowest, then whole steps above it, 16 below the highest at most."""
    base = tmp_path / "base.kld"
    assert run(perplexity.main, words("--save-all-logits", base)) == 0
    content, (logp, _, _) = base.read_bytes(), exact
    n_vocab = logp.shape[1]
    assert content[:8] == b"_logits_" and struct.unpack("<Iii", content[8:20]) == (N_CTX, n_vocab, N_WINDOWS)
    at = 20 + 4 * N_CTX * N_WINDOWS
    assert len(content) == at + len(logp) * (8 + 2 * (n_vocab + n_vocab % 2))
    for row in logp:
        step, lowest = struct.unpack_from("<ff", content, at)
        codes = np.frombuffer(content, "<u2", n_vocab, at + 8)
        assert lowest == pytest.approx(max(row.min(), row.max() - 16), abs=1e-4)
        assert np.abs(lowest + step * codes - np.maximum(row, lowest)).max() < 2e-4
        at += 8 + 2 * (n_vocab + n_vocab % 2)


def rows_of(rng, n, n_vocab, spread):
    return (rng.normal(size=(n, n_vocab)) * spread).astype(np.float32)


@pytest.mark.parametrize(("n_vocab", "spread"), [(7, 1), (2, 20), (3000, 0.5), (3000, 4), (1, 1)])
def test_odd_distributions(n_vocab, spread):
    """Small vocabularies, flat and steep rows, in both files: mean and ends of KL as NumPy has them."""
    rng = np.random.default_rng(n_vocab)
    base, own = rows_of(rng, 64, n_vocab, spread), rows_of(rng, 64, n_vocab, spread)
    own = base + own / 4
    targets = rng.integers(0, n_vocab, 64)
    header = HEADER | {"n_vocab": n_vocab, "n_ctx": 130}
    p, q = (rows.astype(np.float64) for rows in (base, own))
    p -= np.log(np.exp(p).sum(axis=1, keepdims=True))
    q -= np.log(np.exp(q).sum(axis=1, keepdims=True))
    wanted = (np.exp(p) * (p - q)).sum(axis=1)
    tokens = np.zeros(130, np.int32)
    header["tokens"] = tokens_digest(tokens)
    for writer_kind, reader_kind, within in ((Writer, Reference, 0.06), (LogitsWriter, LogitsFile, 0.01)):
        file = io.BytesIO()
        writer = writer_kind(file, header, tokens)
        writer.add(base.copy(), targets)
        getattr(writer, "close", lambda: None)()
        reader = reader_kind(file, "r")
        reader.rewind()
        found = reader.compare(own.copy(), targets)
        assert found.kl.mean() == pytest.approx(wanted.mean(), rel=within, abs=1e-4), reader_kind
        assert (found.kl > -1e-4).all() and (found.same_top == (p.argmax(axis=1) == q.argmax(axis=1))).all()
        assert found.nll == pytest.approx(-q[np.arange(64), targets], abs=1e-4)
        reader.rewind()
        assert np.abs(reader.compare(base.copy(), targets).kl).max() < 1e-3


def test_statistics_by_hand():
    found = Divergence()
    nll, base = np.array([1.0, 2.0, 4.0]), np.array([1.5, 1.0, 4.0])
    found.add(Compared(np.array([0.1, 0.2]), nll[:2], base[:2], np.array([True, False])))
    found.add(Compared(np.array([0.6]), nll[2:], base[2:], np.array([True])))
    assert found.kl == pytest.approx((0.3, np.std([0.1, 0.2, 0.6]) / np.sqrt(2)))
    assert found.log_ratio == pytest.approx((np.mean(nll - base), np.std(nll - base) / np.sqrt(2)))
    assert found.correlation == pytest.approx(np.corrcoef(nll, base)[0, 1])
    assert found.difference.value == pytest.approx(np.exp(nll.mean()) - np.exp(base.mean()))
    assert found.same_top == pytest.approx((2 / 3, np.sqrt(2 / 9 / 2)))
    assert found.kl_quantiles((0.5, 0.75)) == pytest.approx([0.2, 0.4], rel=1e-6)


# ---- files that do not fit ----


@pytest.fixture
def saved(tmp_path, capsys):
    path = tmp_path / "run.ref"
    assert run(evaluate.main, words("--save-reference", path)) == 0
    capsys.readouterr()
    return path


def refused(capsys, *line):
    assert run(evaluate.main, [*map(str, line)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


def test_a_saved_run_gives_the_same_numbers(saved, capsys):
    assert run(evaluate.main, words("--lora", ADAPTER, "--json")) == 0
    within = json.loads(capsys.readouterr().out)[1]
    assert run(evaluate.main, ["-m", str(MODEL), "--lora", str(ADAPTER), "--reference", str(saved), "--json"]) == 0
    alone, later = json.loads(capsys.readouterr().out)
    assert {**later, "reference": ""} == {**within, "reference": ""}
    assert abs(alone["kl"]) < 1e-6 and alone["same_top"] == 1
    assert saved.stat().st_size < 2200 * within["n_tokens"]


def test_damage_is_found(saved, capsys):
    content = bytearray(saved.read_bytes())
    rng = np.random.default_rng(0)
    places = [9, 30, len(content) - 1, *rng.integers(0, len(content), 12)]
    damaged = [content[:cut] for cut in (0, 7, 11, 40, 300, len(content) - 1)]
    for place in places:
        damaged.append(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for each in damaged:
        saved.write_bytes(each)
        assert "run.ref" in refused(capsys, "-m", MODEL, "--reference", saved)


def test_what_cannot_be_compared(saved, tmp_path, capsys):
    other = tmp_path / "other.gguf"
    tiny.write_llama(other, tiny.CONFIG, twin.random_weights(tiny.CONFIG, 1))
    assert "cannot be compared" in refused(capsys, "-m", other, "--reference", saved)
    text = tmp_path / "t.txt"
    text.write_text("another text " * 100)
    assert "made of another text" in refused(capsys, "-m", MODEL, "--reference", saved, "-f", text)
    assert "use -c 32" in refused(capsys, "-m", MODEL, "--reference", saved, "-f", TEXT, "-c", 64)
    with pytest.raises(LlamacyError, match="no reference run"):
        Reference(io.BytesIO(b"GGUF" + bytes(99)), "x")
    cut = tmp_path / "cut.kld"
    cut.write_bytes(b"_logits_" + struct.pack("<Iii", 32, 2000, 1 << 30) + bytes(999))
    assert "cut off" in refused(capsys, "-m", MODEL, "--reference", cut)


def test_another_vocabulary_in_one_table_has_no_divergence(tmp_path, capsys):
    other = tmp_path / "other.gguf"
    tiny.write_llama(other, tiny.CONFIG, twin.random_weights(tiny.CONFIG, 1))
    assert run(evaluate.main, words("-m", other, "--json")) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert "kl" not in rows[1] and rows[1]["perplexity"] > 1 and "another vocabulary" in err

"""The perplexity protocol, over a session that only counts: which tokens are read, which scored, and the sums."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from bench.make_model import SHAPES, metadata_of, tensors_of
from llamacy.cli import perplexity
from llamacy.cli.run import run
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.types import by_name
from llamacy.generate import perplexity as protocol

N_VOCAB = 50


class CountingSession:
    """Gives token t the logit t / 10 everywhere, and remembers what it was asked."""

    max_batch = 8

    def __init__(self):
        self.read, self.scored = [], []

    def step(self, tokens, positions, slots, logits_at):
        assert len(tokens) == len(positions) == len(slots) <= self.max_batch
        assert set(slots) == {0}
        self.read += zip(positions, tokens, strict=True)
        self.scored += [positions[i] for i in logits_at]
        return np.tile(np.arange(N_VOCAB, dtype=np.float32) / 10, (len(logits_at), 1))


@pytest.mark.parametrize("n_ctx", [4, 5, 16, 33])
@pytest.mark.parametrize("bos", [None, 1])
def test_the_second_half_of_a_window_is_scored(n_ctx, bos):
    window = list(np.random.default_rng(n_ctx).integers(2, N_VOCAB, n_ctx))
    session, score = CountingSession(), protocol.Score()
    protocol.score_window(session, window, bos, N_VOCAB, score)
    inputs = window[:-1] if bos is None else [bos, *window[1:-1]]
    assert session.read == list(enumerate(inputs))
    assert session.scored == list(range(n_ctx // 2, n_ctx - 1))
    logits = np.arange(N_VOCAB) / 10
    expected = np.log(np.exp(logits).sum()) - logits[window[n_ctx // 2 + 1 :]]
    assert score.n_tokens == len(expected)
    assert score.perplexity == pytest.approx(math.exp(expected.mean()), rel=1e-6)
    deviation = expected.std() / math.sqrt(max(len(expected) - 1, 1))
    assert score.error == pytest.approx(math.exp(expected.mean()) * deviation, rel=1e-4, abs=1e-6)


def test_only_whole_windows_count():
    tokenizer = SimpleNamespace(bos_id=1, add_bos=True)
    config = SimpleNamespace(n_vocab=N_VOCAB)
    model = SimpleNamespace(tokenizer=tokenizer, config=config, new_session=lambda n_slots, n_ctx: CountingSession())
    seen = []
    score = protocol.measure(model, list(range(2, 45)), 20, lambda i, score: seen.append((i, score.n_tokens)))
    assert seen == [(1, 9), (2, 18)]
    assert score.n_tokens == 18


def test_cross_entropy_of_large_logits():
    logits = np.array([[1e4, 1e4 - 1, -1e4], [0, 0, 0]], np.float32)
    expected = [1 + math.log1p(math.exp(-1)), math.log(3)]
    assert protocol.cross_entropy(logits, np.array([1, 2])) == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    assert "tiny" in SHAPES
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(path, metadata_of("tiny"), tensors_of("tiny", by_name("Q8_0"), np.random.default_rng(1)))
    return str(path)


def test_the_command_prints_its_line_or_json(tiny, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("some words, " * 40)
    arguments = ["-m", tiny, "-f", str(text), "-c", "64", "--chunks", "2", "-t", "1"]
    assert run(perplexity.main, arguments) == 0
    line = capsys.readouterr().out
    assert run(perplexity.main, [*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert line == f"PPL = {result['ppl']:.4f} +/- {result['stderr']:.4f} (62 tokens)\n"
    assert (result["tokens"], result["windows"]) == (62, 2)
    # Random weights know nothing: every one of 32000 words is about as likely.
    assert 25000 < result["ppl"] < 40000


@pytest.mark.parametrize(
    ("content", "said"), [(b"short", "window of 512"), (b"\xff\xfe\x00", "not UTF-8"), (b"", "0 tokens")]
)
def test_texts_that_cannot_be_measured(content, said, tiny, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    assert run(perplexity.main, ["-m", tiny, "-f", str(text)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (said if content else "tokens") in error

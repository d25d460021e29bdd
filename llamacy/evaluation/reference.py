"""A reference run in a small file: of each token's distribution the likeliest words, and a sample of all others.

    8 bytes magic, u32 length, JSON header | tokens i32 (n_windows * n_ctx,) | positions | u32 CRC-32 of all before it
    position: u32 n, u32 m, f32 ln P(token), f32 the sum of all but the n likeliest; n + m words: u32 ids, f32 ln P

What is compared is KL(P||Q) = sum P f(Q / P) with f(x) = x - 1 - ln x, which is sum P ln(P / Q), as both sum to 1. No
term is negative: of the n likeliest words each is taken, of all others m that were drawn by their probability stand for
their sum. Summed up as one word alone they would hide what happens among them, 10 % of a quantised model's divergence
with n = 256. So a token takes 2 KB where the whole vocabulary takes 98 (SmolLM2) to 524 KB (Gemma).
"""

import contextlib
import json
import os
import zlib
from hashlib import blake2b

import numpy as np

from llamacy.errors import LlamacyError, shown
from llamacy.evaluation.divergence import Compared, log_norms
from llamacy.formats.atomic import atomic_write

MAGIC = b"LLMYKLD1"
# The likeliest words are kept until they have so much of the probability, at most so many; then so many are drawn.
KEPT, MOST, DRAWN = 0.999, 224, 32
MOST_DRAWN = 1 << 16
BLOCK = 1 << 20
HEADER = {"n_ctx": int, "n_vocab": int, "n_windows": int, "model": str, "digest": str, "vocabulary": str, "tokens": str}


def scored(n_ctx):
    """Return how many tokens of a window are scored: its second half but for the first of it."""
    return n_ctx - 1 - n_ctx // 2


def tokens_digest(tokens):
    """Return 16 hexadecimal digits that tell token ids from others."""
    return blake2b(np.asarray(tokens, "<i4").tobytes(), digest_size=8).hexdigest()


def vocabulary_digest(tokenizer, n_vocab):
    """Return 16 hexadecimal digits that tell a vocabulary from others: its tokens' bytes, in order."""
    found = blake2b(digest_size=8)
    for token in range(n_vocab):
        text = tokenizer.token_bytes(token)
        found.update(len(text).to_bytes(4, "little") + text)
    return found.hexdigest()


def header_of(model, tokens, n_ctx):
    """Return a reference's header: what was run on what. model: of llamacy.model; tokens: whole windows of n_ctx."""
    return {
        "n_ctx": n_ctx,
        "n_vocab": model.config.n_vocab,
        "n_windows": len(tokens) // n_ctx,
        "model": model.name,
        "digest": model.file.digest(),
        "vocabulary": vocabulary_digest(model.tokenizer, model.config.n_vocab),
        "tokens": tokens_digest(tokens),
    }


class Writer:
    """Writes a reference into a binary file, from its start: `add` for the parts of all windows, then `close`."""

    def __init__(self, file, header, tokens):
        self._file, self._sum = file, 0
        text = json.dumps(header).encode()
        self._write(MAGIC + np.uint32(len(text)).astype("<u4").tobytes() + text)
        self._write(np.asarray(tokens, "<i4").tobytes())

    def _write(self, content):
        self._file.write(content)
        self._sum = zlib.crc32(content, self._sum)

    def add(self, logits, targets):
        """Keep some positions: logits f32 (n, n_vocab), targets the n tokens that follow."""
        for row, norm, target in zip(logits, log_norms(logits), targets, strict=True):
            ids = _likeliest(row, norm)
            drawn, rest = _drawn(row, norm, ids)
            words = np.concatenate([ids, drawn])
            head = np.array([row[target] - norm, rest], "<f4")
            self._write(np.array([len(ids), len(drawn)], "<u4").tobytes() + head.tobytes())
            self._write(words.astype("<u4").tobytes() + (row[words].astype(np.float64) - norm).astype("<f4").tobytes())

    def close(self):
        """Write the sum of all."""
        self._file.write(np.array([self._sum], "<u4").tobytes())


def _likeliest(row, norm):
    """Return the ids of the words to keep, likeliest first; of equals the first in the vocabulary comes first."""
    most = min(MOST, len(row))
    ids = np.sort(np.argpartition(-row, most - 1)[:most])
    ids = ids[np.argsort(-row[ids], kind="stable")]
    ids = ids[: np.searchsorted(np.cumsum(np.exp(row[ids] - norm)), KEPT) + 1]
    best = int(row.argmax())
    return ids if ids[0] == best else np.concatenate([[best], ids[ids != best]])


def _drawn(row, norm, ids):
    """Return (words drawn from all but `ids`, the probability of all of those).

    Drawn are those at which the running sum passes the middles of DRAWN equal parts: a likely word may come twice.
    """
    rest = np.exp(row - np.float32(norm))
    rest[ids] = 0
    sums = np.cumsum(rest, dtype=np.float64)
    if not sums[-1]:
        return ids[:0], 0.0
    return np.searchsorted(sums, (np.arange(DRAWN) + 0.5) / DRAWN * sums[-1]), sums[-1]


@contextlib.contextmanager
def write_reference(path, header, tokens):
    """Give a Writer of the file at `path`, which appears whole when the block ends well, or not at all."""
    with atomic_write(path) as file:
        writer = Writer(file, header, tokens)
        yield writer
        writer.close()


class Rows:
    """A file with something for each position of windows, of a model with `n_vocab` words."""

    def rewind(self):
        """Begin again with the first window."""
        self._file.seek(self._begin)

    def check_model(self, model):
        """Raise LlamacyError where a model has a vocabulary of another size."""
        if model.config.n_vocab != self.n_vocab:
            words = f"a vocabulary of {self.n_vocab} words, {model.path} one of {model.config.n_vocab}"
            raise LlamacyError(f"{self.path}: {words}: they cannot be compared")


class Reference(Rows):
    """A reference run that is read: n_ctx, n_vocab, n_windows, model (its name), tokens i32 (n_windows * n_ctx,).

    `compare(logits, targets)` for the parts of the windows from the first on; `rewind` begins again. LlamacyError where
    a file is no reference, cut off or changed: all of it is looked at first.
    """

    def __init__(self, file, path):
        self._file, self.path = file, path
        size = file.seek(0, os.SEEK_END)
        header = self._header(size)
        self.n_ctx, self.n_vocab, self.n_windows = (header[name] for name in ("n_ctx", "n_vocab", "n_windows"))
        self.model, self.digest, self.vocabulary = header["model"], header["digest"], header["vocabulary"]
        n_tokens = self.n_ctx * self.n_windows
        if self.n_ctx < 4 or self.n_windows < 1 or self.n_vocab < 1 or 4 * n_tokens > size:
            raise self._error("its sizes cannot be")
        self.tokens = np.frombuffer(self._read(4 * n_tokens), "<i4")
        self._begin = file.tell()
        self._check(size)
        if (
            tokens_digest(self.tokens) != header["tokens"]
            or not 0 <= self.tokens.min() <= self.tokens.max() < self.n_vocab
        ):
            raise self._error("its tokens are not those that its header tells of")

    def _error(self, what):
        return LlamacyError(f"{self.path}: {what}; make the reference again, with --save-reference")

    def _read(self, n):
        content = self._file.read(n)
        if len(content) != n:
            raise self._error("the file is cut off")
        return content

    def _header(self, size):
        self._file.seek(0)
        if self._file.read(len(MAGIC)) != MAGIC:
            raise LlamacyError(f"{self.path}: no reference run; wanted what --save-reference or llama.cpp wrote")
        length = int(np.frombuffer(self._read(4), "<u4")[0])
        if length > min(size, 1 << 16):
            raise self._error(f"a header of {length} bytes")
        try:
            header = json.loads(self._read(length))
        except ValueError:
            header = None
        good = isinstance(header, dict) and all(type(header.get(name)) is kind for name, kind in HEADER.items())
        if not good or any(len(header[name]) > 1000 for name, kind in HEADER.items() if kind is str):
            raise self._error("its header is damaged")
        return header

    def _check(self, size):
        """Compare the sum at the end with that of all before it."""
        self._file.seek(0)
        found, left = 0, size - 4
        while left > 0:
            content = self._read(min(left, BLOCK))
            found, left = zlib.crc32(content, found), left - len(content)
        if int(np.frombuffer(self._read(4), "<u4")[0]) != found:
            raise self._error("the file is cut off or was changed")
        self._file.seek(self._begin)

    def check_model(self, model):
        """Raise LlamacyError where a model has another vocabulary, so that probabilities cannot be compared."""
        super().check_model(model)
        if vocabulary_digest(model.tokenizer, self.n_vocab) != self.vocabulary:
            raise LlamacyError(f"{self.path}: made with {shown(self.model)}, whose words are not those of {model.path}")

    def compare(self, logits, targets):
        """Return the Compared of the next positions: logits f32 (n, n_vocab) of the model, targets the n tokens."""
        norms, rows = log_norms(logits), []
        for row, norm, target in zip(logits, norms, targets, strict=True):
            n, m = (int(value) for value in np.frombuffer(self._read(8), "<u4"))
            if not (1 <= n <= self.n_vocab and m <= MOST_DRAWN):
                raise self._error("its positions are damaged")
            base_logp, rest = np.frombuffer(self._read(8), "<f4").astype(np.float64)
            ids = np.frombuffer(self._read(4 * (n + m)), "<u4")
            if ids.max() >= self.n_vocab:
                raise self._error("its positions are damaged")
            logp = np.frombuffer(self._read(4 * (n + m)), "<f4").astype(np.float64)
            log_ratio = row[ids] - norm - logp
            terms = np.expm1(log_ratio) - log_ratio
            kl = float(np.dot(np.exp(logp[:n]), terms[:n]))
            if m:
                kl += rest * float(terms[n:].mean())
            rows.append((kl, norm - row[target], -base_logp, int(row.argmax()) == int(ids[0])))
        kl, nll, base, same = zip(*rows, strict=True)
        return Compared(np.array(kl), np.array(nll, np.float64), np.array(base), np.array(same))

    def close(self):
        """Close the file."""
        self._file.close()

"""Text to token ids and back, from a model file's `tokenizer.ggml.*` metadata.

Three kinds of vocabulary, one row each in MODELS: `gpt2` (byte-level BPE), `llama` (SentencePiece: merge by score, byte
fallback) and `gemma4` (BPE on text with U+2581 for spaces). The compiled work is in pyx/splitter.pyx and bpe.pyx.
"""

import warnings
from functools import cached_property
from typing import NamedTuple

import numpy as np

from llamacy.errors import LlamacyError, shown
from llamacy.kernels.text import bpe
from llamacy.text.pretokenizers import pretokenizer, splitter
from llamacy.text.stream import StreamDecoder

# Token types in GGUF files (tokenizer.ggml.token_type) -> what they mean to the vocabulary; others are normal.
KINDS = {2: bpe.CONTROL, 3: bpe.CONTROL, 4: bpe.USER_DEFINED, 5: bpe.UNUSED}


class Model(NamedTuple):
    """What `tokenizer.ggml.model` implies where the file does not say otherwise."""

    byte_level: bool
    by_merges: bool
    add_bos: bool
    space_prefix: bool
    bos_id: int | None = None
    eos_id: int | None = None
    unknown_id: int | None = None


MODELS = {
    "gpt2": Model(byte_level=True, by_merges=True, add_bos=False, space_prefix=False),
    "llama": Model(False, by_merges=False, add_bos=True, space_prefix=True, bos_id=1, eos_id=2, unknown_id=0),
    "gemma4": Model(byte_level=False, by_merges=True, add_bos=True, space_prefix=False),
}

# Texts that end a generation whatever the file says of them (llama.cpp's list), and the metadata that name such tokens.
END_TEXTS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
    *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~["),
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>"),
    *("<REPO>", "<reponame>", "<|file_sep|>"),
)
NO_TOKEN = (-1, 0xFFFFFFFF)  # what some files say where there is none
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id")
# gpt-oss and solar-open write <|end|> inside an answer; Gemma 4 has </s> as ordinary text.
NOT_ENDS = (
    ("<|end|>", ("<|return|>", "<|call|>")),
    ("<|end|>", ("<|calls|>", "<|flush|>")),
    ("</s>", ("<|tool_response>",)),
)
# Phi-3's tokenizer drops white space behind its special tokens, but not behind these.
PHI3_KEEPS = ("<unk>", "<s>", "<|endoftext|>")


def _is_strings(value):
    return hasattr(value, "buffer") or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def _is_numbers(value):
    array = np.asarray(value)
    return array.ndim == 1 and array.dtype.kind in "iuf"


# What the metadata must be, by the key's last word: (test, name).
WANTED = {
    "tokens": (_is_strings, "an array of strings"),
    "merges": (_is_strings, "an array of strings"),
    "scores": (_is_numbers, "an array of numbers"),
    "type": (_is_numbers, "an array of numbers"),
    "id": (lambda value: isinstance(value, int), "a whole number"),
    "model": (lambda value: isinstance(value, str), "text"),
    "pre": (lambda value: isinstance(value, str), "text"),
    "prefix": (lambda value: isinstance(value, int), "true or false"),
    "token": (lambda value: isinstance(value, int), "true or false"),
}


def string_array(strings):
    """Return (buffer, starts, lengths) of a StringArray, or of any sequence of str."""
    if hasattr(strings, "buffer"):
        return strings.buffer, strings.starts, strings.lengths
    encoded = [text.encode("utf-8", "surrogateescape") for text in strings]
    lengths = np.array([len(text) for text in encoded], dtype=np.int64)
    starts = np.zeros(len(encoded), dtype=np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), starts, lengths


def merge_order(scores):
    """Return uint32 ranks, least first for the highest score, equal for equal scores."""
    bits = (np.asarray(scores, dtype=np.float32) + np.float32(0)).view(np.uint32)  # -0 and 0 are one score
    negative = bits >> 31 != 0
    return np.where(negative, bits, ~(bits | np.uint32(1 << 31)))


def open_tokenizer(file):
    """Return the Tokenizer of an open ModelFile; LlamacyError, with the file's name, where it describes none."""
    try:
        return Tokenizer.from_metadata(file.metadata)
    except LlamacyError as error:
        raise LlamacyError(f"{file.path}: {error}") from error


class Tokenizer:
    """A model's vocabulary. Safe to use from several threads.

    n_vocab; bos_id, eos_id, unknown_id (None where there is none); add_bos, add_eos: what `encode` adds; eog_ids: the
    tokens that end a generation; model and pre: the names in the file.
    """

    def __init__(self, metadata):
        self._metadata = metadata
        self.model = self._get("model")
        row = MODELS.get(self.model)
        tokens = self._get("tokens")
        if row is None or not tokens:
            what = "no vocabulary" if self.model is None or not tokens else f"a tokenizer of kind {shown(self.model)}"
            raise LlamacyError(f"the file has {what}; wanted one of {', '.join(MODELS)}")
        self._row, self._tokens = row, string_array(tokens)
        self.n_vocab = len(self._tokens[1])
        self.pre = "gemma4" if self.model == "gemma4" else self._get("pre", None if row.by_merges else "default")
        self._cut = pretokenizer(self.pre) if row.by_merges else None
        self.bos_id = self._token_id("bos_token_id", row.bos_id)
        self.eos_id = self._token_id("eos_token_id", row.eos_id)
        self.unknown_id = self._token_id("unknown_token_id", row.unknown_id)
        add_bos = self._cut.add_bos if self._cut else row.add_bos
        self.add_bos = bool(self._get("add_bos_token", add_bos)) and self.bos_id is not None
        self.add_eos = bool(self._get("add_eos_token", False)) and self.eos_id is not None
        self._prefix = bool(self._get("add_space_prefix", row.space_prefix)) and not row.byte_level

    @classmethod
    def from_metadata(cls, metadata):
        """Return the tokenizer that a model file's metadata describe; LlamacyError where they describe none."""
        return cls(metadata)

    @property
    def longest_token(self):
        """Bytes of the longest token: no text has fewer tokens than its bytes divided by this."""
        return int(self._tokens[2].max())

    def _get(self, key, default=None):
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return default
        fits, wanted = WANTED[key.rpartition("_")[2]]
        if not fits(value):
            raise LlamacyError(f"tokenizer.ggml.{key}: wanted {wanted}, got {type(value).__name__}")
        return value

    def _token_id(self, key, default=None):
        """Return a special token's id from the metadata; None where it is outside the vocabulary, with a warning."""
        token = self._get(key, default)
        if token is None or 0 <= int(token) < self.n_vocab:
            return None if token is None else int(token)
        if self._get(key) is not None and int(token) not in NO_TOKEN:
            what = f"tokenizer.ggml.{key} is {int(token)}, outside the vocabulary of {self.n_vocab}"
            warnings.warn(f"{what}: there is no such token", stacklevel=1)
        return None

    def _kinds(self):
        types = np.asarray(self._get("token_type", np.ones(self.n_vocab)))
        if len(types) != self.n_vocab:
            raise LlamacyError(f"tokenizer.ggml.token_type has {len(types)} entries for {self.n_vocab} tokens")
        kinds = np.zeros(self.n_vocab, dtype=np.uint8)
        for number, kind in KINDS.items():
            kinds[types == number] = kind
        return kinds

    def _ranks(self):
        scores = self._get("scores")
        if self._row.by_merges or scores is None:
            return None
        if len(scores) < self.n_vocab:
            raise LlamacyError(f"tokenizer.ggml.scores has {len(scores)} entries for {self.n_vocab} tokens")
        return merge_order(scores[: self.n_vocab])

    def _build(self, kinds):
        merges = self._get("merges")
        if self._row.by_merges and merges is None:
            raise LlamacyError(f"the file has a {self.model} vocabulary without tokenizer.ggml.merges")
        return bpe.Vocabulary(
            self._tokens,
            kinds,
            string_array(merges) if self._row.by_merges else None,
            self._ranks(),
            byte_level=self._row.byte_level,
            whole_first=self._cut.whole_first if self._cut else 0,
            unknown=-1 if self.unknown_id is None else self.unknown_id,
        )

    @cached_property
    def _laid_out(self):
        """(Vocabulary, kinds as bytes, eog_ids): built on first use, then read only."""
        kinds = self._kinds()
        vocabulary = self._build(kinds)
        ends = {text: vocabulary.find(text.encode()) for text in END_TEXTS}
        ends = {text: token for text, token in ends.items() if token is not None}
        for text, beside in NOT_ENDS:
            if text in ends and all(other in ends for other in beside):
                del ends[text]
        changed = kinds.copy()
        changed[list(ends.values())] = bpe.CONTROL  # some files have them as ordinary text
        name = str(self._metadata.get("general.name", "")).lower()
        if "phi-3" in name or "phi3" in name:
            kept = [token for token in (vocabulary.find(text.encode()) for text in PHI3_KEEPS) if token is not None]
            strips = changed & (bpe.CONTROL | bpe.USER_DEFINED) != 0
            strips[kept] = False
            changed[strips] |= bpe.STRIP_AFTER
        vocabulary.set_kinds(changed)
        by_key = (self._token_id(key, self.eos_id if key == "eos_token_id" else None) for key in END_KEYS)
        return (
            vocabulary,
            changed.tobytes(),
            frozenset(ends.values()) | {token for token in by_key if token is not None},
        )

    @property
    def eog_ids(self):
        """The tokens that end a generation: the file's own, and those known by their text."""
        return self._laid_out[2]

    def is_special(self, token):
        """Say whether a token is control or unknown, which `decode` leaves out by default."""
        kinds = self._laid_out[1]
        if not 0 <= token < self.n_vocab:
            raise LlamacyError(f"token id {token} is outside the vocabulary of {self.n_vocab}")
        return bool(kinds[token] & bpe.CONTROL)

    def token_bytes(self, token):
        """Return what a token stands for (special ones: their name; unused ones: nothing).

        LlamacyError outside the vocabulary.
        """
        if not 0 <= token < self.n_vocab:
            raise LlamacyError(f"token id {token} is outside the vocabulary of {self.n_vocab}")
        return self._laid_out[0].token_bytes(token)

    def encode(self, text, add_special=True, parse_special=True):
        """Return the ids of `text` as a list.

        add_special: BOS before and EOS behind, where the model wants them. parse_special: control tokens written out in
        the text become those tokens. Bytes that came in through surrogateescape are encoded as they were.
        """
        cut = splitter(self._cut.expressions) if self._cut else None
        ids = self._laid_out[0].encode(text_bytes(text), cut, parse_special, self._prefix)
        if add_special and self.add_bos:
            ids.insert(0, self.bos_id)
        if add_special and self.add_eos:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids, special=False):
        """Return the text of `ids`; special: control tokens by name instead of nothing.

        Bytes that are not UTF-8 become U+FFFD. SentencePiece's space before the first word is kept.
        """
        shown = ids if special else (token for token in ids if not self.is_special(token))
        return b"".join(map(self.token_bytes, shown)).decode("utf-8", "replace")

    def stream(self, special=False, visible=()):
        """Return a StreamDecoder: the text of ids that come one at a time, in whole characters.

        Of special tokens it has the names of those in `visible`, with `special` of all.
        """
        return StreamDecoder(self, special, visible)


def text_bytes(text):
    """Return `text` as UTF-8; surrogateescape's bytes come back as they were, other lone surrogates become U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b"".join(_char_bytes(char) for char in text)


def _char_bytes(char):
    try:
        return char.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b"\xef\xbf\xbd"

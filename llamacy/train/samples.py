"""What training eats: token ids, and which of them are to be learnt."""

import bisect
import itertools
import json
from dataclasses import dataclass

import numpy as np

from llamacy.errors import LlamacyError


@dataclass(frozen=True)
class Sample:
    """One sequence of T tokens; `trained[i]` says that ids[i] is predicted from ids[:i] and counts in the loss.

    ids: int32 (T,); trained: bool (T,), never True at index 0, which nothing precedes.
    """

    ids: np.ndarray
    trained: np.ndarray

    @property
    def n_trained(self):
        """The number of tokens that count in the loss."""
        return int(np.count_nonzero(self.trained))


@dataclass(frozen=True)
class Preference:
    """One record: `samples`, each with `wanted[i]`, whether it is a good answer; both of a pair, or one with a label.

    ids, trained and n_trained are those of all of them, for whoever counts tokens.
    """

    samples: tuple
    wanted: tuple

    @property
    def ids(self):
        return np.concatenate([sample.ids for sample in self.samples])

    @property
    def trained(self):
        return np.concatenate([sample.trained for sample in self.samples])

    @property
    def n_trained(self):
        """The number of tokens of the answers; 0 where one of them has none."""
        counts = [sample.n_trained for sample in self.samples]
        return sum(counts) if all(counts) else 0


# What a piece of text is to training. An answer is true, so that `(text, True)` says the same.
ANSWER, PROMPT, CONTEXT = True, False, None


@dataclass(frozen=True)
class Record:
    """A sample as text: pieces in order, `(text, ANSWER)` where it is an answer.

    PROMPT is learnt with --train-on-prompt only, CONTEXT never. Each piece is tokenised on its own. `closed` says that
    the pieces end their turns themselves, as chat templates do: no EOS is added after one, and what a template puts
    behind the end of a turn is not trained; they are tokenised as one text.

    rejected: the Record of the answer that is not wanted, of a pair; wanted: the label of one answer, None without.
    """

    pieces: tuple
    closed: bool = False
    rejected: "Record | None" = None
    wanted: bool | None = None


class Encoder:
    """Records to Samples: `[BOS] + tokenize(piece) + tokenize(piece) + ... + [EOS]`, cut to `n_ctx` tokens; of closed
    records, [BOS] + tokenize(the pieces together).

    BOS only where the model adds it and the text does not already begin with it. `mask_prompt` trains the answers
    and EOS only; without it every token but the first is trained.
    """

    def __init__(self, tokenizer, n_ctx, mask_prompt=True):
        self.tokenizer = tokenizer
        self.n_ctx = n_ctx
        self.mask_prompt = mask_prompt
        self.first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        self.last = [] if tokenizer.eos_id is None else [tokenizer.eos_id]

    @property
    def end_text(self):
        """The text of the token that ends an answer, "" where the vocabulary has none."""
        return "".join(self.tokenizer.token_bytes(token).decode(errors="replace") for token in self.last)

    def encode(self, record):
        """Return (Sample, or Preference of a record with one; was it cut); it may be left without a trained token."""
        if record.rejected is None and record.wanted is None:
            return self._encode(record)
        labels = [(record, True), (record.rejected, False)] if record.rejected else [(record, record.wanted)]
        found = [self._encode(each) for each, _ in labels]
        samples = tuple(sample for sample, _ in found)
        return Preference(samples, tuple(label for _, label in labels)), any(cut for _, cut in found)

    def _encode(self, record):
        ids, trained = list(self.first), [not self.mask_prompt] * len(self.first)
        for piece, learnt in self._whole(record) if record.closed else self._parts(record):
            if ids == self.first and piece[: len(ids)] == ids:
                piece, learnt = piece[len(ids) :], learnt[len(ids) :]
            ids += piece
            trained += learnt
        if self._wants_end(record, ids):
            ids += self.last
            trained += [True] * len(self.last)
        return self._sample(ids, trained), len(ids) > self.n_ctx

    def _parts(self, record):
        """Yield (ids, is each learnt) of each piece, tokenised on its own."""
        for text, part in record.pieces:
            piece = self.tokenizer.encode(text, add_special=False)
            learnt = self._turn_length(piece) if record.closed and part is ANSWER and self.mask_prompt else len(piece)
            yield piece, [self._is_learnt(part)] * learnt + [False] * (len(piece) - learnt)

    def _whole(self, record):
        """Return [(ids, is each learnt)] of a conversation, tokenised as one text, as transformers does it.

        A token with bytes of two pieces belongs to the later one. Where the tokens' bytes are not the text's (unknown
        characters), pieces are tokenised on their own.
        """
        texts = [text.encode() for text, _ in record.pieces]
        ids = self.tokenizer.encode("".join(text for text, _ in record.pieces), add_special=False)
        ends = list(itertools.accumulate(len(self.tokenizer.token_bytes(token)) for token in ids))
        # some vocabularies put a space before a text
        shift = ends[-1] - sum(map(len, texts)) if ends else 0
        if shift not in (0, 1) or (shift and self.tokenizer.token_bytes(ids[0])[:1] != b" "):
            return self._parts(record)
        learnt, at, begin = [], shift, 0
        for (_, part), text in zip(record.pieces, texts, strict=True):
            at += len(text)
            until = bisect.bisect_right(ends, at, begin)
            piece = ids[begin:until]
            n = self._turn_length(piece) if part is ANSWER and self.mask_prompt else len(piece)
            learnt += [self._is_learnt(part)] * n + [False] * (len(piece) - n)
            begin = until
        return [(ids, learnt)]

    def _is_learnt(self, part):
        return part is ANSWER or (part is PROMPT and not self.mask_prompt)

    def _sample(self, ids, trained):
        trained = np.array(trained[: self.n_ctx], np.bool_)
        trained[:1] = False
        return Sample(np.array(ids[: self.n_ctx], np.int32), trained)

    def _turn_length(self, piece):
        """How many tokens of an answer to train: up to the last token that ends a turn, else all."""
        ends = (i for i in reversed(range(len(piece))) if piece[i] in self.tokenizer.eog_ids)
        return next(ends, len(piece) - 1) + 1

    def _wants_end(self, record, ids):
        """Is EOS missing? A template that ends its turns may put a line break behind the token that does."""
        if record.closed:
            return bool(record.pieces[-1][1]) and not any(token in self.tokenizer.eog_ids for token in ids[-3:])
        return ids[-1:] != self.last

    def surely_fits(self, record):
        """True where the record cannot be longer than n_ctx, judged by its bytes: a token is never shorter than one.

        Tokenising a large file twice is what this saves. Two tokens more per piece allow for a space prefix.
        """
        rest = self.surely_fits(record.rejected) if record.rejected else True
        return rest and sum(len(text.encode()) + 2 for text, _ in record.pieces) + 2 <= self.n_ctx


def has_answer(record, keep_empty=False):
    """True where a piece to be learnt holds more than white space, or for `keep_empty` where there is one at all."""
    rest = has_answer(record.rejected, True) if record.rejected else True
    return rest and any(part is ANSWER and (keep_empty or text.strip()) for text, part in record.pieces)


def check_text(value, name, where):
    """Return `value` as text that can be encoded, "" for None, numbers as JSON has them.

    LlamacyError, naming the key, for anything else.
    """
    if value is None:
        return ""
    if isinstance(value, (bool, int, float)):
        return json.dumps(value) if not hasattr(value, "written") else value.written
    if not isinstance(value, str):
        raise LlamacyError(f"{where}: {name} is {_json_kind(value)}, wanted text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise LlamacyError(f"{where}: {name} holds half a character (\\u{code:04x} without its partner)") from error
    return value


_KINDS = {list: "a list", dict: "an object"}


def _json_kind(value):
    return _KINDS.get(type(value), type(value).__name__)

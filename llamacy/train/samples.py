"""What training eats: token ids, and which of them are to be learnt."""

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
class Record:
    """A sample as text: pieces in order, each tokenised on its own, `(text, True)` where it is an answer.

    `closed` says that the pieces end their turns themselves, as chat templates do: no EOS is added after one, and
    what a template puts behind the end of a turn is not trained.
    """

    pieces: tuple
    closed: bool = False


class Encoder:
    """Records to Samples: `[BOS] + tokenize(piece) + tokenize(piece) + ... + [EOS]`, cut to `n_ctx` tokens.

    BOS only where the model adds it and the text does not already begin with it. `mask_prompt` trains the answers
    and EOS only; without it every token but the first is trained.
    """

    def __init__(self, tokenizer, n_ctx, mask_prompt=True):
        self.tokenizer = tokenizer
        self.n_ctx = n_ctx
        self.mask_prompt = mask_prompt
        self.first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        self.last = [] if tokenizer.eos_id is None else [tokenizer.eos_id]

    def encode(self, record):
        """Return (Sample, was it cut); the Sample may be left without a trained token."""
        ids, trained = list(self.first), [False] * len(self.first)
        for text, is_answer in record.pieces:
            piece = self.tokenizer.encode(text, add_special=False)
            if ids == self.first and piece[: len(ids)] == ids:
                piece = piece[len(ids) :]
            learnt = self._turn_length(piece) if record.closed and is_answer else len(piece)
            ids += piece
            trained += [is_answer] * learnt + [False] * (len(piece) - learnt)
        if self._wants_end(record, ids):
            ids += self.last
            trained += [True] * len(self.last)
        return self._sample(ids, trained), len(ids) > self.n_ctx

    def _sample(self, ids, trained):
        trained = np.array(trained[: self.n_ctx], np.bool_)
        if not self.mask_prompt:
            trained[:] = True
        trained[:1] = False
        return Sample(np.array(ids[: self.n_ctx], np.int32), trained)

    def _turn_length(self, piece):
        """How many tokens of an answer to train: up to the token that ends the turn, else all."""
        ends = (i for i, token in enumerate(piece) if token in self.tokenizer.eog_ids)
        return next(ends, len(piece) - 1) + 1

    def _wants_end(self, record, ids):
        """Is EOS missing? A template that ends its turns may put a line break behind the token that does."""
        if record.closed:
            return record.pieces[-1][1] and not any(token in self.tokenizer.eog_ids for token in ids[-3:])
        return ids[-1:] != self.last

    def surely_fits(self, record):
        """True where the record cannot be longer than n_ctx, judged by its bytes: a token is never shorter than one.

        Tokenising a large file twice is what this saves. Two tokens more per piece allow for a space prefix.
        """
        return sum(len(text.encode()) + 2 for text, _ in record.pieces) + 2 <= self.n_ctx


def has_answer(record):
    """True where a piece to be learnt holds more than white space."""
    return any(is_answer and not text.isspace() and text for text, is_answer in record.pieces)


def check_text(value, name, where):
    """Return `value` if it is text that can be encoded, "" for None; LlamacyError naming the key otherwise."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise LlamacyError(f"{where}: {name} is {_json_kind(value)}, wanted text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise LlamacyError(f"{where}: {name} holds half a character (\\u{code:04x} without its partner)") from error
    return value


_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def _json_kind(value):
    return _KINDS.get(type(value), type(value).__name__)

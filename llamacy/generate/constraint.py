"""Which tokens may come next in a text that follows a grammar: masks over the vocabulary, one per state, remembered."""

import math
import threading
from queue import SimpleQueue

import numpy as np

from llamacy.generate.automaton import DEAD, MOST_WORK, UNKNOWN, WORK_PER_TOKEN, TooMuchWork

# Bytes of an automaton's masks; beyond that they are forgotten.
MAX_MASK_BYTES = 64 << 20
# Work that is done at once, in the engine's own thread, a fraction of a millisecond; what takes more has helpers.
LITTLE_WORK = 100
HELPERS = 2


class TokenTable:
    """A vocabulary as a trie over its tokens' bytes, level by level in arrays, so that a whole level is one look-up.

    Node n has the bytes of its parent and then `byte[n]`; its children are neighbours, its tokens too.
    """

    def __init__(self, tokenizer, n_vocab):
        self.n_vocab, self.eog_ids = n_vocab, tokenizer.eog_ids
        self._n_known = min(n_vocab, tokenizer.n_vocab)
        known = range(self._n_known)
        self.bytes_of = {id: tokenizer.token_bytes(id) for id in known if not tokenizer.is_special(id)}
        pairs = sorted((data, id) for id, data in self.bytes_of.items() if data)
        self._ids = np.array([id for _, id in pairs], np.int64)
        self._build([data for data, _ in pairs])

    def _build(self, texts):
        """Make the levels: texts in order that share their first d bytes are neighbours."""
        sizes = np.array([len(text) for text in texts], np.int64)
        starts = np.cumsum(sizes) - sizes
        joined = np.frombuffer(b"".join(texts), np.uint8)
        node_of = np.zeros(len(texts), np.int64)  # the node that each text is at, at this depth
        bytes_, parents = [np.zeros(1, np.uint8)], [np.zeros(1, np.int64)]
        n_nodes, depth = 1, 0
        at_end = np.zeros(len(texts), np.int64)
        going = np.arange(len(texts))
        while len(going := going[sizes[going] > depth]):
            byte, parent = joined[starts[going] + depth], node_of[going]
            is_new = np.ones(len(going), bool)
            is_new[1:] = (byte[1:] != byte[:-1]) | (parent[1:] != parent[:-1])
            node_of[going] = n_nodes + np.cumsum(is_new) - 1
            bytes_.append(byte[is_new])
            parents.append(parent[is_new])
            n_nodes, depth = n_nodes + int(is_new.sum()), depth + 1
            ending = going[sizes[going] == depth]
            at_end[ending] = node_of[ending]
        self._byte = np.concatenate(bytes_).astype(np.int64)
        self._n_children = np.bincount(np.concatenate(parents)[1:], minlength=n_nodes)
        self._first_child = 1 + np.cumsum(self._n_children) - self._n_children
        self._n_tokens = np.bincount(at_end, minlength=n_nodes)
        self._ids = self._ids[np.argsort(at_end, kind="stable")]
        self._first_token = np.cumsum(self._n_tokens) - self._n_tokens

    def allowed(self, automaton, state):
        """Return the tokens that may follow, bool (n_vocab)."""
        mask = np.zeros(self.n_vocab, bool)
        if state == DEAD:
            return mask
        for tok, _ in automaton.tokens(state):
            mask[: self._n_known] |= (np.arange(self._n_known) == tok.id) != tok.negated
        nodes, states = np.zeros(1, np.int64), np.array([state])
        while len(nodes):
            counts = self._n_children[nodes]
            children = _ranges(self._first_child[nodes], counts)
            after = _steps(automaton, np.repeat(states, counts), self._byte[children])
            alive = after != DEAD
            nodes, states = children[alive], after[alive]
            mask[self._ids[_ranges(self._first_token[nodes], self._n_tokens[nodes])]] = True
        mask[list(self.eog_ids)] = automaton.may_end(state)
        return mask


def _ranges(firsts, counts):
    """Return first, first + 1, ... of each, `count` numbers of it, one behind the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(firsts - (ends - counts), counts)


def _steps(automaton, states, bytes_):
    """Return the states after one byte each; those that were never asked for are found out first."""
    after = automaton.moves[states, bytes_]
    unknown = np.flatnonzero(after == UNKNOWN)
    if len(unknown):
        for state in np.unique(states[unknown]).tolist():
            automaton.open(state)
        unknown = unknown[automaton.moves[states[unknown], bytes_[unknown]] == UNKNOWN]
        for pair in np.unique(states[unknown] * 256 + bytes_[unknown]).tolist():
            automaton.step(pair >> 8, pair & 255)
        after = automaton.moves[states, bytes_]
    return after


class Constraint:
    """One text's place in a grammar: what the sampler asks before it takes a token.

    Behind an accepted token the place and its mask are found by prepare(), in any thread; whoever asks before that
    waits for it. RequestError from then on where that takes too much work.
    """

    def __init__(self, automaton, table):
        self._automaton, self._table = automaton, table
        self._tokens, self._state, self._new = [], 0, 0  # accepted; the state behind all but the last `_new` of them
        self._generation, self._work = automaton.generation, MOST_WORK
        self._mask = self._is_over = self._error = None
        self.is_ready = False

    def prepare(self):
        """Find the tokens that may come next."""
        with self._automaton.lock:
            if not self.is_ready:
                try:
                    self._prepare()
                except Exception as error:
                    self._error = error
                self.is_ready = True

    def prepare_little(self):
        """The same where it takes next to no time, as where this text, or another one, was here before."""
        automaton = self._automaton
        if self.is_ready or self._error or not automaton.lock.acquire(blocking=False):
            return
        try:
            if automaton.is_full() or self._generation != automaton.generation:
                return
            automaton.work = LITTLE_WORK
            state = self._state
            for token in self._tokens[len(self._tokens) - self._new :]:
                state = automaton.after_token(state, token, self._bytes(token))
            if (self._table, state) in automaton.masks:
                self._state, self._new = state, 0
                self._set(automaton.masks[self._table, state])
                self.is_ready = True
        except TooMuchWork:
            pass
        finally:
            automaton.work = math.inf
            automaton.lock.release()

    def _prepare(self):
        automaton = self._automaton
        if automaton.is_full():
            automaton.forget()
        if self._generation != automaton.generation:
            self._generation, self._state, self._new = automaton.generation, 0, len(self._tokens)
            self._work = MOST_WORK
        automaton.work = self._work
        try:
            for token in self._tokens[len(self._tokens) - self._new :]:
                self._state = automaton.after_token(self._state, token, self._bytes(token))
            self._new, key = 0, (self._table, self._state)
            if key not in automaton.masks:
                packed = np.packbits(self._table.allowed(automaton, self._state))
                if (len(automaton.masks) + 1) * packed.nbytes > MAX_MASK_BYTES:
                    automaton.masks.clear()
                automaton.masks[key] = packed
            self._work = automaton.work
        finally:
            automaton.work = math.inf
        self._set(automaton.masks[key])

    def _set(self, packed):
        self._mask = np.unpackbits(packed, count=self._table.n_vocab).view(bool)
        self._is_over = self._state != DEAD and self._automaton.must_end(self._state)

    def _bytes(self, token):
        return self._table.bytes_of.get(token, b"")

    def _ask(self):
        if not self.is_ready:
            self.prepare()
        if self._error:
            raise self._error

    def allows(self, token):
        """Say whether a token may come next."""
        self._ask()
        return bool(self._mask[token])

    def mask(self):
        """Return all tokens that may come next, bool (n_vocab)."""
        self._ask()
        return self._mask

    def accept(self, token):
        """Go on behind a token that was chosen."""
        self._tokens.append(token)
        self._new += 1
        self._work = min(MOST_WORK, self._work + WORK_PER_TOKEN)
        self.is_ready = False

    @property
    def is_over(self):
        """The text is whole and nothing may follow."""
        self._ask()
        return self._is_over


class Helpers:
    """Prepares constraints in threads of its own, beside the engine's; they start with the first one."""

    def __init__(self, when_done):
        """when_done(): called after each, in the helper's thread."""
        self._waiting, self._threads, self._when_done = SimpleQueue(), [], when_done

    def prepare(self, constraint):
        """Make a constraint ready, soon."""
        if not self._threads:
            self._threads = [threading.Thread(target=self._work, name="grammar", daemon=True) for _ in range(HELPERS)]
            for thread in self._threads:
                thread.start()
        self._waiting.put(constraint)

    def close(self):
        """End the threads after what they have begun."""
        for _ in self._threads:
            self._waiting.put(None)

    def _work(self):
        while (constraint := self._waiting.get()) is not None:
            constraint.prepare()
            self._when_done()

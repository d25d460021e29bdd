"""Text that must follow a grammar: which tokens may come next.

A grammar is an expression over bytes: lit, some (one byte of a set), seq, alt, star, repeat, ref (a named rule), and
over tokens as wholes: tok. It runs as a set of stacks of what is still to come, like llama.cpp's GBNF sampler, but over
bytes and with every step remembered: after some tokens each step is a look-up, as in a finite automaton.
"""

import math
from bisect import bisect_left
from typing import NamedTuple

import numpy as np

from llamacy.errors import RequestError

# Remembered states, stacks and masks; beyond that they are forgotten and computed again.
MAX_STATES = 20_000
MAX_STACKS = 1_000_000
MAX_MASKS = 64
# Expressions looked at, some microseconds each: the most for one token, and what a text is given back for each token.
# An ambiguous grammar can have more and more stacks, up to 2 ** n after n bytes.
MOST_WORK, WORK_PER_TOKEN = 150_000, 10_000
# Bytes of a literal that are one piece: its rest is remembered from each of them on.
PIECE = 64


class Lit(NamedTuple):
    """These bytes."""

    text: bytes


class Some(NamedTuple):
    """One byte of a set, given as frozenset of ints."""

    of: frozenset


class Seq(NamedTuple):
    """One after the other."""

    parts: tuple


class Alt(NamedTuple):
    """One of them."""

    parts: tuple


class Star(NamedTuple):
    """Any number of times."""

    part: object


class Repeat(NamedTuple):
    """From `low` to `high` times; None: any number."""

    part: object
    low: int
    high: int | None


class Ref(NamedTuple):
    """The rule of that name."""

    name: str


class Tok(NamedTuple):
    """The token of that id as a whole, whatever its bytes are; any other where `negated`."""

    id: int
    negated: bool = False


EMPTY = Lit(b"")


def lit(text):
    data = text.encode()
    if len(data) <= PIECE:
        return Lit(data)
    return Seq(tuple(Lit(data[i : i + PIECE]) for i in range(0, len(data), PIECE)))


def some(first, last=None):
    """Return one byte from `first` to `last`, or of a string's."""
    return Some(frozenset(range(first, last + 1) if last is not None else first.encode()))


def seq(*parts):
    return Seq(parts)


def alt(*parts):
    return Alt(parts)


def optional(part):
    return Alt((EMPTY, part))


def repeat(part, low, high=None):
    """Return `part` from `low` to `high` times; None: any number."""
    if high == 0:
        return EMPTY
    return Star(part) if low == 0 and high is None else Repeat(part, low, high)


class Automaton:
    """Runs a grammar: states are ints, 0 the beginning and DEAD where no text of the grammar begins so.

    RequestError where that takes too much work; each Constraint says how much it may take.
    """

    DEAD = -1

    def __init__(self, rules, root):
        """`rules`: {name: expression}, not left-recursive; `root`: the expression that texts must match."""
        self._rules, self._root = rules, root
        self.forget()

    def forget(self):
        """Drop all remembered states; ints handed out before mean nothing any more."""
        self.generation = getattr(self, "generation", -1) + 1
        self._rests = {}  # id of a literal, or of a repeated part and its bounds: (it, the expression of its rest)
        self._stacks, self._stack_ids = [None], {}  # (expression, the stack below); stack 0 is the end
        self._states, self._state_ids, self._steps, self._moves = [], {}, [], []
        self.work = MOST_WORK
        self._state(self._expand([(self._root, 0)]))
        self.work = math.inf

    def is_full(self):
        return len(self._states) > MAX_STATES or len(self._stacks) > MAX_STACKS

    def _spend(self, work):
        self.work -= work
        if self.work < 0:
            raise RequestError("grammar: too many ways to go on: it is too ambiguous, or too large, to be followed")

    def _push(self, node, below):
        key = (id(node), below)
        if key not in self._stack_ids:
            self._stack_ids[key] = len(self._stacks)
            self._stacks.append((node, below))  # keeps `node` alive, so that its id stays its own
        return self._stack_ids[key]

    def _expand(self, open_ones):
        """Return the stacks, each with bytes or a token on top or empty, that (expression, stack below) pairs mean."""
        done, seen = set(), set()
        while open_ones:
            node, below = open_ones.pop()
            stack = self._push(node, below)
            if stack in seen:
                continue
            seen.add(stack)
            self._spend(1)
            if isinstance(node, (Some, Tok)) or (isinstance(node, Lit) and node.text):
                done.add(stack)
            elif isinstance(node, Lit) or (isinstance(node, Seq) and not node.parts):
                if below:
                    open_ones.append(self._stacks[below])
                else:
                    done.add(0)
            elif isinstance(node, Seq):
                self._spend(len(node.parts))
                for part in reversed(node.parts[1:]):
                    below = self._push(part, below)
                open_ones.append((node.parts[0], below))
            elif isinstance(node, Alt):
                open_ones += [(part, below) for part in node.parts]
            elif isinstance(node, Star):
                open_ones += [(EMPTY, below), (node.part, stack)]
            elif isinstance(node, Repeat):
                open_ones += self._repeated(node, below)
            else:
                open_ones.append((self._rules[node.name], below))
        return frozenset(done)

    def _repeated(self, node, below):
        """Return what a repetition begins with: its part with the rest of it below, or nothing where that is enough."""
        low, high = max(node.low - 1, 0), None if node.high is None else node.high - 1
        rest = repeat(node.part, low, high)
        rest = self._rests.setdefault((id(node.part), low, high), (node.part, rest))[1]
        once = (node.part, below if high == 0 else self._push(rest, below))
        return [once] if node.low else [(EMPTY, below), once]

    def _state(self, stacks):
        if not stacks:
            return self.DEAD
        if stacks not in self._state_ids:
            self._state_ids[stacks] = len(self._states)
            self._states.append(stacks)
            self._steps.append({})
            self._moves.append(None)
        return self._state_ids[stacks]

    def step(self, state, byte):
        """Return the state after one more byte."""
        known = self._steps[state].get(byte)
        if known is not None:
            return known
        if self._moves[state] is None:
            self._moves[state] = self._moves_of(state)
        after = self._moves[state].get(byte)
        self._steps[state][byte] = found = self._state(self._expand(list(after))) if after else self.DEAD
        return found

    def _moves_of(self, state):
        """Return {byte: [(expression, stack below) after it]}."""
        moves = {}
        for stack in self._states[state]:
            if stack == 0:
                continue
            node, below = self._stacks[stack]
            if isinstance(node, Some):
                self._spend(1 + len(node.of) // 8)
                for byte in node.of:
                    moves.setdefault(byte, []).append((EMPTY, below))
            elif isinstance(node, Lit):
                moves.setdefault(node.text[0], []).append((self._rest(node), below))
        return moves

    def _rest(self, node):
        """Return a literal without its first byte, always the same object for the same one."""
        if id(node) not in self._rests:
            self._rests[id(node)] = (node, Lit(node.text[1:]))
        return self._rests[id(node)][1]

    def run(self, state, data):
        """Return the state after some bytes."""
        for byte in data:
            if state == self.DEAD:
                break
            state = self.step(state, byte)
        return state

    def tokens(self, state):
        """Return the tokens as wholes that may come: [(Tok, the stack below it)]."""
        stacks = (self._stacks[stack] for stack in self._states[state] if stack)
        return [(node, below) for node, below in stacks if isinstance(node, Tok)]

    def after_token(self, state, token, data):
        """Return the state after a token: by its bytes (empty for one that is no text), by what it is, or by both."""
        by_bytes = self.run(state, data) if data else self.DEAD
        fitting = [below for node, below in self.tokens(state) if (node.id == token) != node.negated]
        if not fitting:
            return by_bytes
        stacks = self._expand([(EMPTY, below) for below in fitting])
        return self._state(stacks if by_bytes == self.DEAD else stacks | self._states[by_bytes])

    def may_end(self, state):
        """Say whether the text so far is a whole one of the grammar."""
        return state != self.DEAD and 0 in self._states[state]

    def must_end(self, state):
        """Say whether nothing may follow."""
        return self._states[state] == {0}


class TokenTable:
    """A vocabulary in the order of its bytes, so that tokens with the same beginning are looked at once."""

    def __init__(self, tokenizer, n_vocab):
        self.n_vocab, self.eog_ids = n_vocab, tokenizer.eog_ids
        self._n_known = min(n_vocab, tokenizer.n_vocab)
        known = range(self._n_known)
        self.bytes_of = {id: tokenizer.token_bytes(id) for id in known if not tokenizer.is_special(id)}
        pairs = sorted((data, id) for id, data in self.bytes_of.items() if data)
        self._texts, self._ids = [data for data, _ in pairs], [id for _, id in pairs]

    def allowed(self, automaton, state):
        """Return the tokens that may follow, bool (n_vocab)."""
        mask = np.zeros(self.n_vocab, bool)
        for tok, _ in automaton.tokens(state):
            mask[: self._n_known] |= (np.arange(self._n_known) == tok.id) != tok.negated
        # path[d] is the state after the first d bytes of `before`.
        path, before, i = [state], b"", 0
        while i < len(self._texts):
            text = self._texts[i]
            shared = _shared(before, text, len(path) - 1)
            del path[shared + 1 :]
            for byte in text[shared:]:
                after = automaton.step(path[-1], byte)
                if after == automaton.DEAD:
                    break
                path.append(after)
            before = text[: len(path) - 1]
            if len(before) == len(text):
                mask[self._ids[i]] = True
                i += 1
            else:
                # No token with these bytes at its beginning can come.
                i = bisect_left(self._texts, _after_prefix(text[: len(path)]), i + 1)
        mask[list(self.eog_ids)] = automaton.may_end(state)
        return mask


def _shared(a, b, most):
    n = 0
    while n < most and n < len(b) and a[n] == b[n]:
        n += 1
    return n


def _after_prefix(prefix):
    """Return the least bytes that sort behind everything that begins with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\xff" * 1000


class Constraint:
    """One text's place in a grammar: what the sampler asks before it takes a token."""

    def __init__(self, automaton, table):
        self._automaton, self._table = automaton, table
        self._tokens, self._state, self._masks = [], 0, {}
        self._generation, self._work = automaton.generation, MOST_WORK

    def _limited(self, work, function, *args):
        """Return what the automaton's function returns and what is left of the work it may take."""
        self._automaton.work = work
        try:
            return function(*args), self._automaton.work
        finally:
            self._automaton.work = math.inf

    def _now(self):
        """Return the present state, found again where the automaton has forgotten its states."""
        if self._automaton.is_full():
            self._automaton.forget()
        if self._generation != self._automaton.generation:
            self._generation, self._masks = self._automaton.generation, {}
            self._state, _ = self._limited(MOST_WORK, self._again)
        return self._state

    def _again(self):
        state = 0
        for token in self._tokens:
            state = self._automaton.after_token(state, token, self._bytes(token))
        return state

    def _bytes(self, token):
        return self._table.bytes_of.get(token, b"")

    def _next(self, token):
        after = self._automaton.after_token
        found, self._work = self._limited(self._work, after, self._now(), token, self._bytes(token))
        return found

    def allows(self, token):
        """Say whether a token may come next."""
        if token in self._table.eog_ids:
            return self._automaton.may_end(self._now())
        return self._next(token) != self._automaton.DEAD

    def mask(self):
        """Return all tokens that may come next, bool (n_vocab)."""
        state = self._now()
        if state not in self._masks:
            if len(self._masks) >= MAX_MASKS:
                self._masks.clear()
            mask, self._work = self._limited(self._work, self._table.allowed, self._automaton, state)
            self._masks[state] = mask
        return self._masks[state]

    def accept(self, token):
        """Go on behind a token that was chosen."""
        self._state = self._next(token)
        self._tokens.append(token)
        self._work = min(MOST_WORK, self._work + WORK_PER_TOKEN)

    @property
    def is_over(self):
        """The text is whole and nothing may follow."""
        return self._automaton.must_end(self._now())

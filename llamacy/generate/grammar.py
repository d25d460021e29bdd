"""Text that must follow a grammar: which tokens may come next.

A grammar is an expression over bytes: lit, some (one byte of a set), seq, alt, star, ref (a named rule). It runs as a
set of stacks of what is still to come, like llama.cpp's GBNF sampler, but over bytes and with every step remembered:
after some tokens each step is a look-up, as in a finite automaton.
"""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np

# Remembered states and masks; beyond that they are forgotten and computed again.
MAX_STATES = 20_000
MAX_MASKS = 64


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
    """Any number of times; `part` must not match the empty text."""

    part: object


class Ref(NamedTuple):
    """The rule of that name."""

    name: str


EMPTY = Lit(b"")


def lit(text):
    return Lit(text.encode())


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
    if high is None:
        return Seq((*[part] * low, Star(part)))
    tail = EMPTY
    for _ in range(high - low):
        tail = optional(Seq((part, tail)))
    return Seq((*[part] * low, tail))


class Automaton:
    """Runs a grammar: states are ints, 0 the beginning and DEAD where no text of the grammar begins so."""

    DEAD = -1

    def __init__(self, rules, root):
        """`rules`: {name: expression}, not left-recursive; `root`: the expression that texts must match."""
        self._rules, self._root = rules, root
        self.forget()

    def forget(self):
        """Drop all remembered states; ints handed out before mean nothing any more."""
        self.generation = getattr(self, "generation", -1) + 1
        self._rests = {}  # id of a literal: (it, it without its first byte)
        self._stacks, self._stack_ids = [None], {}  # (expression, the stack below); stack 0 is the end
        self._states, self._state_ids, self._steps = [], {}, []
        self._state(self._expand([(self._root, 0)]))

    def is_full(self):
        return len(self._states) > MAX_STATES

    def _push(self, node, below):
        key = (id(node), below)
        if key not in self._stack_ids:
            self._stack_ids[key] = len(self._stacks)
            self._stacks.append((node, below))  # keeps `node` alive, so that its id stays its own
        return self._stack_ids[key]

    def _expand(self, open_ones):
        """Return the stacks, each with bytes on top or empty, that (expression, stack below) pairs stand for."""
        done, seen = set(), set()
        while open_ones:
            node, below = open_ones.pop()
            stack = self._push(node, below)
            if stack in seen:
                continue
            seen.add(stack)
            if isinstance(node, Some) or (isinstance(node, Lit) and node.text):
                done.add(stack)
            elif isinstance(node, Lit) or (isinstance(node, Seq) and not node.parts):
                if below:
                    open_ones.append(self._stacks[below])
                else:
                    done.add(0)
            elif isinstance(node, Seq):
                for part in reversed(node.parts[1:]):
                    below = self._push(part, below)
                open_ones.append((node.parts[0], below))
            elif isinstance(node, Alt):
                open_ones += [(part, below) for part in node.parts]
            elif isinstance(node, Star):
                open_ones += [(EMPTY, below), (node.part, stack)]
            else:
                open_ones.append((self._rules[node.name], below))
        return frozenset(done)

    def _state(self, stacks):
        if not stacks:
            return self.DEAD
        if stacks not in self._state_ids:
            self._state_ids[stacks] = len(self._states)
            self._states.append(stacks)
            self._steps.append({})
        return self._state_ids[stacks]

    def step(self, state, byte):
        """Return the state after one more byte."""
        known = self._steps[state].get(byte)
        if known is not None:
            return known
        after = []
        for stack in self._states[state]:
            if stack == 0:
                continue
            node, below = self._stacks[stack]
            if isinstance(node, Some):
                if byte in node.of:
                    after.append((EMPTY, below))
            elif node.text[0] == byte:
                after.append((self._rest(node), below))
        self._steps[state][byte] = found = self._state(self._expand(after))
        return found

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
        known = range(min(n_vocab, tokenizer.n_vocab))
        self.bytes_of = {id: tokenizer.token_bytes(id) for id in known if not tokenizer.is_special(id)}
        pairs = sorted((data, id) for id, data in self.bytes_of.items() if data)
        self._texts, self._ids = [data for data, _ in pairs], [id for _, id in pairs]

    def allowed(self, automaton, state):
        """Return the tokens that may follow, bool (n_vocab)."""
        mask = np.zeros(self.n_vocab, bool)
        if automaton.may_end(state):
            mask[list(self.eog_ids)] = True
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
        self._text, self._state, self._masks = b"", 0, {}
        self._generation = automaton.generation

    def _now(self):
        """Return the present state, found again where the automaton has forgotten its states."""
        automaton = self._automaton
        if automaton.is_full():
            automaton.forget()
        if self._generation != automaton.generation:
            self._generation, self._masks = automaton.generation, {}
            self._state = automaton.run(0, self._text)
        return self._state

    def allows(self, token):
        """Say whether a token may come next."""
        state = self._now()
        if token in self._table.eog_ids:
            return self._automaton.may_end(state)
        data = self._table.bytes_of.get(token)
        return bool(data) and self._automaton.run(state, data) != self._automaton.DEAD

    def mask(self):
        """Return all tokens that may come next, bool (n_vocab)."""
        state = self._now()
        if state not in self._masks:
            if len(self._masks) >= MAX_MASKS:
                self._masks.clear()
            self._masks[state] = self._table.allowed(self._automaton, state)
        return self._masks[state]

    def accept(self, token):
        """Go on behind a token that was chosen."""
        data = self._table.bytes_of.get(token, b"")
        self._state = self._automaton.run(self._now(), data)
        self._text += data

    @property
    def is_over(self):
        """The text is whole and nothing may follow."""
        return self._automaton.must_end(self._now())

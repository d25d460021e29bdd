"""Runs a grammar over bytes, like llama.cpp's GBNF sampler as a set of stacks of what is still to come.

Every step is remembered: after some tokens each step is a look-up, as in a finite automaton.
"""

import math
import threading

import numpy as np

from llamacy.errors import RequestError
from llamacy.generate.grammar import EMPTY, Alt, Later, Lit, Repeat, Seq, Some, Star, Tok, Words, repeat

# Remembered states and stacks; beyond that they are forgotten and computed again.
MAX_STATES = 20_000
MAX_STACKS = 1_000_000
# Expressions looked at, a microsecond or two each: the most for one token, and what a text is given back for each.
# An ambiguous grammar can have more and more stacks, up to 2 ** n after n bytes.
MOST_WORK, WORK_PER_TOKEN = 150_000, 10_000
DEAD, UNKNOWN = -1, -2
FIRST_ROWS = 64


class TooMuchWork(RequestError):
    """The grammar takes more work than it may."""


class Automaton:
    """Runs a grammar: states are ints, 0 the beginning and DEAD where no text of the grammar begins so.

    `moves[state, byte]` is the next state, int32, UNKNOWN before step() was asked. TooMuchWork where a step takes more
    than `work` has left; whoever uses it beside other threads holds `lock`.
    """

    DEAD = DEAD

    def __init__(self, rules, root):
        """`rules`: {name: expression}, not left-recursive; `root`: the expression that texts must match."""
        self.rules, self.root = rules, root
        self.lock = threading.RLock()
        self.forget()

    def forget(self):
        """Drop all remembered states; ints handed out before mean nothing any more."""
        self.generation = getattr(self, "generation", -1) + 1
        self._rests = {}  # what an expression was made from: (it, the expression), so that the same is the same object
        self._stacks, self._stack_ids = [None], {}  # (expression, the stack below); stack 0 is the end
        self._states, self._state_ids = [], {}
        self.moves = np.full((FIRST_ROWS, 256), UNKNOWN, np.int32)
        self._groups = []  # per state None, or {byte: ([all bytes that lead to the same], [(expression, stack)] there)}
        self.masks = {}  # {(TokenTable, state): its packed mask}
        self.work = MOST_WORK
        self._state(self._expand([(self.root, 0)]))
        self.work = math.inf

    def is_full(self):
        return len(self._states) > MAX_STATES or len(self._stacks) > MAX_STACKS

    def _spend(self, work):
        self.work -= work
        if self.work < 0:
            raise TooMuchWork("grammar: too many ways to go on: it is too ambiguous, or too large, to be followed")

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
            elif isinstance(node, Words):
                n = node.ended()
                self._spend(n)
                open_ones += [(then, below) for _, then in node.table[node.begin : node.begin + n]]
                if node.begin + n < node.end:
                    done.add(stack)
            elif isinstance(node, Later):
                open_ones.append((self._once((id(node.make), node.at), node.make, lambda n=node: n.make(n.at)), below))
            elif isinstance(node, Star):
                open_ones += [(EMPTY, below), (node.part, stack)]
            elif isinstance(node, Repeat):
                open_ones += self._repeated(node, below)
            else:
                open_ones.append((self.rules[node.name], below))
        return frozenset(done)

    def _once(self, key, alive, make):
        """Return make() of the first time that `key` was asked for; `alive`: whose id is in the key."""
        if key not in self._rests:
            self._rests[key] = (alive, make())
        return self._rests[key][1]

    def _repeated(self, node, below):
        """Return what a repetition begins with: its part with the rest of it below, or nothing where that is enough."""
        low, high = max(node.low - 1, 0), None if node.high is None else node.high - 1
        rest = self._once((id(node.part), low, high), node.part, lambda: repeat(node.part, low, high))
        once = (node.part, below if high == 0 else self._push(rest, below))
        return [once] if node.low else [(EMPTY, below), once]

    def _state(self, stacks):
        if not stacks:
            return DEAD
        if stacks not in self._state_ids:
            self._state_ids[stacks] = n = len(self._states)
            self._states.append(stacks)
            self._groups.append(None)
            if n == len(self.moves):
                more = np.full((n, 256), UNKNOWN, np.int32)
                self.moves = np.concatenate([self.moves, more])
        return self._state_ids[stacks]

    def step(self, state, byte):
        """Return the state after one more byte."""
        known = int(self.moves[state, byte])
        if known != UNKNOWN:
            return known
        self.open(state)
        if byte not in self._groups[state]:
            return DEAD
        alike, after = self._groups[state][byte]
        found = self._state(self._expand(list(after)))
        self.moves[state, alike] = found
        return found

    def open(self, state):
        """Find out which bytes may follow a state: for the others `moves` is DEAD from then on."""
        if self._groups[state] is not None:
            return
        groups = {}
        for byte, after in self._after(state).items():
            groups.setdefault(tuple((id(node), below) for node, below in after), (after, []))[1].append(byte)
        found = {byte: (alike, after) for after, alike in groups.values() for byte in alike}
        unknown = np.full(256, DEAD, np.int32)
        unknown[list(found)] = UNKNOWN
        self.moves[state], self._groups[state] = unknown, found

    def _after(self, state):
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
                rest = self._once(id(node), node, lambda node=node: Lit(node.text[1:]))
                moves.setdefault(node.text[0], []).append((rest, below))
            elif isinstance(node, Words):
                table, depth = node.table, node.depth + 1
                for byte, begin, end in node.branches():
                    self._spend(1)
                    key = (id(table), begin, end, depth)
                    rest = self._once(key, table, lambda b=begin, e=end, t=table, d=depth: Words(t, b, e, d))
                    moves.setdefault(byte, []).append((rest, below))
        return moves

    def run(self, state, data):
        """Return the state after some bytes."""
        for byte in data:
            if state == DEAD:
                break
            state = self.step(state, byte)
        return state

    def tokens(self, state):
        """Return the tokens as wholes that may come: [(Tok, the stack below it)]."""
        stacks = (self._stacks[stack] for stack in self._states[state] if stack)
        return [(node, below) for node, below in stacks if isinstance(node, Tok)]

    def after_token(self, state, token, data):
        """Return the state after a token: by its bytes (empty for one that is no text), by what it is, or by both."""
        by_bytes = self.run(state, data) if data else DEAD
        fitting = [below for node, below in self.tokens(state) if (node.id == token) != node.negated]
        if not fitting:
            return by_bytes
        stacks = self._expand([(EMPTY, below) for below in fitting])
        return self._state(stacks if by_bytes == DEAD else stacks | self._states[by_bytes])

    def may_end(self, state):
        """Say whether the text so far is a whole one of the grammar."""
        return state != DEAD and 0 in self._states[state]

    def must_end(self, state):
        """Say whether nothing may follow."""
        return self._states[state] == {0}

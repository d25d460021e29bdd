"""What comes in objects and arrays of a JSON schema; what may follow a part is made when a text is there."""

from llamacy.generate.grammar import EMPTY, Later, alt, compact, lit, repeat, seq, words
from llamacy.generate.json_grammar import SPACE


class Members:
    """An object's members in their order, some of them required."""

    def __init__(self, keys, values, required):
        self._keys, self._required = keys, required
        # behind a key: its value, and what may follow that
        self._thens = [
            seq(SPACE, lit(":"), SPACE, value, SPACE, Later(self._after, i + 1)) for i, value in enumerate(values)
        ]

    def object(self):
        """Return the expression of the object."""
        members, may_end = self._from(0)
        parts = ([members] if members else []) + ([lit("}")] if may_end else [])
        return seq(lit("{"), SPACE, alt(*parts))

    def _after(self, at):
        """Return what may follow the members before `at`, of which there is one."""
        members, may_end = self._from(at)
        more = [] if members is None else [seq(lit(","), SPACE, members)]
        return alt(*more, lit("}")) if may_end else more[0]

    def _from(self, at):
        """Return (the next member, of all up to the next required one; whether the object may end instead)."""
        end = next((i for i in range(at, len(self._keys)) if self._required[i]), None)
        last = len(self._keys) if end is None else end + 1
        pairs = [(self._keys[i], self._thens[i]) for i in range(at, last)]
        return words(pairs) if pairs else None, end is None


def tuple_of(parts, item, low, high):
    """Return the inside of an array: parts in their order, as many as wanted, then any number of items."""
    comma = seq(lit(","), SPACE)
    beyond = None if high is None else max(high - len(parts), 0)
    rest = repeat(seq(comma, item, SPACE), max(low - len(parts), 0), beyond)
    for i in reversed(range(len(parts))):
        if high is not None and i >= high:
            rest = EMPTY
            continue
        here = seq(comma if i else EMPTY, parts[i], SPACE, rest)
        # All of prefixItems come: a model is to fill them; fewer only where maxItems says so.
        rest = here
    return rest


class _Growing:
    """An array whose next item depends on those before: subclasses say how, by a state that is an int, 0 at first."""

    def array(self):
        """Return the expression of the array."""
        self._make = self._from  # one object: what is made of it for a state is remembered
        return seq(lit("["), SPACE, self._make(0))

    def _from(self, state):
        """Return what may follow some items."""
        comma = seq(lit(","), SPACE) if self.count(state) else EMPTY
        choices = [seq(comma, item, SPACE, Later(self._make, after)) for item, after in self.choices(state)]
        return alt(*choices, *([lit("]")] if self.may_end(state) else []))


class Different(_Growing):
    """An array of some texts, each at most once; the state is which were there, as bits."""

    def __init__(self, texts, low, high):
        self._texts, self._low, self._high = texts, low, high

    def count(self, state):
        return state.bit_count()

    def may_end(self, state):
        return self.count(state) >= self._low

    def choices(self, state):
        full = self._high is not None and self.count(state) >= self._high
        left = [] if full else [i for i in range(len(self._texts)) if not state >> i & 1]
        return [(lit(self._texts[i]), state | 1 << i) for i in left]


class Containing(_Growing):
    """An array with from `least` to `most` wanted items, None: any number; others may be between them, None: none.

    The state is how many items there were, times `_scale`, and how many wanted ones; what is enough counts no further.
    """

    def __init__(self, wanted, other, least, most, low, high):
        self._wanted, self._other = (node and compact(node) for node in (wanted, other))
        self._least, self._most = least, most
        self._low, self._high = low, high
        self._enough = max(low, high or 0, 1)
        self._scale = 1 + max(least, most or 0)

    def count(self, state):
        return state // self._scale

    def may_end(self, state):
        return self.count(state) >= self._low and state % self._scale >= self._least

    def choices(self, state):
        n, found = divmod(state, self._scale)
        if self._high is not None and n >= self._high:
            return []
        after = min(n + 1, self._enough) * self._scale
        choices = []
        if self._wanted is not None and (self._most is None or found < self._most):
            choices.append((self._wanted, after + min(found + 1, self._scale - 1)))
        has_room = self._high is None or self._high - n - 1 >= self._least - found
        if self._other is not None and has_room:
            choices.append((self._other, after + found))
        return choices

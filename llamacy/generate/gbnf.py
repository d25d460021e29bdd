"""llama.cpp's GBNF grammars: text -> the expressions of grammar.py, over bytes of UTF-8.

Rules `name ::= ...` of "literals", [classes], `.` for any character, (groups), `|`, `* + ? {m} {m,} {m,n}`, tokens
`<[id]>`, `<text>` and `!<...>` for any other; # comments. A rule ends with its line, but not inside parentheses nor
behind `|`. The whole text must be what `root` says.
"""

from llamacy.errors import RequestError
from llamacy.generate.automaton import Automaton
from llamacy.generate.grammar import EMPTY, Alt, Ref, Repeat, Seq, Star, Tok, check_size, compact, lit, repeat
from llamacy.generate.utf8 import MAX_CODE, characters, others

MAX_TEXT = 1 << 20  # characters of a grammar
MAX_DEPTH = 100  # parentheses in parentheses
MAX_REPEATS = 10_000
MAX_SEQUENCES = 100_000  # of bytes, in all classes together: one of many characters has some ten
ESCAPES = {"t": "\t", "r": "\r", "n": "\n", **{char: char for char in '\\"[]-'}}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
ANY_CHARACTER = characters([(0, MAX_CODE)])
NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
DIGITS = frozenset("0123456789")


def gbnf(text, tokenizer=None):
    """Return the Automaton of a grammar; RequestError says in one line what is wrong with it, and where.

    tokenizer: whose tokens `<text>` and `<[id]>` are; without one they are not looked for, only the grammar is read.
    """
    if len(text) > MAX_TEXT:
        raise RequestError(f"grammar: wanted at most {MAX_TEXT} characters, got {len(text)}")
    parser = _Parser(text, tokenizer)
    rules = parser.rules()
    _check(rules, parser.where)
    check_size(rules.values())
    return Automaton({name: compact(node) for name, node in rules.items()}, Ref("root"))


class _Parser:
    """A cursor over the text; `where` has the place of each rule's first mention."""

    def __init__(self, text, tokenizer):
        self.text, self.at, self._tokenizer = text, 0, tokenizer
        self.where, self._depth = {}, 0
        self._classes, self._n_sequences = {}, 0  # {ranges: expression}, and of how many sequences of bytes they are

    def fail(self, message, at=None):
        at = self.at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        column = at - self.text.rfind("\n", 0, at)
        raise RequestError(f"grammar: line {line}, column {column}: {message}")

    def wanted(self, what):
        got = repr(self.text[self.at : self.at + 20]) if self.at < len(self.text) else "the end"
        self.fail(f"wanted {what}, got {got}")

    def peek(self, n=1):
        return self.text[self.at : self.at + n]

    def take(self, token):
        """Go behind `token` where it comes next; say whether it did."""
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def space(self, with_lines):
        """Skip blanks and comments, line ends too where `with_lines`."""
        blank = " \t\r\n" if with_lines else " \t"
        while self.peek() and (self.peek() in blank or self.peek() == "#"):
            if self.peek() == "#":
                while self.peek() and self.peek() not in "\r\n":
                    self.at += 1
            else:
                self.at += 1

    def name(self, what):
        start = self.at
        while self.peek() in NAME_CHARS and self.peek():
            self.at += 1
        if self.at == start:
            self.wanted(what)
        name = self.text[start : self.at]
        self.where.setdefault(name, start)
        return name

    def rules(self):
        rules = {}
        self.space(True)
        while self.at < len(self.text):
            start = self.at
            name = self.name("the name of a rule")
            if name in rules:
                self.fail(f"the rule {name[:60]!r} is defined twice", start)
            self.space(False)
            if not self.take("::="):
                self.wanted("'::='")
            self.space(True)
            rules[name] = self.alternatives(False)
            if self.at < len(self.text) and self.peek() not in "\r\n":
                self.wanted("the end of the line")
            self.space(True)
        return rules

    def alternatives(self, nested):
        parts = [self.sequence(nested)]
        while self.take("|"):
            self.space(True)
            parts.append(self.sequence(nested))
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def sequence(self, nested):
        parts = []
        while True:
            char = self.peek()
            if char and char in "*+?{":
                if not parts:
                    self.fail(f"wanted something before {char!r}")
                low, high = self.times(nested)
                parts[-1] = repeat(parts[-1], low, high)
            else:
                item = self.item(char, nested)
                if item is None:
                    return parts[0] if len(parts) == 1 else Seq(tuple(parts))
                parts.append(item)
            self.space(nested)

    def item(self, char, nested):
        """Read what begins with `char`; None where that ends a sequence."""
        if char == '"':
            return self.literal()
        if char == "[":
            return self.char_class()
        if char == ".":
            self.at += 1
            return ANY_CHARACTER
        if char == "(":
            return self.group()
        if char and char in "<!":
            return self.token()
        if char and char in NAME_CHARS:
            return Ref(self.name("a name"))
        return None

    def group(self):
        start = self.at
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self.fail(f"more than {MAX_DEPTH} parentheses in each other")
        self.at += 1
        self.space(True)
        inner = self.alternatives(True)
        if not self.take(")"):
            self.fail("this parenthesis is not closed", start) if self.at >= len(self.text) else self.wanted("')'")
        self._depth -= 1
        return inner

    def times(self, nested):
        """Read `*`, `+`, `?` or `{m,n}`; return (lowest, highest), None for no highest."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return bounds
        start = self.at
        self.at += 1
        low = high = self.number(nested)
        if self.take(","):
            self.space(nested)
            high = self.number(nested) if self.peek() in DIGITS and self.peek() else None
        if not self.take("}"):
            self.wanted("'}'")
        if max(low, high or 0) > MAX_REPEATS:
            self.fail(f"wanted at most {MAX_REPEATS} repetitions", start)
        if high is not None and high < low:
            self.fail(f"wanted at least {low} as the second number", start)
        return low, high

    def number(self, nested):
        self.space(nested)
        start = self.at
        while self.peek() in DIGITS and self.peek():
            self.at += 1
        if self.at == start:
            self.wanted("a number")
        digits = self.text[start : self.at]
        self.space(nested)
        return int(digits) if len(digits) < 10 else 10**10

    def literal(self):
        start, chars = self.at, []
        self.at += 1
        while not self.take('"'):
            if self.at >= len(self.text):
                self.fail("this literal is not closed", start)
            at = self.at
            code = self.char()
            if 0xD800 <= code <= 0xDFFF:
                self.fail("half a surrogate pair is no character", at)
            chars.append(chr(code))
        return lit("".join(chars))

    def char_class(self):
        start, ranges = self.at, []
        self.at += 1
        negated = self.take("^")
        while not self.take("]"):
            if self.at >= len(self.text):
                self.fail("this [ is not closed", start)
            at, first = self.at, self.char()
            last = first
            if self.peek() == "-" and self.peek(2) != "-]":
                self.at += 1
                if self.at >= len(self.text):
                    self.fail("this [ is not closed", start)
                last = self.char()
            if last < first:
                self.fail(f"the range {self.text[at : self.at][:40]!r} is empty", at)
            ranges.append((first, last))
        key = tuple(others(ranges) if negated else ranges)
        if key not in self._classes:
            self._classes[key] = found = characters(key)
            if found is None:
                self.fail("no character is in this class", start)
            self._n_sequences += len(found.parts) if isinstance(found, Alt) else 1
            if self._n_sequences > MAX_SEQUENCES:
                self.fail("too many classes of characters", start)
        return self._classes[key]

    def char(self):
        """Read one character, escaped or not; return its code."""
        if not self.take("\\"):
            self.at += 1
            return ord(self.text[self.at - 1])
        at, kind = self.at - 1, self.peek()
        self.at += 1
        if kind in ESCAPES:
            return ord(ESCAPES[kind])
        digits = self.peek(HEX_DIGITS.get(kind, 0))
        if kind not in HEX_DIGITS:
            self.fail(f"unknown escape {self.text[at : at + 2]!r}", at)
        if len(digits) < HEX_DIGITS[kind] or not all(char in "0123456789abcdefABCDEF" for char in digits):
            self.fail(f"wanted {HEX_DIGITS[kind]} hexadecimal digits behind \\{kind}", at)
        self.at += len(digits)
        code = int(digits, 16)
        if code > MAX_CODE:
            self.fail(f"there is no character {digits}", at)
        return code

    def token(self):
        start = self.at
        negated = self.take("!")
        if not self.take("<"):
            self.wanted("'<'")
        if self.take("["):
            token = self.number(False)
            if not self.take("]>"):
                self.wanted("']>'")
            if self._tokenizer and token >= self._tokenizer.n_vocab:
                self.fail(f"wanted a token below {self._tokenizer.n_vocab}, the vocabulary's size", start)
            return Tok(token, negated)
        end = self.text.find(">", self.at)
        if end < 0:
            self.wanted("'>'")
        name, self.at = self.text[self.at - 1 : end + 1], end + 1
        ids = self._tokenizer.encode(name, add_special=False) if self._tokenizer else [0]
        if len(ids) != 1:
            self.fail(f"{name[:60]!r} is not one token of this model but {len(ids)}", start)
        return Tok(ids[0], negated)


def _check(rules, where):
    """RequestError where a rule is missing or can come to itself again without a byte in between."""
    if "root" not in rules:
        raise RequestError("grammar: wanted a rule 'root', where the text begins")
    missing = next((name for name in where if name not in rules), None)
    if missing is not None:
        raise RequestError(f"grammar: the rule {missing[:60]!r} is not defined")
    empty = _empty_rules(rules)
    nexts = {name: list(_firsts(node, empty)) for name, node in rules.items()}
    done = set()
    for name in rules:
        path = [(name, iter(nexts[name]))] if name not in done else []
        active = {name} if path else set()
        while path:
            follower = next(path[-1][1], None)
            if follower is None:
                active.discard(path[-1][0])
                done.add(path.pop()[0])
            elif follower in active:
                what = f"the rule {follower[:60]!r} begins with itself (left recursion)"
                raise RequestError(f"grammar: {what}: write what repeats with * or behind something")
            elif follower not in done:
                active.add(follower)
                path.append((follower, iter(nexts[follower])))


def _empty_rules(rules):
    """Return the names of the rules that the empty text fits."""
    users = {}
    for name, node in rules.items():
        for used in _refs(node):
            users.setdefault(used, set()).add(name)
    empty, waiting = set(), list(rules)
    while waiting:
        name = waiting.pop()
        if name not in empty and _may_be_empty(rules[name], empty):
            empty.add(name)
            waiting += users.get(name, ())
    return empty


def _refs(node):
    if isinstance(node, Ref):
        yield node.name
    elif isinstance(node, (Seq, Alt)):
        for part in node.parts:
            yield from _refs(part)
    elif isinstance(node, (Star, Repeat)):
        yield from _refs(node.part)


def _may_be_empty(node, empty):
    if isinstance(node, Ref):
        return node.name in empty
    if isinstance(node, Seq):
        return all(_may_be_empty(part, empty) for part in node.parts)
    if isinstance(node, Alt):
        return any(_may_be_empty(part, empty) for part in node.parts)
    if isinstance(node, Repeat):
        return node.low == 0 or _may_be_empty(node.part, empty)
    return isinstance(node, Star) or node == EMPTY


def _firsts(node, empty):
    """Yield the rules that can come first in an expression."""
    if isinstance(node, Ref):
        yield node.name
    elif isinstance(node, Alt):
        for part in node.parts:
            yield from _firsts(part, empty)
    elif isinstance(node, Seq):
        for part in node.parts:
            yield from _firsts(part, empty)
            if not _may_be_empty(part, empty):
                return
    elif isinstance(node, (Star, Repeat)):
        yield from _firsts(node.part, empty)

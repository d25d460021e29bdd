"""GBNF against a recogniser that tries every way: which texts fit, which tokens may come; and what is refused."""

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacy.errors import RequestError
from llamacy.generate.constraint import Constraint, TokenTable
from llamacy.generate.engine import Engine
from llamacy.generate.gbnf import gbnf
from llamacy.generate.request import Request
from llamacy.generate.samplers.params import SamplingParams
from llamacy.generate.utf8 import characters
from tests.generate.fakes import BOS, END, EOS, N_VOCAB, FakeModel, FakeTokenizer

# -- the recogniser: expressions as tuples, matched by backtracking over bytes -----------------------------------------


def ends(node, rules, data, i, unfinished):
    """Yield where a match of `node` at data[i:] can end; unfinished.append(1) where more bytes could go on."""
    kind, *args = node
    if kind == "class":
        chars, negated = args
        for char in whole_chars(data, i, unfinished, chars, negated):
            if (char in chars) != negated:
                yield i + len(char.encode())
    elif kind == "text":
        wanted = args[0].encode()
        if data[i : i + len(wanted)] == wanted:
            yield i + len(wanted)
        elif wanted.startswith(data[i:]):
            unfinished.append(1)
    elif kind == "seq":
        yield from sequence(args, rules, data, i, unfinished)
    elif kind == "alt":
        for part in args:
            yield from ends(part, rules, data, i, unfinished)
    elif kind == "times":
        part, low, high = args
        yield from times(part, low, high, rules, data, i, unfinished)
    else:
        yield from ends(rules[args[0]], rules, data, i, unfinished)


def sequence(parts, rules, data, i, unfinished):
    if not parts:
        yield i
        return
    for end in ends(parts[0], rules, data, i, unfinished):
        yield from sequence(parts[1:], rules, data, end, unfinished)


def times(part, low, high, rules, data, i, unfinished):
    if low == 0:
        yield i
    if high != 0:
        for end in ends(part, rules, data, i, unfinished):
            if end > i or low:  # going on without a byte adds nothing
                rest = None if high is None else high - 1
                yield from times(part, max(low - 1, 0), rest, rules, data, end, unfinished)


def whole_chars(data, i, unfinished, chars, negated):
    """Yield the character at data[i:]; where the data end within one, see whether one of the class begins so."""
    rest = data[i:]
    for n in range(1, 5) if rest else ():
        try:
            yield rest[:n].decode()
            return
        except UnicodeDecodeError:
            continue
    listed = sum(char.encode().startswith(rest) for char in chars)
    if BEGINNINGS[rest] > listed if negated else listed:
        unfinished.append(1)


# Characters with every lead byte and every second byte that UTF-8 has.
ALL = [
    *map(chr, range(0x800)),
    *map(chr, range(0x800, 0xD800, 0x35)),
    *map(chr, range(0xE000, 0x10000, 0x35)),
    *map(chr, range(0x10000, 0x110000, 0xFFD)),
]
BEGINNINGS = Counter(char.encode()[:n] for char in ALL for n in range(len(char.encode())))


def recognise(rules, data):
    """Return (whether data is a text of the grammar, whether one begins so)."""
    unfinished = []
    found = set(ends(rules["root"], rules, data, 0, unfinished))
    return len(data) in found, len(data) in found or bool(unfinished)


def written(node):
    """Return an expression as GBNF."""
    kind, *args = node
    if kind == "class":
        return "[" + "^" * args[1] + "".join(sorted(args[0])) + "]"
    if kind == "text":
        return '"' + args[0] + '"'
    if kind == "seq":
        return "(" + " ".join(map(written, args)) + ")"
    if kind == "alt":
        return "(" + " | ".join(map(written, args)) + ")"
    if kind == "times":
        part, low, high = args
        signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
        span = f"{{{low}}}" if low == high else f"{{{low},{'' if high is None else high}}}"
        return written(part) + signs.get((low, high), span)
    return args[0]


CHARS = "ab\u00e9\u65e5"
LEAVES = st.builds(lambda text: ("text", text), st.text(CHARS, min_size=1, max_size=3)) | st.builds(
    lambda chars, negated: ("class", frozenset(chars), negated),
    st.sets(st.sampled_from(CHARS), min_size=1),
    st.booleans(),
)


def expressions(names):
    leaves = LEAVES | st.sampled_from([("rule", name) for name in names]) if names else LEAVES
    bounds = st.tuples(st.integers(0, 2), st.none() | st.integers(2, 3))
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda parts: ("seq", *parts))
            | st.lists(inner, min_size=1, max_size=3).map(lambda parts: ("alt", *parts))
            | st.builds(lambda part, span: ("times", part, *span), inner, bounds)
        ),
        max_leaves=6,
    )


@st.composite
def grammars(draw):
    """Rules that use later ones anywhere and themselves behind a text: no left recursion."""
    names = ["root", "x-1", "y_2"]
    rules = {}
    for i, name in enumerate(names):
        body = draw(expressions(names[i + 1 :]))
        again = ("seq", draw(LEAVES), ("rule", name))
        rules[name] = ("alt", body, again) if draw(st.booleans()) else body
    return rules


@settings(max_examples=60, deadline=None)
@given(grammars(), st.lists(st.text(CHARS + "c", max_size=5), min_size=1, max_size=4))
def test_random_grammars_against_the_recogniser(rules, texts):
    automaton = gbnf("\n".join(f"{name} ::= {written(node)}" for name, node in rules.items()))
    for text in texts:
        data = text.encode()
        for end in range(len(data) + 1):
            state = automaton.run(0, data[:end])
            assert (automaton.may_end(state), state != automaton.DEAD) == recognise(rules, data[:end]), data[:end]


@settings(max_examples=25, deadline=None)
@given(grammars(), st.data())
def test_the_mask_is_what_the_recogniser_says_of_each_token(rules, data):
    """Tokens are bytes, several characters and parts of one; end tokens fit where the text may end."""
    text = "\n".join(f"{name} ::= {written(node)}" for name, node in rules.items())
    table = TokenTable(FakeTokenizer(), N_VOCAB)
    constraint, so_far = Constraint(gbnf(text), table), b""
    for _ in range(3):
        mask = constraint.mask()
        for token in [*b"abc\xc3\xa9\xe6\x97\xa5\xc0\xff", 259, 261, BOS, EOS, END]:
            piece = FakeTokenizer().token_bytes(token)
            whole, _ = recognise(rules, so_far)
            expected = whole if token in (EOS, END) else bool(piece) and recognise(rules, so_far + piece)[1]
            assert mask[token] == expected == constraint.allows(token), (so_far, token)
        usable = [token for token in [*b"ab\xc3\xa9\xe6\x97\xa5", 261] if mask[token]]
        if not usable:
            break
        token = data.draw(st.sampled_from(usable))
        constraint.accept(token)
        so_far += FakeTokenizer().token_bytes(token)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 0x2000)), min_size=1, max_size=3))
def test_sets_of_characters_are_their_utf8(ranges):
    ranges = [(first, min(first + size, 0x10FFFF)) for first, size in ranges]
    edges = {code + d for pair in ranges for code in pair for d in (-1, 0, 1)} | {0x7F, 0x80, 0x7FF, 0x800, 0xFFFF}
    found = characters(ranges)
    for code in edges:
        if not 0 <= code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            continue
        data = chr(code).encode()
        fits = found is not None and any(
            len(node) == len(data) and all(byte in some.of for byte, some in zip(data, node, strict=True))
            for node in sequences(found)
        )
        assert fits == any(first <= code <= last for first, last in ranges), hex(code)


def sequences(node):
    """Return an expression of characters as lists of byte sets."""
    parts = node.parts if hasattr(node, "parts") and not all(hasattr(part, "of") for part in node.parts) else [node]
    return [list(part.parts) if hasattr(part, "parts") else [part] for part in parts]


# -- by hand -----------------------------------------------------------------------------------------------------------

# A grammar, texts that fit it, texts that do not.
EXAMPLES = [
    ('root ::= "a\\n\\t\\r\\"\\\\\\[\\]\\-" "\\x41\\u00e9\\U0001F600"', ['a\n\t\r"\\[]-A\u00e9\U0001f600'], ["a"]),
    (r'root ::= [\x30-\x39]+ [\u65e5-\u65e7] [^\x00-\x7F]', ["7\u65e5\u00e9", "12\u65e7\U0001f600"],
     ["7\u65e8\u00e9", "7\u65e5a"]),
    (r"root ::= [a\]\-^\n]+ [-x] [x-] [^^]", ["]-^\na-x-"], ["b-x-", "a-x-^"]),
    ("root ::= .", ["a", "\n", "\u65e5", "\U0001f600"], ["", "ab"]),
    ('root ::= ""', [""], ["a"]),
    ('root ::= "a" | | "b"', ["a", "", "b"], ["ab"]),
    ('root ::= "ab"{2} "c"{1,} "d"{,2}'.replace("{,2}", "{0,2}"), ["ababc", "ababccdd"], ["abc", "abab", "ababcddd"]),
    ('root ::= ("a" | "bc")+ "d"? [e]*', ["abcad", "bcee"], ["d", "abd"]),
    ('root ::= ("a"? "b"?)* "c"', ["c", "abbac"], ["ab"]),
    ('root ::= "a"{ 2 , 3 }{2}', ["aaaa", "aaaaaa"], ["aaa", "aaaaaaa"]),
    ('# a comment\n\nroot ::= (\n  # inside\n  x-1\n  | y_2 # behind\n) \r\n\r\nx-1 ::=\n "x"\ny_2 ::= "y" |\n "z"\n#',
     ["x", "y", "z"], ["xy"]),
    ('root ::= "(" root ")" | ""', ["", "(())"], ["(()", "())"]),
    ('root ::= item ("," item)*\nitem ::= [0-9]+', ["1,23"], ["1,", ",1"]),
    ('root ::= ("1. " move " " move "\\n" ([1-9] [0-9]? ". " move " " move "\\n")+)\n'
     "move ::= (pawn | nonpawn | castle) [+#]?\nnonpawn ::= [NBKQR] [a-h]? [1-8]? \"x\"? [a-h] [1-8]\n"
     'pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?\ncastle ::= "O-O" "-O"?',
     ["1. e4 e5\n2. Nf3 Nc6\n", "1. e4 e5\n10. O-O-O exd5+\n"], ["1. e4 e5\n", "1. e9 e5\n2. Nf3 Nc6\n"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "right", "wrong"), EXAMPLES)
def test_examples(text, right, wrong):
    automaton = gbnf(text)
    for example in right:
        assert automaton.may_end(automaton.run(0, example.encode())), example
    for example in wrong:
        assert not automaton.may_end(automaton.run(0, example.encode())), example


WRONG = [
    ("", "grammar: wanted a rule 'root', where the text begins"),
    ('item ::= "a"', "grammar: wanted a rule 'root'"),
    ("root ::= item", "grammar: the rule 'item' is not defined"),
    ('root ::= "a"\nother ::= missing', "grammar: the rule 'missing' is not defined"),
    ('root ::= "a"\nroot ::= "b"', "grammar: line 2, column 1: the rule 'root' is defined twice"),
    ('root ::= root "a" | "b"', "the rule 'root' begins with itself (left recursion)"),
    ('root ::= a\na ::= b "x"\nb ::= "c"? a', "the rule 'a' begins with itself"),
    ('root ::= (ws root)* "x"\nws ::= " "*', "the rule 'root' begins with itself"),
    ('root = "a"', "line 1, column 6: wanted '::=', got '= \"a\"'"),
    ('root ::= "a', "line 1, column 10: this literal is not closed"),
    ("root ::= [a", "line 1, column 10: this [ is not closed"),
    ('root ::= ("a"', "line 1, column 10: this parenthesis is not closed"),
    ('root ::= "a")', "wanted the end of the line, got ')'"),
    ('root ::= "a" "b"\n  "c"', "line 2, column 3: wanted the name of a rule, got '\"c\"'"),
    ("root ::= *", "line 1, column 10: wanted something before '*'"),
    ('root ::= "a"{', "wanted a number, got the end"),
    ('root ::= "a"{2', "wanted '}', got the end"),
    ('root ::= "a"{3,2}', "wanted at least 3 as the second number"),
    ('root ::= "a"{1,99999999999999999999}', "wanted at most 10000 repetitions"),
    ("root ::= []", "no character is in this class"),
    ("root ::= [z-a]", "the range 'z-a' is empty"),
    (r"root ::= [^\x00-\U0010FFFF]", "no character is in this class"),
    (r'root ::= "\q"', r"unknown escape '\\q'"),
    (r'root ::= "\x4"', r"wanted 2 hexadecimal digits behind \x"),
    (r'root ::= "\uD83D"', "half a surrogate pair is no character"),
    (r'root ::= "\U00110000"', "there is no character 00110000"),
    ("root ::= <nothing>", "'<nothing>' is not one token of this model but 9"),
    (f"root ::= <[{N_VOCAB}]>", f"wanted a token below {N_VOCAB}"),
    ("root ::= " + "(" * 5000, "more than 100 parentheses in each other"),
    ("root ::= " + " ".join(f"[^\\U000{code:05x}]" for code in range(12_000)), "too many classes of characters"),
    ("x" * 2_000_000, "wanted at most 1048576 characters, got 2000000"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_is_said_in_one_line(text, message):
    with pytest.raises(RequestError) as caught:
        gbnf(text, FakeTokenizer())
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_tokens_as_wholes():
    """<[id]> and !<[id]> are about tokens, whatever their bytes; a token may fit by its bytes at the same time."""
    table = TokenTable(FakeTokenizer(), N_VOCAB)
    constraint = Constraint(gbnf('root ::= <[260]> !<[97]> ("x" | <[120]> "y")', FakeTokenizer()), table)
    assert constraint.mask().nonzero()[0].tolist() == [260] and not constraint.allows(ord("s"))
    constraint.accept(260)
    assert not constraint.allows(97) and constraint.allows(98) and not constraint.allows(EOS)
    expected = [id not in (97, EOS, END) for id in range(N_VOCAB)]
    assert constraint.mask().tolist() == expected
    constraint.accept(259)
    constraint.accept(120)
    assert constraint.allows(EOS) and constraint.allows(ord("y")) and not constraint.is_over


HOSTILE = [
    'root ::= "a" root "b" | "a" root "c" | ""',
    "root ::= (" + "[ab]* " * 200 + ")* ",
    "root ::= (([ab]{0,1000}){0,1000}){0,1000}",
    "root ::= " + " | ".join(["[^\\n]*"] * 3000),
    "root ::= x0\n" + "".join(f"x{i} ::= x{i + 1} x{i + 1} | x{i + 1}\n" for i in range(25)) + 'x25 ::= "a"?',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_grammar_cannot_hold_up_the_engine(text):
    """It either is followed or fails within a bounded number of steps for each token."""
    table = TokenTable(FakeTokenizer(), N_VOCAB)
    try:
        constraint = Constraint(gbnf(text), table)
        spent = 0
        for _ in range(8):
            began = time.process_time()
            constraint.allows(ord("a"))
            constraint.mask()
            constraint.accept(ord("a"))
            spent = max(spent, time.process_time() - began)
    except RequestError as error:
        assert "too ambiguous, or too large" in str(error)


def test_a_grammar_that_costs_too_much_ends_its_own_request_only():
    model = FakeModel(answer=b"a" * 400, prompt_length=1)
    engine, table = Engine(model, n_ctx=2000, n_slots=2), TokenTable(model.tokenizer, N_VOCAB)
    bad = Request([BOS], SamplingParams(temperature=0), constraint=Constraint(gbnf(HOSTILE[0]), table), n_predict=300)
    good = Request([BOS], SamplingParams(temperature=0), constraint=Constraint(gbnf('root ::= "a"{3}'), table))
    engine.submit(bad)
    engine.submit(good)
    while bad.result is None or good.result is None:
        engine.step()
    assert isinstance(bad.result.error, RequestError) and "too ambiguous" in str(bad.result.error)
    assert good.result.stop_type == "eos" and good.result.timings.predicted_n == 3

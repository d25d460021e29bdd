"""The grammar of JSON, whatever it says; schema_grammar.py narrows it to what a schema describes.

White space is at most one space or a line break with indentation, and numbers have at most 16 digits: a model that is
free to write either without end does so.
"""

from llamacy.generate.automaton import Automaton
from llamacy.generate.grammar import EMPTY, Ref, alt, check_size, compact, lit, optional, repeat, seq, some

DIGIT, SIGN, HEX = some("0123456789"), optional(some("-+")), some("0123456789abcdefABCDEF")
TAIL = some(0x80, 0xBF)
# One character of UTF-8 beyond ASCII: no overlong forms, no surrogates (RFC 3629, table 3-7 of Unicode).
BEYOND_ASCII = alt(
    seq(some(0xC2, 0xDF), TAIL),
    seq(some(0xE0, 0xE0), some(0xA0, 0xBF), TAIL),
    seq(some(0xE1, 0xEC), TAIL, TAIL),
    seq(some(0xED, 0xED), some(0x80, 0x9F), TAIL),
    seq(some(0xEE, 0xEF), TAIL, TAIL),
    seq(some(0xF0, 0xF0), some(0x90, 0xBF), TAIL, TAIL),
    seq(some(0xF1, 0xF3), TAIL, TAIL, TAIL),
    seq(some(0xF4, 0xF4), some(0x80, 0x8F), TAIL, TAIL),
)
PLAIN = some("".join(chr(code) for code in range(0x20, 0x80) if chr(code) not in '"\\'))
SHORT = seq(lit("\\"), some('"\\/bfnrt'))
CHAR = alt(PLAIN, BEYOND_ASCII, SHORT, seq(lit("\\u"), HEX, HEX, HEX, HEX))
STRING = seq(lit('"'), repeat(CHAR, 0), lit('"'))
# The same where characters are counted: two escapes that make one character count as one, halves of such never come.
COUNTED = alt(
    PLAIN,
    BEYOND_ASCII,
    SHORT,
    seq(lit("\\u"), alt(seq(some("0123456789abcefABCEF"), HEX), seq(some("dD"), some("01234567"))), HEX, HEX),
    seq(lit("\\u"), some("dD"), some("89abAB"), HEX, HEX, lit("\\u"), some("dD"), some("cdefCDEF"), HEX, HEX),
)
WHOLE = alt(lit("0"), seq(some("123456789"), repeat(DIGIT, 0, 15)))
INTEGER = seq(optional(lit("-")), WHOLE)
FRACTION = seq(lit("."), repeat(DIGIT, 1, 16))
NUMBER = seq(INTEGER, optional(FRACTION), optional(seq(some("eE"), SIGN, repeat(DIGIT, 1, 3))))
SPACE = alt(EMPTY, lit(" "), seq(lit("\n"), repeat(some(" \t"), 0, 20)))
BOOLEAN, NULL = alt(lit("true"), lit("false")), lit("null")


def separated(open_, item, close, low=0, high=None):
    """Return `open_`, from `low` to `high` items with commas between them, `close`."""
    more = seq(lit(","), SPACE, item, SPACE)
    some_items = seq(item, SPACE, repeat(more, max(low - 1, 0), None if high is None else max(high - 1, 0)))
    body = EMPTY if high == 0 else some_items if low else optional(some_items)
    return seq(lit(open_), SPACE, body, lit(close))


def member(key, value):
    """Return a member of an object."""
    return seq(key, SPACE, lit(":"), SPACE, value)


VALUE = Ref("value")
OBJECT, ARRAY = separated("{", member(STRING, VALUE), "}"), separated("[", VALUE, "]")
RULES = {"value": alt(OBJECT, ARRAY, STRING, NUMBER, BOOLEAN, NULL)}


def json_object():
    """Return the Automaton of any JSON object."""
    return Automaton(RULES, OBJECT)


def json_schema(schema):
    """Return the Automaton of the JSON that `schema` describes; RequestError names a keyword that cannot be kept."""
    rules = {}
    return automaton_of(rules, schema_expression(schema, rules))


def schema_expression(schema, rules, where="schema"):
    """Return the expression of the JSON that `schema` describes; what it refers to is added to `rules`."""
    from llamacy.generate.schema_grammar import Converter

    return Converter(schema, rules).convert(schema, where, 0)


def automaton_of(rules, root):
    """Return the Automaton of an expression with JSON in it."""
    check_size([*rules.values(), root])
    return Automaton(RULES | {name: compact(node) for name, node in rules.items()}, compact(root))

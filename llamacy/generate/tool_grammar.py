"""Grammars for answers with calls of tools: arguments that follow their schemas, in a family's format.

An expression for text with calls in it is made of the rest of the grammar modules; `marker` says whether a mark such as
[TOOL_CALLS] is a control token of the model or text.
"""

from llamacy.errors import RequestError
from llamacy.generate.grammar import EMPTY, Ref, Some, Star, Tok, alt, lit, optional, repeat, seq
from llamacy.generate.json_grammar import OBJECT, SPACE, automaton_of, schema_expression

ANY_BYTES = Star(Some(frozenset(range(256))))


def marker(text, tokenizer):
    """Return the expression of a mark: the token, where it is a control token, else its text."""
    ids = tokenizer.encode(text, add_special=False)
    return Tok(ids[0]) if len(ids) == 1 and tokenizer.is_special(ids[0]) else lit(text)


def until(text, tokenizer, rules, then, may_end=False):
    """Return any text up to a mark and the mark, then `then`; may_end: or any text without the mark at all."""
    mark = marker(text, tokenizer)
    if isinstance(mark, Tok):
        found = seq(ANY_BYTES, mark, then)
        return alt(found, ANY_BYTES) if may_end else found
    data, name = text.encode(), f"until {text} {len(rules)} "
    for i in range(len(data)):
        nexts = {}
        for byte in range(256):
            nexts.setdefault(_matched(data, i, byte), set()).add(byte)
        parts = [
            seq(Some(frozenset(bytes_)), then if n == len(data) else Ref(f"{name}{n}")) for n, bytes_ in nexts.items()
        ]
        rules[f"{name}{i}"] = alt(*([EMPTY] if may_end else []), *parts)
    return Ref(f"{name}0")


def _matched(data, n, byte):
    """Return how many bytes of `data` the last bytes are, after n of them and one more."""
    tail = data[:n] + bytes([byte])
    return next(size for size in range(len(tail), -1, -1) if tail.endswith(data[:size]))


def arguments_of(tool, rules, is_strict):
    """Return the expression of a tool's arguments; where its schema cannot be followed and need not be, any object."""
    name, schema = tool["name"], tool.get("parameters") or {}
    if not schema.get("properties") and schema.get("additionalProperties") is None and "$ref" not in schema:
        schema = {"type": "object", "additionalProperties": False}
    try:
        return schema_expression(schema, rules, f"tools.{name}.parameters")
    except RequestError:
        if is_strict or tool.get("strict"):
            raise
        return OBJECT


def calls(format, tools, tokenizer, rules, many, is_strict):
    """Return one call of any of the tools (their `function` objects), or several, without what opens the first."""
    opening, closing = marker(format.opening, tokenizer), format.closing and marker(format.closing, tokenizer)
    pairs = [(tool["name"], arguments_of(tool, rules, is_strict)) for tool in tools]
    if format.reader == "channels":
        head = [lit("commentary to=functions."), lit(" "), marker("<|constrain|>", tokenizer), lit("json")]
        message = marker("<|message|>", tokenizer)
        return alt(*(seq(head[0], lit(name), *head[1:], message, arguments) for name, arguments in pairs))
    if format.name == "mistral-args":
        one = alt(*(seq(lit(name), marker("[ARGS]", tokenizer), arguments) for name, arguments in pairs))
        return seq(one, repeat(seq(opening, one), 0)) if many else one
    if format.reader == "gemma":
        raise RequestError("tool_choice: this model's calls are no JSON: only auto and none are supported")
    one = alt(*(_object(format, name, arguments) for name, arguments in pairs))
    if format.in_list:
        return seq(lit("["), one, *([repeat(seq(lit(", "), one), 0)] if many else []), lit("]"))
    if not closing:
        return seq(one, repeat(seq(lit("; "), one), 0)) if many else one
    whole = seq(SPACE, one, SPACE, closing)
    return seq(whole, repeat(seq(SPACE, opening, whole), 0)) if many else whole


def _object(format, name, arguments):
    import json

    head = '{"name": ' + json.dumps(name, ensure_ascii=False) + f', "{format.arguments_key}": '
    return seq(lit(head), arguments, lit("}"))


def answer_automaton(tokenizer, *, format=None, tools=(), must_call=False, many=False, inner=None, thoughts=None):
    """Return the Automaton of an answer, None where anything may come.

    tools: those that may be called; must_call: one of them is, with arguments of its schema. inner: the Automaton of
    what stands there otherwise. thoughts: the mark that ends the thoughts in which the answer begins.
    """
    rules = dict(inner.rules) if inner else {}
    root = inner and _in_channel(inner.root, format, tokenizer)
    if tools and (must_call or format.reader == "json" and format.closing or format.reader == "mistral"):
        body = calls(format, tools, tokenizer, rules, many, must_call)
        opened = body if format.name == "llama3" else seq(marker(format.opening, tokenizer), body)
        if must_call:
            root = opened
        elif root is not None:
            root = alt(opened, root)
        else:
            root = until(format.opening, tokenizer, rules, body, may_end=True)
    if root is None:
        return None
    if thoughts:
        root = until(thoughts, tokenizer, rules, seq(optional(lit("\n")), optional(lit("\n")), root))
    return automaton_of(rules, root)


def _in_channel(root, format, tokenizer):
    """Return what is to be said, in the channel for it where the model has channels."""
    if format is None or format.reader != "channels":
        return root
    return seq(marker("<|channel|>", tokenizer), lit("final"), marker("<|message|>", tokenizer), root)

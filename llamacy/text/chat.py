"""Conversations as the text that a model was trained on: its own Jinja template, or a built-in format.

`template_for` says which, `render` writes it. Templates come with model files, so they run in Jinja's sandbox, set up
as transformers does (trim_blocks, lstrip_blocks, loop controls, raise_exception, strftime_now, its tojson, the
`{% generation %}` block). Built-in formats need no Jinja.
"""

import json
import os
import warnings
from datetime import datetime
from functools import lru_cache

from llamacy.errors import LlamacyError, RequestError
from llamacy.text.chat_formats import FORMATS

ROLES = {"developer": "system"}  # OpenAI's newer name for the same


def template_for(metadata, override=None):
    """Return the template of a model: Jinja source from its file, or the name of a built-in format.

    override: a built-in format's name, a template's name in the model file, or the path of a Jinja template. A model
    without a template gets chatml, with a warning.
    """
    if override:
        return _chosen(metadata, override)
    template = metadata.get("tokenizer.chat_template")
    if template:
        return template
    warnings.warn("the model has no chat template: using chatml; choose another with --chat-template", stacklevel=2)
    return "chatml"


def _chosen(metadata, name):
    named = metadata.get(f"tokenizer.chat_template.{name}")
    if name in FORMATS or named:
        return named or name
    if not os.path.exists(name):
        raise LlamacyError(f"chat template {name!r}: no such file, nor one of {', '.join(sorted(FORMATS))}")
    try:
        with open(name, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise LlamacyError(f"chat template {name!r}: cannot be read as UTF-8 text: {error}") from error


def render(messages, template, *, bos, eos, add_generation_prompt=True, **variables):
    """Return a conversation as text, up to where the assistant's answer begins.

    messages: [{"role", "content"}, ...] with content as text. template: from `template_for`. bos, eos: the tokens'
    texts. variables: more names for Jinja templates, such as `tools`. Built-in formats leave the first BOS to the
    tokenizer; Jinja templates usually write it themselves.
    """
    if template in FORMATS:
        turns = [_turn(message, template) for message in messages]
        return FORMATS[template].render(turns, bos, eos, add_generation_prompt)
    jinja2, compiled = _compile(template)
    values = {"tools": None, "documents": None, **variables}
    values |= {"messages": messages, "add_generation_prompt": add_generation_prompt, "bos_token": bos, "eos_token": eos}
    try:
        return compiled.render(**values)
    except jinja2.TemplateError as error:
        raise RequestError(f"the chat template refuses this conversation: {error}") from error
    except Exception as error:  # whatever else the template's own code runs into
        raise RequestError(f"the chat template fails on this conversation: {type(error).__name__}: {error}") from error


def _turn(message, template):
    role, content = ROLES.get(message.get("role"), message.get("role")), message.get("content")
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise RequestError(
            f"chat format {template}: wanted messages of system, user or assistant with text, "
            f"got role {role!r} with {type(content).__name__}"
        )
    return role, content


@lru_cache(maxsize=16)
def _compile(template):
    """Return (the jinja2 module, the compiled template)."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise LlamacyError(
            "the model's chat template needs jinja2: pip install 'llamacy[chat]', or name a built-in format "
            "(--chat-template chatml)"
        ) from None

    class Generation(jinja2.ext.Extension):
        """`{% generation %}...{% endgeneration %}` marks the assistant's own words; here it only shows them."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _strftime_now}
    try:
        return jinja2, environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise RequestError(f"the chat template is not valid: line {error.lineno}: {error.message}") from error


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form):
    return datetime.now().strftime(form)

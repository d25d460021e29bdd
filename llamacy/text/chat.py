"""Conversations as the text that a model was trained on: its own Jinja template, or a built-in format.

`template_for` says which, `render` writes it. Templates come with model files, so they run within limits, in a process
of their own (llamacy.text.jinja). Built-in formats need no Jinja.
"""

import os
import warnings

from llamacy.errors import LlamacyError, RequestError, shown
from llamacy.text.chat_formats import FORMATS

ROLES = {"developer": "system"}  # OpenAI's newer name for the same
MAX_SOURCE = 1 << 20  # characters of a template: the longest real ones have some 30,000
# what render itself tells a template: values from elsewhere cannot have these names
OWN_NAMES = frozenset({"messages", "template", "bos", "eos", "bos_token", "eos_token", "add_generation_prompt"})
KEY = "tokenizer.chat_template"  # in a model's metadata; others follow it behind a dot, by name


class Template(str):
    """Jinja source; `name` is what errors call it."""

    def __new__(cls, source, where):
        self = super().__new__(cls, source)
        self.name = f"the chat template {where}"
        return self


def template_for(metadata, override=None):
    """Return the template of a model: Jinja source from its file (a Template), or the name of a built-in format.

    override: a built-in format's name, a template's name in the model file, the path of a Jinja template, its source,
    or a Template that was found before. A model without a template gets chatml, with a warning.
    """
    if isinstance(override, Template):
        return override
    if override:
        return _chosen(metadata, override)
    template = _of_model(metadata, KEY)
    if template is None:
        warnings.warn("the model has no chat template: using chatml; choose another with --chat-template", stacklevel=2)
        return "chatml"
    return template


def _of_model(metadata, key):
    """Return the Template under a metadata key, None where there is none or an empty one."""
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError(f"{key}: wanted a chat template as text, got {shown(value)}; name one with --chat-template")
    return Template(value, key) if value else None


def _chosen(metadata, name):
    named = _of_model(metadata, f"{KEY}.{name}")
    if name in FORMATS or named:
        return named or name
    if not os.path.exists(name) and ("{%" in name or "{{" in name):
        return Template(name, "given as text")
    if not os.path.exists(name):
        raise LlamacyError(f"chat template {shown(name)}: no such file, nor one of {', '.join(sorted(FORMATS))}")
    try:
        with open(name, encoding="utf-8") as file:
            return Template(file.read(MAX_SOURCE + 1), name)
    except (OSError, UnicodeDecodeError) as error:
        raise LlamacyError(f"chat template {shown(name)}: cannot be read as UTF-8 text: {error}") from error


def render(messages, template, *, bos, eos, add_generation_prompt=True, **variables):
    """Return a conversation as text, up to where the assistant's answer begins.

    messages: [{"role", "content"}, ...] with content as text. template: from `template_for`. bos, eos: the tokens'
    texts. variables: more names for Jinja templates, such as `tools`. Built-in formats leave the first BOS to the
    tokenizer; Jinja templates usually write it themselves. RequestError, one line, where the template does not write
    this conversation.
    """
    if template in FORMATS:
        turns = [_turn(message, template) for message in messages]
        return FORMATS[template].render(turns, bos, eos, add_generation_prompt)
    name = getattr(template, "name", "the chat template")
    if len(template) > MAX_SOURCE:
        raise RequestError(f"{name} is not valid: wanted at most {MAX_SOURCE} characters, got {len(template)}")
    # Late: what starts processes costs time, and a built-in format has no use for it.
    from llamacy.text import jinja

    values = {"tools": None, "documents": None, **variables}
    values |= {"messages": messages, "add_generation_prompt": add_generation_prompt, "bos_token": bos, "eos_token": eos}
    return jinja.render(template, values, name)


def _turn(message, template):
    role, content = ROLES.get(message.get("role"), message.get("role")), message.get("content")
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise RequestError(
            f"chat format {template}: wanted messages of system, user or assistant with text, "
            f"got role {shown(role)} with {type(content).__name__}"
        )
    return role, content

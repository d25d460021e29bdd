"""Is a chat template another model's? Its markers are then no tokens of this one's vocabulary but many."""

import re

from llamacy.errors import LlamacyError, some

# Names of special tokens as models' templates write them. What stands in [] or is a plain <tag> may be text on purpose.
MARKER = re.compile(r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜]{1,40}｜>|<(?:start|end)_of_[a-z]{1,20}>")
PROBE = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]


def strange_markers(text, tokenizer):
    """Return the markers in a template's text that are more than one token to a tokenizer."""
    found = dict.fromkeys(MARKER.findall(text))
    return [marker for marker in found if len(tokenizer.encode(marker, add_special=False)) > 1]


def note_on(render, tokenizer):
    """Return a line where `render(messages, add_generation_prompt)` writes another model's markers, None elsewhere."""
    try:
        strange = strange_markers(render(PROBE, False), tokenizer)
    except LlamacyError:  # the data's own messages may be what it wants
        return None
    if not strange:
        return None
    parts = len(tokenizer.encode(strange[0], add_special=False))
    return (
        f"warning: the chat template may not fit this model: {some(strange)}: no token of its vocabulary (the first "
        f"is {parts} of its tokens); see --chat-template"
    )

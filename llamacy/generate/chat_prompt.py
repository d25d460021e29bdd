"""From a conversation to the token ids that ask for its next answer."""

from llamacy.generate.text_stream import prompt_ids
from llamacy.text.chat import render


def special_text(tokenizer, token):
    """Return a special token's name, "" without such a token."""
    return "" if token is None else tokenizer.token_bytes(token).decode("utf-8", "replace")


def chat_text(messages, template, tokenizer, **values):
    """Return [{"role", "content"}, ...] as the text that the model was trained on, up to where its answer begins.

    template: from llamacy.text.chat.template_for. values: more names for a Jinja template (`enable_thinking`).
    LlamacyError when the template refuses the conversation.
    """
    bos, eos = (special_text(tokenizer, token) for token in (tokenizer.bos_id, tokenizer.eos_id))
    return render(messages, template, **{**values, "bos": bos, "eos": eos})


def chat_ids(messages, template, tokenizer, **values):
    """Return the ids of chat_text, with one BOS where both the template and the tokenizer would write it."""
    return text_ids(chat_text(messages, template, tokenizer, **values), tokenizer)


def text_ids(text, tokenizer):
    """Return the ids of a conversation's text."""
    ids = prompt_ids(tokenizer, text)
    return ids[1:] if tokenizer.add_bos and ids[:2] == [tokenizer.bos_id] * 2 else ids

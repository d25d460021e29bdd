"""Another model's chat template is told by its markers, which are many tokens here."""

import pytest

from llamacy.errors import LlamacyError
from llamacy.text.chat import render
from llamacy.train.template_fit import note_on, strange_markers
from tests.train.fakes import ByteTokenizer


def rendering(template):
    return lambda messages, prompt: render(messages, template, bos="", eos="", add_generation_prompt=prompt)


def test_markers_that_are_no_tokens_are_told_once():
    text = "<|im_start|>user<|im_start|>a<|im_end|> a < b|> <|not one|> [INST] <tag> <end_of_turn>"
    assert strange_markers(text, ByteTokenizer()) == ["<|im_start|>", "<end_of_turn>"]  # <|im_end|> is a token


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("llama3", "'<|start_header_id|>'"),
        ("{{ messages[0].content }}<|im_end|>", None),
        ("{% for m in messages %}### {{ m.content }}</s>{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_what_is_said_of_a_template(template, said):
    note = note_on(rendering(template), ByteTokenizer())
    assert note is None if said is None else said in note and "is 19 of its tokens" in note


def test_only_refusals_of_the_template_are_none_of_ours():
    def broken(messages, prompt):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        note_on(broken, ByteTokenizer())
    assert issubclass(LlamacyError, Exception)

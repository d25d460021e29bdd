"""Tokenizer on vocabularies made by hand: merging, fallbacks, special tokens, what metadata may say wrong."""

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.strings import StringArray
from llamacy.text.tokenizer import Tokenizer, merge_order, string_array
from tests.text.tiny import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, build, byte_level, pieces, spaced


def test_merges_go_by_rank_then_from_the_left():
    tokenizer = byte_level(["ab", "bc", "abc", "aa"], ["b c", "a b", "a bc", "a a"])
    assert pieces(tokenizer, "abc") == [b"abc"]  # "b c" first, then "a bc"
    assert pieces(tokenizer, "abab") == [b"ab", b"ab"]
    assert pieces(tokenizer, "aaa") == [b"aa", b"a"]


def test_a_word_of_the_vocabulary_is_not_taken_whole_unless_merges_lead_to_it():
    assert pieces(byte_level(["abc"], ["a x"]), "abc") == [b"a", b"b", b"c"]
    # Llama 3's files do take it whole.
    assert pieces(byte_level(["abc"], ["a x"], pre="llama-bpe"), "abc") == [b"abc"]


def test_the_same_result_cut_in_two_ways():
    tokenizer = byte_level(["ab", "bc", "abc"], ["b c", "ab c", "a b", "a bc"])
    assert pieces(tokenizer, "abc") == [b"abc"]
    assert pieces(byte_level(["ab", "bc", "abc"], ["a b", "b c", "a bc"]), "abc") == [b"ab", b"c"]


def test_merges_through_a_string_that_is_no_token():
    tokenizer = byte_level(["abc"], ["a b", "ab c"])
    assert pieces(tokenizer, "abc") == [b"abc"]
    assert pieces(tokenizer, "abd") == [b"a", b"b", b"d"]  # "ab" comes out as its bytes


def test_repeated_and_malformed_merges():
    tokenizer = byte_level(["ab", "bc"], ["a b", "b c", "a b", "", " ", "a", "a ", "\x01 b", "b c"])
    assert pieces(tokenizer, "abc") == [b"ab", b"c"]


def test_bytes_without_a_token_are_left_out():
    assert byte_level([], []).decode(byte_level([], []).encode("aéb")) == "ab"


def test_space_and_newline_are_written_as_byte_characters():
    tokenizer = byte_level(["\u0120a"], ["\u0120 a"])
    assert pieces(tokenizer, "a a\n") == [b"a", b" a", b"\n"]


@pytest.mark.parametrize(
    "make",
    [
        lambda more: byte_level(["ab"], ["a b", "ab c"], more),
        lambda more: spaced({"\u2581": 0, "ab": -1, "c": -2}, more),
    ],
)
def test_unused_tokens_are_no_text_and_no_text_becomes_them(make):
    """A text that could be merged to one keeps the tokens that it is made of."""
    tokenizer = make([("[PAD299]", UNUSED), ("abc", UNUSED), ("a", UNUSED)])
    unused = [tokenizer.n_vocab - i for i in (3, 2, 1)]
    for token in unused:
        assert tokenizer.token_bytes(token) == b"" and not tokenizer.is_special(token)
    assert (
        tokenizer.decode([*unused[:2], *tokenizer.encode("abc [PAD299]", add_special=False)]).strip() == "abc [PAD299]"
    )
    assert not set(unused) & set(tokenizer.encode("abc [PAD299] a"))
    stream = tokenizer.stream()
    assert "".join(map(stream.feed, unused)) + stream.flush() == ""


SPECIAL = [("<|x|>", CONTROL), ("<|x|>y", CONTROL), ("<u>", USER_DEFINED), ("  ", USER_DEFINED)]


def test_special_tokens_come_first_the_longest_of_them():
    tokenizer = byte_level([], [], SPECIAL)
    assert pieces(tokenizer, "a<|x|>b") == [b"a", b"<|x|>", b"b"]
    assert pieces(tokenizer, "<|x|>yy<|x|>") == [b"<|x|>y", b"y", b"<|x|>"]
    assert pieces(tokenizer, "<u>   z") == [b"<u>", b"  ", b" ", b"z"]


def test_without_parse_special_control_tokens_are_text_and_user_defined_ones_are_not():
    tokenizer = byte_level([], [], SPECIAL)
    assert pieces(tokenizer, "<u><|x|>", parse_special=False) == [b"<u>", *(bytes([c]) for c in b"<|x|>")]


def test_merging_never_leads_to_a_control_token():
    tokenizer = byte_level(["<|"], ["< |", "<| >"], [("<|>", CONTROL)])
    assert pieces(tokenizer, "<|>", parse_special=False) == [b"<", b"|", b">"]
    assert pieces(tokenizer, "<|>") == [b"<|>"]
    named = spaced({"<": -1, "/": -1, "s": -1, ">": -1, "</": -2, "s>": -3}, add_space_prefix=False)
    assert pieces(named, "</s>", parse_special=False) == [b"</", b"s>"]


def test_end_tokens_are_found_by_text_and_count_as_special():
    tokenizer = byte_level(["<|im_end|>"], [], [("<e>", CONTROL)], eos_token_id=97)
    named, eos = 96, 97
    assert tokenizer.eog_ids == {named, eos}
    assert tokenizer.is_special(named)  # though the file has it as ordinary text
    assert tokenizer.encode("a<|im_end|>") == [ord("a") - 0x21, named]
    assert tokenizer.decode([named, eos]) == "" and tokenizer.decode([named], special=True) == "<|im_end|>"


def test_an_end_that_is_none_beside_others():
    texts = ["<|end|>", "<|return|>", "<|call|>"]
    tokenizer = byte_level([], [], [(text, CONTROL) for text in texts])
    assert {tokenizer.token_bytes(token).decode() for token in tokenizer.eog_ids} == {"<|return|>", "<|call|>"}


def test_bos_and_eos_are_added_as_the_file_says():
    ends = [("<b>", CONTROL), ("<e>", CONTROL)]
    ids = {"bos_token_id": 96, "eos_token_id": 97}
    assert byte_level([], [], ends, **ids).encode("!") == [0]
    assert byte_level([], [], ends, add_bos_token=True, add_eos_token=True, **ids).encode("!") == [96, 0, 97]
    assert byte_level([], [], ends, pre="llama-bpe", **ids).encode("!") == [96, 0]
    both = byte_level([], [], ends, add_bos_token=True, add_eos_token=True, **ids)
    assert both.encode("!", add_special=False) == [0]
    assert both.encode("") == [96, 97]
    assert byte_level([], [], ends, add_bos_token=True).encode("!") == [0]  # no BOS to add
    assert byte_level([], [], ends, add_bos_token=True, bos_token_id=1000).bos_id is None


WORDS = {"\u2581": -1, "a": -1, "b": -1, "ab": -2, "\u2581a": -3, "\u2581ab": -4, "\u2581\u2581": -5, "ba": -1.5}


def test_scores_decide_then_the_left():
    tokenizer = spaced(WORDS, add_space_prefix=False)
    assert pieces(tokenizer, "ab") == [b"ab"]
    assert pieces(tokenizer, "aba") == [b"a", b"ba"]  # -1.5 before -2
    assert pieces(spaced(WORDS | {"ba": -2}, add_space_prefix=False), "aba") == [b"ab", b"a"]


def test_the_space_prefix():
    tokenizer = spaced(WORDS, [("<x>", CONTROL)])
    assert tokenizer.encode("ab")[0] == tokenizer.bos_id == 1
    assert pieces(tokenizer, "ab") == [b" ab"]
    assert pieces(tokenizer, " ab") == [b" ", b" ab"]
    assert pieces(tokenizer, "ab<x>ab") == [b" ab", b"<x>", b" ab"]  # again behind a special token
    assert pieces(tokenizer, "") == []
    assert pieces(tokenizer, "\u2581ab") == pieces(tokenizer, " ab")


def test_bytes_where_there_is_no_token():
    tokenizer = spaced(WORDS)
    assert pieces(tokenizer, "a\u00e9") == [b" a", b"\xc3", b"\xa9"]
    assert tokenizer.encode("\u00e9", add_special=False)[1:] == [3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(tokenizer.encode("a\u00e9\U0001f600")) == " a\u00e9\U0001f600"
    no_space = spaced({"a": -1})
    assert pieces(no_space, "a") == [b"\xe2", b"\x96", b"\x81", b"a"]


def test_unknown_once_a_character_where_there_are_no_byte_tokens():
    tokenizer = spaced(WORDS, with_bytes=False, add_space_prefix=False)
    assert tokenizer.encode("a\u00e9b", add_special=False) == [4, 0, 5]


def test_text_like_a_byte_token_is_text():
    letters = dict.fromkeys("<0x41>", -1.0)
    tokenizer = spaced(letters | {"<0": -1, "<0x": -1, "<0x4": -1, "<0x41": -1}, add_space_prefix=False)
    assert pieces(tokenizer, "<0x41>") == [b"<0x41", b">"]


def test_words_with_inner_spaces_are_found():
    """Text is cut at spaces only where no token goes across one."""
    tokenizer = spaced(WORDS | {"a\u2581": -1, "a\u2581a": -0.5}, add_space_prefix=False)
    assert pieces(tokenizer, "a a") == [b"a a"]


def test_user_defined_tokens_with_spaces():
    tokenizer = spaced(WORDS, [("\u2581\u2581\u2581", USER_DEFINED), ("    ", USER_DEFINED)], add_space_prefix=False)
    assert pieces(tokenizer, "a    b   b") == [b"a", b"    ", b"b", b"   ", b"b"]


def test_phi3_drops_white_space_behind_special_tokens():
    special = [("<|end|>", CONTROL), ("<|endoftext|>", CONTROL)]
    tokenizer = spaced(WORDS, special, add_space_prefix=False, general_name="Phi-3 mini")
    assert pieces(tokenizer, "<|end|> \n\ta") == [b"<|end|>", b"a"]
    assert pieces(tokenizer, "<|endoftext|> a") == [b"<|endoftext|>", b" a"]
    assert pieces(spaced(WORDS, special, add_space_prefix=False), "<|end|> a") == [b"<|end|>", b" a"]


def test_bpe_on_spaced_text():
    words = ["\u2581", "a", "\n", "\n\n", "\u2581a", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = build("gemma4", words, [NORMAL] * 5 + [BYTE] * 256, merges=["\u2581 a"])
    assert pieces(tokenizer, " a a") == [b" a", b" a"]
    assert pieces(tokenizer, "a\n\na") == [b"a", b"\n\n", b"a"]  # newlines are taken whole
    assert pieces(tokenizer, "\u00e9") == [b"\xc3", b"\xa9"]


def test_every_vocabulary_takes_any_bytes(recorded):
    """Bytes that are not UTF-8 come in through surrogateescape, and out again where there are byte tokens for all."""
    raw = bytes(range(256)) + b"a\xf0\x9f\xe2\x82"
    text = raw.decode("utf-8", "surrogateescape")
    for name, before in (("gpt-2", b""), ("llama-bpe", b""), ("llama-spm", b" ")):
        tokenizer = recorded(name)
        ids = tokenizer.encode(text, add_special=False)
        assert b"".join(map(tokenizer.token_bytes, ids)) == before + raw


def test_other_lone_surrogates_become_replacement_characters(recorded):
    tokenizer = recorded("gpt-2")
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")


def test_ids_outside_the_vocabulary_are_errors(recorded):
    tokenizer = recorded("gpt-2")
    for token in (-1, 50257, 2**40):
        for use in (
            tokenizer.token_bytes,
            tokenizer.is_special,
            tokenizer.stream().feed,
            lambda i: tokenizer.decode([i]),
        ):
            with pytest.raises(LlamacyError, match="outside the vocabulary"):
                use(token)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "kind 'bert'"),
        ({"model": None}, "no vocabulary"),
        ({"tokens": None}, "no vocabulary"),
        ({"merges": None}, "without tokenizer.ggml.merges"),
        ({"token_type": [1]}, "token_type has 1 entries"),
        ({"tokens": 5}, "tokens: wanted an array of strings, got int"),
        ({"tokens": np.arange(3)}, "tokens: wanted an array of strings"),
        ({"merges": [1, 2]}, "merges: wanted an array of strings"),
        ({"token_type": ["a", "b"]}, "token_type: wanted an array of numbers"),
        ({"eos_token_id": "2"}, "eos_token_id: wanted a whole number, got str"),
        ({"add_bos_token": "yes"}, "add_bos_token: wanted true or false"),
        ({"pre": 7}, "pre: wanted text, got int"),
        ({"model": ["gpt2"]}, "model: wanted text, got list"),
    ],
)
def test_metadata_that_describe_no_tokenizer(changes, message):
    metadata = {"model": "gpt2", "tokens": ["a", "b"], "merges": [], "pre": "gpt-2"} | changes
    metadata = {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}
    with pytest.raises(LlamacyError, match=message):
        Tokenizer.from_metadata(metadata).encode("a")


def test_too_few_scores():
    with pytest.raises(LlamacyError, match="scores has 1 entries"):
        build("llama", ["<unk>", "a"], [UNKNOWN, NORMAL], scores=[0.0]).encode("a")


def test_unknown_and_missing_pre_tokenizers_warn_and_cut_as_default():
    with pytest.warns(UserWarning, match="'no-such' is not known"):
        odd = byte_level([], [], pre="no-such")
    with pytest.warns(UserWarning, match="does not name its pre-tokenizer"):
        none = byte_level([], [], pre=None)
    assert odd.encode("a 1234!") == none.encode("a 1234!") == byte_level([], [], pre="default").encode("a 1234!")


def test_string_arrays_and_lists_are_the_same():
    strings = ["a", "", "\u00e9", "a"]
    for ours, theirs in zip(string_array(strings), string_array(StringArray.of(strings)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_merge_order_is_the_order_of_scores():
    scores = np.float32([0.0, -0.0, 1.5, -1.5, -1e30, 1e30, -1e-40, np.inf, -np.inf])
    ranks = merge_order(scores).astype(np.int64)
    assert ((ranks[:, None] < ranks) == (scores[:, None] > scores)).all()
    assert ((ranks[:, None] == ranks) == (scores[:, None] == scores)).all()

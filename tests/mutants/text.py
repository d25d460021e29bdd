"""Mistakes of tokenizers."""

from tests.mutants.table import table

TEXT = table(
    "llamacy/text",
    (
        "control tokens in any text become tokens",
        "tokenizer.py",
        "encode(text_bytes(text), cut, parse_special, self._prefix)",
        "encode(text_bytes(text), cut, True, self._prefix)",
        "text/test_tokenizer.py::test_without_parse_special_control_tokens_are_text_and_user_defined_ones_are_not",
    ),
    (
        "special tokens are printed",
        "tokenizer.py",
        "shown = ids if special else (token for token in ids if not self.is_special(token))",
        "shown = ids",
        "text/test_tokenizer.py::test_end_tokens_are_found_by_text_and_count_as_special",
    ),
    (
        "BOS although the file says no",
        "tokenizer.py",
        'self.add_bos = bool(self._get("add_bos_token", add_bos)) and',
        "self.add_bos = bool(add_bos) and",
        "text/test_tokenizer.py::test_bos_and_eos_are_added_as_the_file_says",
    ),
)

"""Text from tokens that arrive one at a time, never part of a character."""

import codecs


class StreamDecoder:
    """Joins tokens' bytes to text. What `feed` and `flush` return, put together, is what `decode` gives for all ids."""

    def __init__(self, tokenizer, special=False):
        self._tokenizer, self._special = tokenizer, special
        # Holds back an unfinished character; U+FFFD only for bytes that nothing can complete any more.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token):
        """Return the characters that `token` completes, perhaps none."""
        if not self._special and self._tokenizer.is_special(token):
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def flush(self):
        """Return what is left at the end: U+FFFD for an unfinished character, else nothing."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text

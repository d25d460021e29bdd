"""Text from tokens that arrive one at a time, never part of a character."""

import codecs


class StreamDecoder:
    """Joins tokens' bytes to text. What `feed` and `flush` return, put together, is what `decode` gives for all ids."""

    def __init__(self, tokenizer, special=False, visible=()):
        self._tokenizer, self._special, self._visible = tokenizer, special, frozenset(visible)
        # Holds back an unfinished character; U+FFFD only for bytes that nothing can complete any more.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def bytes_of(self, token):
        """Return the bytes that a token has in the text."""
        hidden = not self._special and token not in self._visible and self._tokenizer.is_special(token)
        return b"" if hidden else self._tokenizer.token_bytes(token)

    def feed(self, token):
        """Return the characters that `token` completes, perhaps none."""
        return self._utf8.decode(self.bytes_of(token))

    def flush(self):
        """Return what is left at the end: U+FFFD for an unfinished character, else nothing."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text

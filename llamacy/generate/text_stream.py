"""From generated tokens to text that can be shown: whole characters only, never a part of a stop string.

The layer between the engine, which knows ids, and whoever shows text. `decoder` is the tokenizer's StreamDecoder.
"""


class StopFinder:
    """Passes text on, holding back what may be the beginning of a stop string.

    The stop that is complete first ends the text (on a tie the one that began first), so the result does not depend on
    how the text was cut into pieces.
    """

    def __init__(self, stops):
        self.stops = [stop for stop in stops if stop]
        self.found = None
        self._held = ""
        self.dropped = ""  # what was not shown: the stop string that was found, and what came with it

    @property
    def held(self):
        """What is held back."""
        return self._held

    def feed(self, text):
        """Return the text that is safe to show; after a stop string was found (`found`), nothing more comes."""
        if self.found is not None:
            return ""
        if not self.stops:
            return text
        self._held += text
        ends = [(at + len(stop), at, stop) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            self.dropped = self._held[at:]
            return self._release(at, keep=False)
        return self._release(self._safe())

    def flush(self):
        """Return what was held back: no more text comes, so no stop string can be completed."""
        return self._release(len(self._held))

    def _safe(self):
        """Return how much of the held text no stop string can begin in."""
        longest = max(map(len, self.stops))
        for at in range(max(0, len(self._held) - longest + 1), len(self._held)):
            tail = self._held[at:]
            if any(stop.startswith(tail) for stop in self.stops):
                return at
        return len(self._held)

    def _release(self, at, keep=True):
        text, self._held = self._held[:at], self._held[at:] if keep else ""
        return text


class TextStream:
    """One request's text: feed it the engine's tokens, get pieces to show; with_ends: end tokens by name too."""

    def __init__(self, decoder, stops=(), with_ends=False):
        self._decoder, self._with_ends = decoder, with_ends
        self._finder = StopFinder(stops)

    @property
    def stopping_word(self):
        """The stop string that ended the text, None so far."""
        return self._finder.found

    @property
    def held_bytes(self):
        """How many bytes of text are not shown, at the end of what came."""
        return len((self._finder.dropped or self._finder.held).encode("utf-8", "surrogatepass"))

    def bytes_of(self, token):
        """Return the bytes of text of a Token."""
        return b"" if token.is_end and not self._with_ends else self._decoder.bytes_of(token.id)

    def feed(self, token):
        """Return (text to show, whether to stop) for one Token."""
        silent = token.is_end and not self._with_ends
        text = "" if silent else self._finder.feed(self._decoder.feed(token.id))
        return text, self.stopping_word is not None

    def flush(self):
        """Return the rest at the end: an incomplete character as U+FFFD, and text held back for a stop string."""
        if self.stopping_word is not None:
            return ""
        return self._finder.feed(self._decoder.flush()) + self._finder.flush()


def prompt_ids(tokenizer, text, add_special=True):
    """Return the ids of a prompt to continue: BOS first where the model wants it, never EOS behind it.

    An empty text gives the token that texts begin with, so that there is something to continue.
    """
    ids = tokenizer.encode(text, add_special=add_special)
    if add_special and tokenizer.add_eos and ids and ids[-1] == tokenizer.eos_id:
        ids.pop()
    if not ids and add_special:
        ids = [token for token in (tokenizer.bos_id, tokenizer.eos_id) if token is not None][:1]
    return ids


def with_bos(n_keep, tokenizer):
    """Return a user's n_keep as Request has it: a BOS in front of the prompt is kept beside the tokens asked for."""
    return n_keep + bool(tokenizer.add_bos) if n_keep >= 0 else n_keep

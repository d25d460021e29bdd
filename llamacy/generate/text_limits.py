"""Where a text ends because of its lines: how far they are indented, how long it has taken. For completing code."""

import time


class TextLimits:
    """Passes text on until a line begins with fewer than `n_indent` blanks, or a line ends after `seconds`.

    Both as in llama.cpp: the first line may begin anywhere, a line that ends the text keeps its blanks; the time runs
    from the first text on and is looked at where a line ends. 0 is no limit.
    """

    def __init__(self, n_indent=0, seconds=0.0, clock=time.perf_counter):
        self._n_indent, self._seconds, self._clock = n_indent, seconds, clock
        self._began = self._blanks = None  # blanks: of the line so far, None behind its first other character
        self.is_over = False

    def feed(self, text):
        """Return what of a text is within the limits; `is_over` is true from the one on that is not."""
        if self.is_over:
            return ""
        if self._began is None:
            self._began = self._clock()
        for i, char in enumerate(text):
            if self._blanks is not None and char in " \t":
                self._blanks += 1
            elif self._blanks is not None and self._blanks < self._n_indent:
                self.is_over = True
                return text[:i]
            else:
                self._blanks = 0 if char == "\n" else None
        if self._seconds and "\n" in text and self._clock() - self._began > self._seconds:
            self.is_over = True
        return text

"""The words of a command line, told apart as llama.cpp does: a flag is one whole word, its value is the word behind it.

argparse alone would split `-ngl 99` into `-n gl`, complete `-fa` to whatever begins so, and take `-1e-3` for a flag.
"""

import re

NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|-inf|-nan", re.IGNORECASE)


def is_number(word):
    """Is this a negative number, and so no flag?"""
    return NUMBER.fullmatch(word) is not None


class Words:
    """Reads the words of one command line.

    actions: argparse's actions by flag. ignored: flags of llama.cpp that change nothing here, with their values:
    {flag: Ignored}.
    """

    def __init__(self, actions, ignored=None):
        self._actions, self._ignored = actions, ignored or {}

    def read(self, words):
        """Return (the words as argparse wants them, the ignored flags with their values).

        A flag and its value become `FLAG=VALUE`, so that the value may be anything: a negative number, a text that
        begins with a dash. Words that are unknown stay as they are.
        """
        rest, joined, ignored = list(words), [], []
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*joined, word, *rest], ignored
            flag, value = self._flag(word)
            if flag in self._ignored:
                values = [value] if value is not None else self._ignored[flag].take(rest, self._is_value)
                ignored.append(" ".join([flag, *values]))
            elif flag is None or value is not None:
                joined.append(word if flag is None else f"{flag}={value}")
            else:
                joined += self._with_values(flag, self._actions[flag], rest)
        return joined, ignored

    def _flag(self, word):
        """Return (the flag that a word is, its value behind an equals sign or None); (None, None) if it is none."""
        for text in (word, word.partition("=")[0]):
            flag = "--" + text[2:].replace("_", "-") if text.startswith("--") else text
            if flag.startswith("-") and (flag in self._actions or flag in self._ignored):
                return flag, None if text is word else word.partition("=")[2]
        return None, None

    def _with_values(self, flag, action, rest):
        """Return the flag with its values, taken from `rest`; argparse complains where there are too few."""
        if action.nargs is None and rest and (action.metavar == "TEXT" or self._is_value(rest[0])):
            return [f"{flag}={rest.pop(0)}"]
        return [flag]

    def _is_value(self, word):
        """May this word be the value of the flag before it: is it no flag itself?"""
        return word != "--" and (not word.startswith("-") or is_number(word) or self._flag(word)[0] is None)

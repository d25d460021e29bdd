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

    actions: argparse's actions by flag; one of two values may have a method `pairs` that takes both from one word.
    ignored: flags of llama.cpp that change nothing here, {flag: Ignored}. refused: those that are known not to be
    built; like the others they are never the value of the flag before them.
    """

    def __init__(self, actions, ignored=None, refused=()):
        self._actions, self._ignored, self._refused = actions, ignored or {}, refused

    def read(self, words):
        """Return (the words as argparse wants them, the ignored flags with their values).

        A flag and its value become `FLAG=VALUE`, so that the value may be anything: a negative number, a text that
        begins with a dash. Words that are unknown stay as they are. ValueError for an ignored flag without its value.
        """
        rest, joined, ignored = list(words), [], []
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*joined, word, *rest], ignored
            flag, value = self._flag(word)
            if flag is None or (value is not None and flag in self._actions):
                joined.append(word if flag is None else f"{flag}={value}")
            elif flag in self._actions:
                joined += self._with_values(flag, self._actions[flag], rest)
            else:
                ignored.append(self._without_effect(flag, value, rest))
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
        pairs = action.pairs(rest[0]) if rest and hasattr(action, "pairs") else []
        if pairs:
            del rest[0]
            return [word for pair in pairs for word in (flag, *pair)]
        if action.nargs is None and rest and (action.metavar == "TEXT" or self._is_value(rest[0])):
            return [f"{flag}={rest.pop(0)}"]
        return [flag]

    def _without_effect(self, flag, value, rest):
        """Return an ignored flag with its values, for the note about it."""
        values = [value] if value is not None else self._ignored[flag].take(rest, self._is_value)
        if values is None:
            raise ValueError(f"argument {flag}: expected one argument")
        return " ".join([flag, *values])

    def _is_value(self, word):
        """May this word be the value of the flag before it: is it no flag itself?"""
        return word != "--" and (is_number(word) or (self._flag(word)[0] is None and word not in self._refused))

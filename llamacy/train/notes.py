"""What data holds that is not learnt as it stands: each remark once, with how often it was met and where first."""

from llamacy.errors import brief

# So many keys that are not used are named, the others counted.
NAMED = 6


class Notes:
    """Counts of remarks and of unused keys; after `close` nothing more is counted (records are read again to train)."""

    def __init__(self):
        self._remarks, self._keys, self._open = {}, {}, True

    def close(self):
        """Stop counting."""
        self._open = False

    def remark(self, text, where):
        """Count one case of `text`, which says what was met and what was done with it."""
        self._count(self._remarks, text, where)

    def unused(self, key, where):
        """Count one record with a key that nothing was made of."""
        self._count(self._keys, key, where)

    def _count(self, table, name, where):
        if self._open:
            n, first = table.get(name, (0, where))
            table[name] = n + 1, first

    def lines(self):
        """Return one line for each remark and one for all keys."""
        lines = [f"{text}: {n}, the first at {where}" for text, (n, where) in self._remarks.items()]
        if self._keys:
            named = sorted(self._keys.items(), key=lambda row: -row[1][0])
            parts = [f'"{brief(key, 40)}" in {_records(n)}' for key, (n, _) in named[:NAMED]]
            more = f" and {len(named) - NAMED} other keys" if len(named) > NAMED else ""
            lines.append(f"not used: {', '.join(parts)}{more}, the first at {named[0][1][1]}")
        return lines


def _records(n):
    return f"{n} record" if n == 1 else f"{n} records"

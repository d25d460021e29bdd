"""Sets of characters as expressions over the bytes of UTF-8 (RFC 3629): no overlong forms, no surrogates."""

from functools import lru_cache

from llamacy.generate.grammar import Alt, Seq, Some

MAX_CODE = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)


def characters(ranges):
    """Return the expression of one character of some ranges of codes [(first, last)]; None where there is none."""
    single, longer = set(), []
    for first, last in _joined(ranges):
        for begin, end in ((first, min(last, SURROGATES[0] - 1)), (max(first, SURROGATES[1] + 1), last)):
            for sequence in _sequences(begin, end):
                if len(sequence) == 1:
                    single.update(range(sequence[0][0], sequence[0][1] + 1))
                else:
                    longer.append(Seq(tuple(_bytes(low, high) for low, high in sequence)))
    parts = ([Some(frozenset(single))] if single else []) + longer
    return Alt(tuple(parts)) if len(parts) > 1 else parts[0] if parts else None


@lru_cache(maxsize=4096)
def _bytes(low, high):
    """Return one byte from `low` to `high`, the same object for the same bounds: grammars have many of them."""
    return Some(frozenset(range(low, high + 1)))


def _joined(ranges):
    """Return the ranges in order, those that touch as one."""
    joined = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _sequences(first, last):
    """Yield, for the characters from `first` to `last`, sequences of byte ranges [(low, high), ...], disjoint."""
    if first > last:
        return
    for limit in (0x7F, 0x7FF, 0xFFFF):
        if first <= limit < last:
            yield from _sequences(first, limit)
            yield from _sequences(limit + 1, last)
            return
    # Cut so that below the first byte that differs every byte may be any.
    for n in (1, 2, 3):
        tail = (1 << 6 * n) - 1
        if first <= 0x7F or first & ~tail == last & ~tail:
            break
        if first & tail:
            yield from _sequences(first, first | tail)
            yield from _sequences((first | tail) + 1, last)
            return
        if last & tail != tail:
            yield from _sequences(first, (last & ~tail) - 1)
            yield from _sequences(last & ~tail, last)
            return
    yield list(zip(chr(first).encode(), chr(last).encode(), strict=True))


def others(ranges):
    """Return the ranges of all codes that are in none of `ranges`."""
    found, begin = [], 0
    for first, last in sorted(ranges):
        if first > begin:
            found.append((begin, first - 1))
        begin = max(begin, last + 1)
    return [*found, (begin, MAX_CODE)] if begin <= MAX_CODE else found

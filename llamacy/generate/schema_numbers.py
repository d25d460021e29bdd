"""Numbers within bounds, and multiples, as expressions over their decimal digits."""

import math
from decimal import Decimal

from llamacy.errors import RequestError
from llamacy.generate.grammar import EMPTY, Ref, alt, lit, optional, repeat, seq, some
from llamacy.generate.json_grammar import DIGIT, FRACTION, INTEGER, NUMBER
from llamacy.generate.schema_merge import Impossible

MAX_DIGITS = 16
MOST_BOUND = 40  # digits of a bound; beyond it there is always room enough
LARGEST = 10**MOST_BOUND
MOST_VALUES = 10_000  # multiples within bounds that are listed
MOST_REMAINDERS = 1000
ANY_DIGITS = repeat(DIGIT, 0, MAX_DIGITS)


def digits(low, high):
    """Return the expression of one digit from `low` to `high`."""
    return some(ord(str(low)), ord(str(high)))


def whole_range(low, high):
    """Return the whole numbers from low >= 0 to high (None: any), without leading zeros; None where there is none."""
    if high is not None and low > high:
        return None
    size = len(str(low))
    parts, top = [], 10**size - 1
    parts.append(_same_length(str(low), str(top if high is None else min(top, high))))
    most = max(MAX_DIGITS, size + 1) if high is None else len(str(high))
    if high is None:
        parts.append(seq(digits(1, 9), repeat(DIGIT, size, most - 1)))
    elif most > size:
        if most - 1 > size:
            parts.append(seq(digits(1, 9), repeat(DIGIT, size, most - 2)))
        parts.append(_same_length("1" + "0" * (most - 1), str(high)))
    return alt(*parts)


def _same_length(low, high):
    """Return the digit strings from `low` to `high`, which are of the same length."""
    if not low.strip("0") and not high.strip("9"):  # all of them; without this one row the work doubles per digit
        return repeat(DIGIT, len(low), len(low)) if low else EMPTY
    if low[0] == high[0]:
        return seq(lit(low[0]), _same_length(low[1:], high[1:]))
    n = len(low) - 1
    parts = [seq(lit(low[0]), _same_length(low[1:], "9" * n)), seq(lit(high[0]), _same_length("0" * n, high[1:]))]
    if int(high[0]) - int(low[0]) > 1:
        parts.append(seq(digits(int(low[0]) + 1, int(high[0]) - 1), repeat(DIGIT, n, n)))
    return alt(*parts)


class Bounds:
    """minimum, maximum and the exclusive ones of a schema, as Decimals; `strict_*`: the bound itself is not in them."""

    def __init__(self, schema, where):
        self.low = self.high = None
        self.strict_low = self.strict_high = False
        old = {key: schema.get(key) for key in ("exclusiveMinimum", "exclusiveMaximum")}
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            value, is_low = schema.get(key), key.endswith("inimum")
            strict = key.startswith("exclusive")
            if value is None or isinstance(value, bool):
                continue  # draft 4 says true beside `minimum`
            if not isinstance(value, (int, float)) or (isinstance(value, float) and not math.isfinite(value)):
                raise RequestError(f"{where}.{key}: wanted a number, got {value!r:.60}")
            if abs(value) > LARGEST:
                if is_low == (value > 0):
                    raise RequestError(f"{where}.{key}: wanted at most 10 ** {MOST_BOUND}, got {value!r:.60}")
                value = LARGEST if value > 0 else -LARGEST
            if not strict:
                strict = old["exclusiveMinimum" if is_low else "exclusiveMaximum"] is True
            self._take(Decimal(repr(value)), is_low, strict)

    def _take(self, value, is_low, strict):
        if is_low and (self.low is None or (value, strict) > (self.low, self.strict_low)):
            self.low, self.strict_low = value, strict
        if not is_low and (self.high is None or (-value, strict) > (-self.high, self.strict_high)):
            self.high, self.strict_high = value, strict

    def whole(self):
        """Return (lowest, highest) whole numbers, None for any."""
        low = high = None
        if self.low is not None:
            low = math.floor(self.low) + 1 if self.strict_low else math.ceil(self.low)
        if self.high is not None:
            high = math.ceil(self.high) - 1 if self.strict_high else math.floor(self.high)
        return low, high


def integers(schema, rules, where):
    """Return the integers of a schema."""
    low, high = Bounds(schema, where).whole()
    step = schema.get("multipleOf")
    if step is not None:
        return _multiples(low, high, _step(step, where), rules, where)
    if low is None and high is None:
        return INTEGER
    found = _signed(low, high)
    if found is None:
        raise Impossible(f"{where}: no integer is from {low} to {high}")
    return found


def _signed(low, high):
    parts = []
    if high is None or high >= 0:
        parts.append(whole_range(max(low or 0, 0), high))
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        found = whole_range(least, None if low is None else -low)
        parts.append(found and seq(lit("-"), found))
    parts = [part for part in parts if part is not None]
    return alt(*parts) if parts else None


def _step(step, where):
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not step > 0 or step != int(step):
        raise RequestError(f"{where}.multipleOf: wanted a whole number above 0 for integers, got {step!r:.60}")
    return int(step)


def _multiples(low, high, step, rules, where):
    if low is not None and high is not None and (high - low) // step <= MOST_VALUES:
        first = -(-low // step) * step
        values = range(first, high + 1, step)
        if not values:
            raise Impossible(f"{where}: no multiple of {step} is from {low} to {high}")
        return alt(*(lit(str(value)) for value in values))
    if step > MOST_REMAINDERS or low not in (None, 0, 1) or high is not None:
        raise RequestError(f"{where}.multipleOf: not supported for so large a step or range")
    # A rule for each remainder: what may follow digits that leave it.
    name = f"multiple {step} "
    for remainder in range(step):
        nexts = [seq(lit(str(d)), Ref(f"{name}{(10 * remainder + d) % step}")) for d in range(10)]
        rules[f"{name}{remainder}"] = alt(*([EMPTY] if remainder == 0 else []), *nexts)
    begin = alt(*(seq(lit(str(d)), Ref(f"{name}{d % step}")) for d in range(1, 10)))
    whole = begin if low == 1 else alt(lit("0"), begin)
    return seq(optional(lit("-")), whole) if low is None else whole


def numbers(schema, rules, where):
    """Return the numbers of a schema, without exponents where they have bounds."""
    step, bounds = schema.get("multipleOf"), Bounds(schema, where)
    if step is not None:
        exponent = _power_of_ten(step)
        if exponent and bounds.low is None and bounds.high is None:
            return seq(INTEGER, optional(seq(lit("."), repeat(DIGIT, 1, exponent))))
        return integers(schema, rules, where)
    if bounds.low is None and bounds.high is None:
        return NUMBER
    parts = []
    if bounds.high is None or bounds.high > 0 or (bounds.high == 0 and not bounds.strict_high):
        low = max(bounds.low or Decimal(0), Decimal(0))
        strict = bounds.strict_low and bounds.low is not None and bounds.low >= 0
        parts.append(_decimals(low, strict, bounds.high, bounds.strict_high))
    if bounds.low is None or bounds.low < 0:
        is_wide = bounds.high is None or bounds.high >= 0
        least, strict = (Decimal(0), True) if is_wide else (-bounds.high, bounds.strict_high)
        found = _decimals(least, strict, None if bounds.low is None else -bounds.low, bounds.strict_low)
        parts.append(found and seq(lit("-"), found))
    parts = [part for part in parts if part is not None]
    if not parts:
        raise Impossible(f"{where}: no number is within its bounds")
    return alt(*parts)


def _power_of_ten(step):
    """Return n where a step is 10 ** -n, 0 otherwise."""
    if isinstance(step, float) and 0 < step < 1:
        value = Decimal(repr(step)).normalize()
        if value.as_tuple().digits == (1,):
            return -value.as_tuple().exponent
    return 0


def _decimals(low, strict_low, high, strict_high):
    """Return the decimals from low >= 0 to high (None: any); None where there is none."""
    if high is not None and (low > high or (low == high and (strict_low or strict_high))):
        return None
    first, least = _split(low)
    if high is None:
        above = whole_range(first + 1, None)
        return alt(seq(lit(str(first)), _at_least(least, strict_low)), seq(above, optional(FRACTION)))
    last, most = _split(high)
    if first == last:
        between = _between(least, most, strict_low, strict_high)
        return between and seq(lit(str(first)), between)
    parts = [seq(lit(str(first)), _at_least(least, strict_low))]
    middle = whole_range(first + 1, last - 1)
    if middle is not None:
        parts.append(seq(middle, optional(FRACTION)))
    if most or not strict_high:
        parts.append(seq(lit(str(last)), _at_most(most, strict_high)))
    return alt(*parts)


def _split(value):
    """Return (the whole part, the fraction's digits without zeros at the end)."""
    whole = int(value)
    fraction = f"{value - whole:f}".partition(".")[2].rstrip("0")
    return whole, fraction


NOT_ZERO = seq(repeat(lit("0"), 0, MAX_DIGITS), digits(1, 9), ANY_DIGITS)


def _at_least(fraction, strict):
    """Return "" or "." and digits, of a value of at least 0.fraction."""
    if not fraction:
        return seq(lit("."), NOT_ZERO) if strict else optional(FRACTION)
    return seq(lit("."), _digits_at_least(fraction, strict))


def _digits_at_least(fraction, strict):
    if not fraction:
        return NOT_ZERO if strict else ANY_DIGITS
    first = int(fraction[0])
    same = seq(lit(fraction[0]), _digits_at_least(fraction[1:], strict))
    return same if first == 9 else alt(same, seq(digits(first + 1, 9), ANY_DIGITS))


def _at_most(fraction, strict):
    if not fraction:
        return optional(seq(lit("."), repeat(lit("0"), 1, MAX_DIGITS)))
    return optional(seq(lit("."), _digits_at_most(fraction, strict, True)))


def _digits_at_most(fraction, strict, is_first=False):
    """Return digits of a value of at most 0.fraction; they may end, but not before the first."""
    if not fraction:
        return repeat(lit("0"), 0, MAX_DIGITS)
    digit, rest = int(fraction[0]), fraction[1:]
    parts = [] if is_first else [EMPTY]
    if digit:
        parts.append(seq(digits(0, digit - 1), ANY_DIGITS))
    if rest or not strict:
        parts.append(seq(lit(fraction[0]), _digits_at_most(rest, strict)))
    return alt(*parts)


def _between(least, most, strict_low, strict_high, is_first=True):
    """Return a fraction from 0.least to 0.most, with its point where there is one."""
    if is_first:
        body = _between(least, most, strict_low, strict_high, False)
        may_be_none = not least and not strict_low
        with_point = body and seq(lit("."), body)
        return (optional(with_point) if with_point else EMPTY) if may_be_none else with_point
    if not least and not strict_low:
        zeros = repeat(lit("0"), 1, MAX_DIGITS)
        return alt(zeros, _digits_at_most(most, strict_high, True)) if most else zeros
    low, high = int(least[0]) if least else 0, int(most[0]) if most else 0
    if low == high:
        rest = _rest_between(least[1:], most[1:], strict_low, strict_high)
        return rest and seq(lit(str(low)), rest)
    parts = [seq(lit(str(low)), _digits_at_least(least[1:], strict_low))]
    if high - low > 1:
        parts.append(seq(digits(low + 1, high - 1), ANY_DIGITS))
    if most[1:] or not strict_high:
        parts.append(seq(lit(str(high)), _digits_at_most(most[1:], strict_high)))
    return alt(*parts)


def _rest_between(least, most, strict_low, strict_high):
    if not least and not most:
        return None if strict_low or strict_high else repeat(lit("0"), 0, MAX_DIGITS)
    inner = _between(least, most, strict_low, strict_high, False)
    return optional(inner) if inner and not least and not strict_low else inner

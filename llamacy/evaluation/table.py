"""One table of all models: a row for each, a column for each measure that one of them has."""

import json

from llamacy.evaluation.divergence import Estimate

PERCENT = 100


def _number(value, digits=4, factor=1, unit=""):
    if isinstance(value, Estimate):
        error = f"{value.error * factor:.{digits}f}"
        return f"{_zero(value.value * factor, digits)} ± {error}{unit}"
    return f"{_zero(value * factor, digits)}{unit}"


def _zero(value, digits):
    """Return a number with so many digits, 0 without a sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _percent(value):
    return _number(value, 1, PERCENT, " %")


# A column: its head, the field of a Measured, how that is written.
COLUMNS = (
    ("perplexity", "perplexity", _number),
    ("KL mean", "kl", lambda value: _number(value, 5)),
    ("median", "kl_median", lambda value: _number(value, 5)),
    ("99.9 %", "kl_999", _number),
    ("max", "kl_max", _number),
    ("same top", "same_top", _percent),
    ("RMS dp", "rms_dp", lambda value: _number(value, 2, PERCENT, " %")),
    ("correct", "accuracy", _percent),
    ("loss", "loss", _number),
    ("acc", "acc", _percent),
    ("acc_norm", "acc_norm", _percent),
)


def as_markdown(rows):
    """Return Measured rows as a table, and what its columns are of."""
    columns = [column for column in COLUMNS if any(getattr(row, column[1]) is not None for row in rows)]
    lines = [["model", *(head for head, _, _ in columns)]]
    lines.append(["-" * len(head) for head in lines[0]])
    for row in rows:
        values = [getattr(row, name) for _, name, _ in columns]
        texts = ["" if value is None else form(value) for value, (_, _, form) in zip(values, columns, strict=True)]
        lines.append([row.name, *texts])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def as_dict(row):
    """Return a Measured as JSON has it: estimates as NAME and NAME_stderr, what was not measured left out."""
    found = {"name": row.name, "model": row.model, "adapters": [list(pair) for pair in row.adapters]}
    for name in ("n_tokens", "n_questions", "reference"):
        if getattr(row, name):
            found[name] = getattr(row, name)
    for _, name, _ in COLUMNS:
        value = getattr(row, name)
        if isinstance(value, Estimate):
            found[name], found[f"{name}_stderr"] = value
        elif value is not None:
            found[name] = value
    return found


FORMATS = {
    "md": as_markdown,
    "json": lambda rows: json.dumps([as_dict(row) for row in rows], ensure_ascii=False, indent=2),
    "jsonl": lambda rows: "\n".join(json.dumps(as_dict(row), ensure_ascii=False) for row in rows),
}

"""What `bench` prints: a table, or all figures for programs, as llama-bench writes them."""

import csv
import io
import json

# Figures of single repetitions are for JSON.
NOT_IN_CSV = ("samples_ns", "samples_ts")


def as_markdown(rows):
    """Return the rows as llama-bench's table."""
    head = ("model", "size", "params", "threads", "test", "t/s")
    lines = [head, tuple("-" * len(name) for name in head)]
    for row in rows:
        size, params = f"{row['model_size'] / 2**20:.2f} MiB", f"{row['model_n_params'] / 1e6:.2f} M"
        speed = f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"
        speed += " samples/s" if row["unit"] == "samples" else ""
        lines.append((row["model_type"], size, params, str(row["n_threads"]), row["test"], speed))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def as_csv(rows):
    """Return the rows as CSV with a header."""
    text = io.StringIO()
    names = [name for name in rows[0] if name not in NOT_IN_CSV]
    writer = csv.DictWriter(text, names, extrasaction="ignore", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


FORMATS = {
    "md": as_markdown,
    "json": lambda rows: json.dumps(rows, indent=2),
    "jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    "csv": as_csv,
}

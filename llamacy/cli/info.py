"""bin/info: what a model or adapter file holds, as a table for a person or as one JSON object."""

import json
import math
import os
import sys

from llamacy.cli.run import make_parser
from llamacy.errors import brief, one_line, printable

LONG_ARRAY = 16
LONG_TEXT = 100

# The numbers worth a line of their own: label, key after the architecture's name.
_SHAPE = [
    ("layers", "block_count"),
    ("embedding", "embedding_length"),
    ("feed-forward", "feed_forward_length"),
    ("heads", "attention.head_count"),
    ("KV heads", "attention.head_count_kv"),
    ("context", "context_length"),
    ("rope base", "rope.freq_base"),
    ("rope scaling", "rope.scaling.type"),
    ("rope factor", "rope.scaling.factor"),
    ("context before", "rope.scaling.original_context_length"),
    ("norm epsilon", "attention.layer_norm_rms_epsilon"),
    ("LayerNorm epsilon", "attention.layer_norm_epsilon"),
]


def build_parser():
    parser = make_parser("info", "Show what a model or adapter holds: metadata, tensors, types and sizes.")
    parser.add_argument(
        "file", metavar="FILE", help="a model, or an adapter of any format (a folder for PEFT and mlx-lm)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--full", action="store_true", help="long texts and arrays whole, the vocabulary too")
    return parser


def main(argv):
    args = build_parser().parse_args(argv)
    found = describe(args.file)
    if args.json:
        json.dump(_plain(found, args.full), sys.stdout, allow_nan=False)
        print()
    else:
        print("\n".join(report_lines(found, args.full)))
    return 0


def describe(path):
    """Return everything there is to say about the file or folder at `path` as a dict of plain values and arrays."""
    from llamacy.formats.adapter import adapter_format, load_adapter

    kind = adapter_format(path)
    if kind is None:
        return _describe_model(path)
    adapter = load_adapter(path)
    return _describe_adapter(path, kind, adapter)


def _describe_model(path):
    from llamacy.formats.model_file import open_model

    with open_model(path) as file:
        tensors = [
            {"name": t.name, "type": t.type.name, "shape": list(t.shape), "nbytes": t.nbytes}
            for t in file.tensors.values()
        ]
        return {
            "path": path,
            "kind": "model",
            "format": file.format,
            "version": file.version,
            "size_bytes": file.size,
            "architecture": file.metadata.get("general.architecture"),
            "parameters": sum(t.n_elements for t in file.tensors.values()),
            "metadata": dict(file.metadata),
            "types": _types(file.tensors.values()),
            "tensors": tensors,
        }


def _types(tensors):
    """Return type name -> number of tensors, elements and bytes, the most bytes first."""
    totals = {}
    for tensor in tensors:
        row = totals.setdefault(tensor.type.name, {"tensors": 0, "elements": 0, "bytes": 0})
        row["tensors"] += 1
        row["elements"] += tensor.n_elements
        row["bytes"] += tensor.nbytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]["bytes"]))


def _describe_adapter(path, kind, adapter):
    pairs = [
        {"name": name, "rank": pair.rank, "n_in": pair.a.shape[1], "n_out": pair.b.shape[0], "scale": pair.scale}
        for name, pair in adapter.pairs.items()
    ]
    return {
        "path": path,
        "kind": "adapter",
        "format": kind,
        "size_bytes": os.path.getsize(path) if os.path.isfile(path) else None,
        "architecture": adapter.architecture,
        "parameters": sum(pair.size for pair in adapter.pairs.values()),
        "alpha": adapter.alpha,
        "dora": adapter.is_dora,
        "metadata": dict(adapter.metadata),
        "pairs": pairs,
        "norms": [{"name": name, "n": len(delta)} for name, delta in adapter.norms.items()],
        "left_out": adapter.left_out,
        "base_tensors": [copy.key for copy in adapter.copies],
    }


def _plain(value, full):
    """Return `value` as JSON can say it: long arrays as their length and beginning, no NaN or infinity."""
    if isinstance(value, dict):
        return {key: _plain(item, full) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, full) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    items = value if full or len(value) <= LONG_ARRAY else value[:LONG_ARRAY]
    items = [_plain(item, full) for item in (items.tolist() if hasattr(items, "tolist") else items)]
    return items if len(items) == len(value) else {"length": len(value), "first": items}


def report_lines(found, full=False):
    """Yield the lines of the readable report."""
    yield f"{printable(found['path'])}"
    version = f" version {found['version']}" if found.get("version") else ""
    size = f", {_size(found['size_bytes'])}" if found["size_bytes"] is not None else ""
    yield f"{found['format']}{version} {found['kind']}{size}"
    yield ""
    yield from _table(_summary(found))
    if found["metadata"]:
        yield ""
        yield f"Metadata ({len(found['metadata'])})"
        yield from _table([(_name(key, full), _value(value, full)) for key, value in found["metadata"].items()])
    yield ""
    yield from (_pairs if found["kind"] == "adapter" else _tensors)(found, full)


def _summary(found):
    rows = [("architecture", brief(found["architecture"])), ("parameters", f"{found['parameters']:,}")]
    if found["kind"] == "adapter":
        ranks = sorted({pair["rank"] for pair in found["pairs"]})
        rows += [("rank", ", ".join(map(str, ranks)) or "-"), ("alpha", f"{found['alpha']:g}")]
        rows += [("magnitudes", "one of each row, DoRA's")] if found["dora"] else []
        scales = sorted({round(pair["scale"], 6) for pair in found["pairs"]})
        return rows + [("scale", ", ".join(f"{scale:g}" for scale in scales[:8]) or "-")]
    metadata = found["metadata"]
    for label, key in _SHAPE:
        value = metadata.get(f"{found['architecture']}.{key}")
        if value is not None:
            rows.append((label, _value(value, False)))
    tokens = metadata.get("tokenizer.ggml.tokens")
    return rows if not hasattr(tokens, "__len__") else rows + [("vocabulary", f"{len(tokens):,}")]


def _pairs(found, full):
    yield f"Pairs ({len(found['pairs'])})"
    rows = [(_name(p["name"], full), f"{p['n_out']} x {p['n_in']}", f"r {p['rank']}") for p in found["pairs"]]
    yield from _table(rows)
    rest = {"Norms": [norm["name"] for norm in found["norms"]], "Left out": found["left_out"]}
    for title, names in (rest | {"Tensors of the base model": found["base_tensors"]}).items():
        if names:
            yield ""
            yield f"{title} ({len(names)})"
            yield from (f"  {_name(name, full)}" for name in names)


def _tensors(found, full):
    yield "Types"
    yield from _table(
        [
            (name, f"{row['tensors']} tensors", _size(row["bytes"]), f"{8 * row['bytes'] / row['elements']:.2f} bits")
            for name, row in found["types"].items()
            if row["elements"]
        ]
    )
    yield ""
    yield f"Tensors ({len(found['tensors'])})"
    yield from _table(
        [
            (_name(t["name"], full), t["type"], " x ".join(map(str, t["shape"])), _size(t["nbytes"]))
            for t in found["tensors"]
        ]
    )


def _table(rows):
    """Yield the rows indented, in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()


def _name(name, full):
    return printable(name) if full else brief(name)


def _value(value, full):
    """Return one metadata value as one line."""
    if isinstance(value, str):
        text = printable(value)
        return text if full or len(text) <= LONG_TEXT else f"{text[:LONG_TEXT]}... ({len(value)} characters)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return str(value)
    shown = list(value) if full else list(value[:6])
    items = ", ".join(_name(item, full) if isinstance(item, str) else one_line(item) for item in shown)
    return f"[{items}]" if len(shown) == len(value) else f"[{items}, ...] ({len(value)} items)"


def _size(nbytes):
    """Return a number of bytes as people say it."""
    for unit, bound in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= bound:
            return f"{nbytes / bound:.1f} {unit}"
    return f"{nbytes} bytes"

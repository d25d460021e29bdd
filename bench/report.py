"""Results of `make bench` as tables and pictures: `python bench/report.py [RESULTS.json]` puts them into the docs.

Of each kind of processor the newest file of bench/results that holds a whole run is taken, of the kind of a named file
that one. Writes the part of docs/performance.md between its two marks, a table and a picture for each kind, and the
figures of one kind in the tables of the READMEs.
"""

import json
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "bench" / "results", ROOT / "docs"
PAGE = DOCS / "performance.md"
BEGIN, END = "<!-- results: written by `make report` -->\n", "<!-- end of results -->\n"

# What tells kinds of processors apart beside the name and the instruction set that ran, as /proc/cpuinfo names it.
EXTENSIONS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "i8mm", "bf16")

READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
# The READMEs say which processor their figures are of: others' results stay out of them.
README_PROCESSOR = "AMD EPYC, avx2"
# The measures in the READMEs' tables, row by row; each README names them in its own words.
IN_README = [
    "generation of 64, SmolLM2 Q4_1",
    "generation of 32 after 4096, SmolLM2 Q4_1",
    "prompt of 512, SmolLM2 Q4_1",
    "8 HTTP clients x 64 at once, SmolLM2 Q4_1",
    "one token, start to exit, SmolLM2 Q4_1",
    "generation of 64, 1.1B shape Q4_0",
    "prompt of 512, 1.1B shape Q4_0",
    "training 1 x 256, r 8, 135M shape Q4_0",
    "training 4 x 256, r 8, 135M shape Q4_0",
    "training on instructions.jsonl in 8s, r 8, SmolLM2 Q4_1",
]

# The picture: a bar per measure, its length the ratio to the peer, a mark where the aim is.
WIDTH, ROW, LEFT, RIGHT, TOP = 820, 26, 330, 70, 46
OURS, ALSO, AIM, INK = "#1f5fbf", "#7fa6dd", "#d1495b", "#222"


def processor(machine):
    """Return the kind of processor that a file of results was measured on."""
    return " + ".join([f"{machine['cpu']}, {machine['isa']}", *machine.get("extensions", [])])


def compared(result):
    """Yield (peer, ratio, aim) of each engine that a result is compared with."""
    if result["peer"]:
        yield result["peer"], result["ratio"], result["aim"]
    for peer, found in result.get("also", {}).items():
        yield peer, found["ratio"], found["aim"]


def megabytes(result, side):
    """Return a side's peak memory as the table shows it, with what we want it to be at most."""
    peak, aim = result["peak_rss_bytes"].get(side), result.get("peak_aim_bytes")
    wanted = f" (<= {aim / 1e6:.0f})" if aim and side == "llamacy" else ""
    return f"{peak / 1e6:.0f} MB{wanted}" if peak else "-"


def lines_of(result, bandwidth):
    """Return a result's rows of the table, a row for each peer; bandwidth in bytes per second, of the whole run."""
    ours, unit = result["medians"]["llamacy"], result["unit"]
    bandwidth = result.get("read_bytes_per_second") or bandwidth
    share = f"{ours * result['bytes_per_token'] / bandwidth:.0%}" if result["bytes_per_token"] else "-"
    own, where = (result["name"], f"{ours:.2f} {unit}", megabytes(result, "llamacy")), result.get("processor", "-")
    lines = []
    for peer, ratio, aim in compared(result):
        name, speed, peak = ("", "", "") if lines else own
        theirs = f"{result['medians'][peer]:.2f} {unit}, {peer}"
        aim = f"{aim:g}x" if aim else "-"
        peaks = f"{peak} / {megabytes(result, peer)}".strip() if result["peak_rss_bytes"] else "-"
        lines.append((name, speed, theirs, f"{ratio:.2f}x", aim, peaks, *(("", "") if lines else (share, where))))
    return lines or [(*own[:2], "-", "-", "-", own[2], share, where)]


def table(results, bandwidth):
    """Return the results as a Markdown table."""
    head = ("measure", "llamacy", "peer", "ratio", "aim", "peak memory", "of read bandwidth", "processor")
    rows = [line for result in results for line in lines_of(result, bandwidth)]
    lines = [head, tuple("-" * len(name) for name in head), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def picture_path(content):
    """Return the file of a kind of processor's picture."""
    return DOCS / f"performance-{re.sub('[^a-z0-9]+', '-', processor(content['machine']).lower()).strip('-')}.svg"


def section(content):
    """Return a kind of processor's section: where and with what it was measured, the table, the picture."""
    machine, versions = content["machine"], content["versions"]
    bandwidth, kind = machine["read_bytes_per_second"], processor(machine)
    names = ", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("commit", "python"))
    samples = f"[every sample](../bench/results/{stem_of(content)}.json)"
    results = [{"processor": kind} | result for result in content["results"]]
    return (
        f"## {kind}\n\n"
        f"{machine['threads']} threads, reading {bandwidth / 1e9:.1f} GB/s in the same run; {names}; "
        f"{content['time'][:10]} ({samples}). Medians; peak memory of the process, ours / theirs.\n\n"
        f"{table(results, bandwidth)}\n\n![ratios to the peers]({picture_path(content).name})\n"
    )


def picture(content):
    """Return the ratios as SVG: bars from zero, the peer's speed a line at 1."""
    rows = [(result["name"], *row) for result in content["results"] for row in compared(result)]
    most = max([4.0, *(max(ratio, aim or 0) for _, _, ratio, aim in rows)]) * 1.05
    height = TOP + ROW * len(rows) + 20

    def x(ratio):
        return LEFT + (WIDTH - LEFT - RIGHT) * ratio / most

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" fill="{INK}">times the peer (line at 1); the red mark is the aim</text>',
    ]
    last = None
    for i, (name, peer, ratio, aim) in enumerate(rows):
        y, end, again = TOP + ROW * i, max(x(ratio), x(aim or 0)) + 6, name == last
        label, fill, last = (f"… {peer}", ALSO, name) if again else (name, OURS, name)
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end" fill="{INK}">{escape(label)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{x(ratio) - LEFT:.1f}" height="{ROW - 8}" fill="{fill}"/>',
        ]
        if aim:
            mark = f'x="{x(aim) - 1.5:.1f}" y="{y - 2}" width="3" height="{ROW - 4}"'
            parts.append(f'<rect {mark} fill="{AIM}"/>')
        parts.append(f'<text x="{end:.1f}" y="{y + 13}" fill="{INK}">{ratio:.2f}x</text>')
    line = f'x1="{x(1):.1f}" x2="{x(1):.1f}" y1="{TOP - 8}" y2="{height - 14}"'
    return "\n".join([*parts, f'<line {line} stroke="{INK}" stroke-dasharray="3 3"/>', "</svg>", ""])


def stem_of(content):
    """Return the name, without its ending, of the file that keeps results: their minute, in UTC."""
    return re.sub("[:T]", "-", content["time"][:16])


def newest(named=None):
    """Return {kind of processor: content}: the newest whole runs; `named`, a content, takes the place of its kind's."""
    contents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    whole = [content for content in contents if not content.get("partial")] + ([named] if named else [])
    found = {processor(content["machine"]): content for content in whole}
    return dict(sorted(found.items()))


def filled(page, contents):
    """Return the page's text with the sections of `contents` between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + "\n".join(map(section, contents)) + "\n" + END + rest.partition(END)[2]


def filled_readme(text, results):
    """Return a README's text with the figures of `results` in its table: the one whose second column is llamacy."""
    found = {result["name"]: result for result in results}
    lines = text.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if line.startswith("| | llamacy |")) + 2
    for i, name in enumerate(IN_README, first):
        if name in found:
            _, label, ours, theirs, _, end = lines[i].split("|")
            ours, theirs = (_refilled(cell, found[name], side) for cell, side in ((ours, "llamacy"), (theirs, None)))
            lines[i] = "|".join(["", label, ours, theirs, f" {found[name]['ratio']:.2f}x ", end])
    return "".join(lines)


def _refilled(cell, result, side):
    """Return a cell, " 202, 339 MB, PEFT ", with a side's median and peak memory; units and names stay."""
    side = side or result["peer"]
    median, peak = result["medians"][side], result["peak_rss_bytes"].get(side, 0)
    cell = re.sub(r"^ [\d.]+", f" {median:.0f}" if median >= 10 else f" {median:.2g}", cell)
    return re.sub(r"\d+(?= MB)", f"{peak / 1e6:.0f}", cell)


def write(contents):
    """Put the results {kind of processor: content} into the docs."""
    PAGE.write_text(filled(PAGE.read_text("utf-8"), contents.values()), "utf-8")
    for content in contents.values():
        picture_path(content).write_text(picture(content), "utf-8")
    if README_PROCESSOR in contents:
        for readme in READMES:
            text = filled_readme(readme.read_text("utf-8"), contents[README_PROCESSOR]["results"])
            readme.write_text(text, "utf-8")


if __name__ == "__main__":
    try:
        found = newest(json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else None)
    except (OSError, ValueError) as error:
        sys.exit(f"report: {' '.join(map(str, sys.argv[1:]))}: {error}; wanted a file that `make bench` wrote")
    if not found:
        sys.exit(f"report: no whole run in {RESULTS}: run `make bench` first")
    write(found)

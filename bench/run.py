"""`make bench`: this project and its peers on the same models in the same run, alternating, on the same threads.

Each measurement is a process of its own; round by round ours and theirs take turns, so that a machine whose speed
drifts does so for both. The table shows medians; a ratio above 1 is in our favour. Everything measured is kept as JSON
in bench/results.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cases import CASES, ROOT, model_file
from llamacy import __version__, kernels
from llamacy.cli.bench import cpu_name
from llamacy.cli.common import physical_cores

PEER_PACKAGES = ["llama-cpp-python", "torch", "peft", "transformers"]


def run(case, command, python, values):
    """Run one side of a case in a process; return (samples, peak bytes or None): tokens/s, or seconds if timed."""
    script, *arguments = [str(part).format(**values) for part in command]
    program = [str(ROOT / script)] if script.startswith("bin/") else [python, str(ROOT / "bench" / script)]
    begin = time.perf_counter()
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment(values))
    seconds = time.perf_counter() - begin
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"bench: {case.name}: {' '.join([*program, *arguments])} failed ({done.returncode}): {last}")
    if case.timed:
        return [seconds], None
    result = json.loads(done.stdout)
    result = result[0] if isinstance(result, list) else result
    return result.get("samples_ts") or result["ts"], result["peak_rss_bytes"]


def environment(values):
    return os.environ | {"OMP_NUM_THREADS": str(values["threads"])}


def measure(case, rounds, python, threads):
    """Return a case's result: both sides' samples and medians, the ratio, the peaks."""
    values = {"model": model_file(case.model, python), "threads": threads}
    sides = {"llamacy": case.ours, case.peer: case.theirs}
    samples, peaks = {side: [] for side in sides}, {side: [] for side in sides}
    for i in range(rounds):
        for side in reversed(sides) if i % 2 else sides:
            found, peak = run(case, sides[side], python, values)
            samples[side] += found
            peaks[side] += [peak] if peak else []
    medians = {side: statistics.median(found) for side, found in samples.items()}
    ratio = medians["llamacy"] / medians[case.peer]
    return {
        "name": case.name,
        "unit": "s" if case.timed else "tokens/s",
        "peer": case.peer,
        "medians": medians,
        "ratio": 1 / ratio if case.timed else ratio,
        "peak_rss_bytes": {side: max(found) for side, found in peaks.items() if found},
        "samples": samples,
    }


def machine(threads):
    """Return what the figures depend on beside the code."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "isa": kernels.isa,
        "load_average_before": os.getloadavg()[0],
    }


def versions(python):
    """Return the versions of this project (with its commit), of Python and of the peers."""
    probe = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    peers = json.loads(subprocess.check_output([python, "-c", probe, *PEER_PACKAGES], text=True))
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return {"llamacy": __version__, "commit": git.stdout.strip(), "python": platform.python_version()} | peers


def line_of(result):
    """Return a result's row of the table."""
    ours, theirs = result["medians"]["llamacy"], result["medians"][result["peer"]]
    peaks = [f"{peak / 1e6:.0f} MB" for peak in result["peak_rss_bytes"].values()] or ["", ""]
    unit = result["unit"]
    return (
        result["name"],
        f"{ours:.2f} {unit}",
        f"{theirs:.2f} {unit}",
        result["peer"],
        f"{result['ratio']:.2f}x",
        *peaks,
    )


def table(results):
    """Return the results as a Markdown table."""
    head = ("measure", "llamacy", "peer", "which", "ratio", "our peak", "their peak")
    lines = [head, tuple("-" * len(name) for name in head), *map(line_of, results)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def facts(threads, python):
    """Return what a file of results begins with: when, on what and with which versions it was measured."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"time": now, "machine": machine(threads), "versions": versions(python)}


def main():
    parser = argparse.ArgumentParser(description="Compare with llama.cpp and PEFT on this machine.")
    parser.add_argument("--peer-python", default=str(ROOT / "bench/.venv/bin/python"), help="Python that has the peers")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the measures whose names match")
    parser.add_argument("--rounds", type=int, default=3, help="times that the two sides take turns")
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    args = parser.parse_args()
    chosen = [case for case in CASES if re.search(args.only, case.name)]
    if not chosen or args.rounds < 1:
        parser.error(f"nothing to measure: --only {args.only!r}, --rounds {args.rounds}")
    results, content = [], facts(args.threads, args.peer_python)
    path = ROOT / "bench" / "results" / f"{re.sub('[:T]', '-', content['time'][:16])}.json"
    path.parent.mkdir(exist_ok=True)
    for case in chosen:
        results.append(measure(case, args.rounds, args.peer_python, args.threads))
        print(*line_of(results[-1]), sep="  ", file=sys.stderr)
        path.write_text(json.dumps(content | {"results": results}, indent=1) + "\n")
    print(table(results))
    print(f"kept in {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""`make bench`: this project and its peers on the same models in the same run, alternating, on the same threads.

Each measurement is a process of its own; round by round ours and theirs take turns, so that a machine whose speed
drifts does so for both. The table shows medians; a ratio above 1 is in our favour. How fast the machine reads memory is
measured in the same run. Everything is kept as JSON in bench/results; `make report` puts the newest into the docs.
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

from bench.bandwidth import read_bandwidth
from bench.cases import CASES, EXTRA, ROOT, model_file
from bench.report import line_of, table
from llamacy import __version__, kernels
from llamacy.cli.bench import cpu_name
from llamacy.cli.common import physical_cores
from llamacy.formats.model_file import open_model

PEER_PACKAGES = ["llama-cpp-python", "torch", "peft", "transformers"]


def run(case, command, python, values):
    """Run one side of a case in a process; return (samples, peak bytes): tokens/s, or seconds if timed."""
    script, *arguments = [str(part).format(python=python, **values) for part in command]
    program = [str(ROOT / script)] if script.startswith("bin/") else [python, str(ROOT / "bench" / script)]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(values["threads"])},
    )
    out, err = process.communicate()
    seconds = time.perf_counter() - begin
    if process.returncode:
        last = (err.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(
            f"bench: {case.name}: {' '.join([*program, *arguments])} failed ({process.returncode}): {last}"
        )
    if case.timed:
        return [seconds], None
    result = json.loads(out)
    result = result[0] if isinstance(result, list) else result
    return result.get("samples_ts") or result["ts"], result["peak_rss_bytes"]


def measure(case, rounds, repetitions, python, threads):
    """Return a case's result: both sides' samples and medians, the ratio, the peaks."""
    values = {"model": model_file(case.model, python), "threads": threads, "repetitions": repetitions}
    sides = {"llamacy": case.ours} | ({case.peer: case.theirs} if case.theirs else {})
    samples, peaks = {side: [] for side in sides}, {side: [] for side in sides}
    for i in range(1 if case.heavy else rounds):
        for side in reversed(sides) if i % 2 else sides:
            found, peak = run(case, sides[side], python, values)
            samples[side] += found
            peaks[side] += [peak] if peak else []
    medians = {side: statistics.median(found) for side, found in samples.items()}
    ratio = medians["llamacy"] / medians[case.peer] if case.theirs else None
    return {
        "name": case.name,
        "unit": "s" if case.timed else "tokens/s",
        "peer": case.peer if case.theirs else None,
        "medians": medians,
        "ratio": 1 / ratio if case.timed else ratio,
        "aim": case.aim,
        "bytes_per_token": weight_bytes(values["model"]) if case.streams else None,
        "peak_rss_bytes": {side: max(found) for side, found in peaks.items() if found},
        "samples": samples,
    }


def weight_bytes(path):
    """Return the bytes that one token reads: all tensors, the table of embeddings only where it is the output too."""
    with open_model(path) as file:
        own_output = "output.weight" in file.tensors
        return sum(
            info.nbytes for name, info in file.tensors.items() if not (own_output and name == "token_embd.weight")
        )


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


def facts(threads, python):
    """Return what a file of results begins with: when, on what and with which versions it was measured."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "time": now,
        "machine": machine(threads) | {"read_bytes_per_second": read_bandwidth(threads)},
        "versions": versions(python),
    }


def main():
    parser = argparse.ArgumentParser(description="Compare with llama.cpp and PEFT on this machine.")
    parser.add_argument("--peer-python", default=str(ROOT / "bench/.venv/bin/python"), help="Python that has the peers")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the measures whose names match")
    parser.add_argument("--rounds", type=int, default=2, help="times that the two sides take turns")
    parser.add_argument("--quick", action="store_true", help="one round, one repetition, nothing that takes minutes")
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    args = parser.parse_args()
    rounds, repetitions = (1, 1) if args.quick else (args.rounds, 2)
    chosen = [case for case in CASES if re.search(args.only, case.name) and not (args.quick and case.heavy)]
    chosen += [case for case in EXTRA if args.only and re.search(args.only, case.name)]
    if not chosen or args.rounds < 1:
        parser.error(f"nothing to measure: --only {args.only!r}, --rounds {args.rounds}")
    results, content = [], facts(args.threads, args.peer_python)
    bandwidth = content["machine"]["read_bytes_per_second"]
    print(f"reading memory: {bandwidth / 1e9:.1f} GB/s", file=sys.stderr)
    path = ROOT / "bench" / "results" / f"{re.sub('[:T]', '-', content['time'][:16])}.json"
    path.parent.mkdir(exist_ok=True)
    for case in chosen:
        results.append(measure(case, rounds, repetitions, args.peer_python, args.threads))
        print(*line_of(results[-1], bandwidth), sep="  ", file=sys.stderr)
        path.write_text(json.dumps(content | {"results": results}, indent=1) + "\n")
    print(table(results, bandwidth))
    print(f"kept in {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()

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
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cases import CASES, DEFAULT_MODEL, IK_LLAMA_CPP, ROOT, model_file, model_path, samples_file
from bench.peer_ik_llama_cpp import version
from bench.report import EXTENSIONS, RESULTS, lines_of, processor, stem_of, table
from llamacy import __version__, kernels
from llamacy.cli.common import whole
from llamacy.cli.run import make_parser
from llamacy.cli.run import run as run_command
from llamacy.errors import UsageError
from llamacy.formats.model_file import open_model
from llamacy.system import cpu_name, physical_cores

PEER_PACKAGES = ["llama-cpp-python", "torch", "peft", "transformers", "bitsandbytes"]
# A peer whose first run takes longer, in seconds, has no other: torch's bf16 where the processor has no such products.
LONG = 120


def run(case, command, python, values):
    """Run one side of a case in a process; return {"ts": tokens/s (seconds if timed), "peak_rss_bytes", ...}."""
    script, *arguments = [str(part).format(python=python, **values) for part in command]
    program = [str(ROOT / script)] if script.startswith("bin/") else [python, str(ROOT / "bench" / script)]
    environment = os.environ | {"OMP_NUM_THREADS": str(values["threads"])}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begin = time.perf_counter()
        process = subprocess.Popen([*program, *arguments], stdout=out, stderr=err, cwd=ROOT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            last = (err.read().strip().splitlines() or ["no message"])[-1]
            line = " ".join([*program, *arguments])
            raise SystemExit(f"bench: {case.name}: {line} failed ({process.returncode}): {last}")
        if case.timed:
            return {"ts": [seconds], "peak_rss_bytes": usage.ru_maxrss * 1024, "seconds": seconds}
        result = json.load(out)
    result = result[0] if isinstance(result, list) else result
    return result | {"ts": result.get("samples_ts") or result["ts"], "seconds": seconds}


def bandwidth_now(threads):
    """Return the bytes per second that can be read now; measured apart, as a child's peak begins at its parent's."""
    command = [sys.executable, str(ROOT / "bench" / "bandwidth.py"), str(threads)]
    return json.loads(subprocess.check_output(command, text=True))


def sides_of(case, ik, without):
    """Return {who: command}, ours first; ik_llama.cpp where its program is given, no peer whose name matches."""
    peers = [peer for peer in case.peers if ik or peer.name != IK_LLAMA_CPP]
    kept = [peer for peer in peers if not (without and re.search(without, peer.name))]
    return {"llamacy": case.ours} | {peer.name: peer.command for peer in kept}


def measure(case, rounds, repetitions, python, threads, ik, without=""):
    """Return a case's result: all sides' samples and medians, the ratios to the peers, the peaks."""
    sides, found, bandwidths = sides_of(case, ik, without), {}, []
    values = {"model": model_file(case.model, python), "threads": threads, "repetitions": repetitions, "ik": ik}
    values |= {"samples": samples_file(values["model"])} if any("{samples}" in part for part in sides.values()) else {}
    for i in range(1 if case.heavy else rounds):
        for side in reversed(sides) if i % 2 else sides:
            if side in found and side != "llamacy" and found[side][0]["seconds"] > LONG:
                continue
            bandwidths += [bandwidth_now(threads)] if case.streams else []
            found.setdefault(side, []).append(run(case, sides[side], python, values))
    samples = {side: [speed for result in found[side] for speed in result["ts"]] for side in sides}
    medians = {side: statistics.median(speeds) for side, speeds in samples.items()}
    times = {side: medians["llamacy"] / median for side, median in medians.items()}
    ratios = {side: 1 / ratio if case.timed else ratio for side, ratio in times.items()}
    aims = {peer.name: peer.aim for peer in case.peers}
    first, *others = [side for side in sides if side != "llamacy"] or [None]
    return {
        "name": case.name,
        "unit": "s" if case.timed else case.unit,
        "processor": processor(machine(threads)),
        "peer": first,
        "medians": medians,
        "ratio": ratios.get(first),
        "aim": aims.get(first),
        "also": {side: {"ratio": ratios[side], "aim": aims[side]} for side in others},
        "bytes_per_token": weight_bytes(values["model"]) if case.streams else None,
        "read_bytes_per_second": statistics.median(bandwidths) if bandwidths else None,
        "peak_rss_bytes": {side: max(one["peak_rss_bytes"] for one in results) for side, results in found.items()},
        "peak_aim_bytes": case.peak_aim,
        "samples": samples,
    }


def weight_bytes(path):
    """Return the bytes that one token reads: all tensors, the table of embeddings only where it is the output too."""
    with open_model(path) as file:
        own_output = "output.weight" in file.tensors
        return sum(
            info.nbytes for name, info in file.tensors.items() if not (own_output and name == "token_embd.weight")
        )


def memory_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def extensions():
    """Return which of EXTENSIONS the processor has."""
    try:
        with open("/proc/cpuinfo") as file:
            words = set(file.read().replace("\n", " ").split(" "))
    except OSError:
        return []
    return [name for name in EXTENSIONS if name in words]


def machine(threads):
    """Return what the figures depend on beside the code."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
        "isa": kernels.isa,
        "extensions": extensions(),
        "load_average_before": os.getloadavg()[0],
    }


def peer_versions(python):
    """Return {package: version} of the peers that `python` has; UsageError where it is none or lacks one."""
    probe = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    try:
        done = subprocess.run([python, "-c", probe, *PEER_PACKAGES], capture_output=True, text=True)
        why = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    except OSError as error:
        done, why = None, error.strerror
    if done is None or done.returncode:
        raise UsageError(f"--peer-python {python}: {why}; `make bench` makes an environment with the peers")
    return json.loads(done.stdout)


def commit():
    """Return the commit that is measured, "unknown" without git or its history."""
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def versions(python, ik):
    """Return the versions of this project (with its commit), of Python and of the peers."""
    peers = peer_versions(python)
    peers |= {IK_LLAMA_CPP: version(ik, DEFAULT_MODEL)} if ik else {}
    return {"llamacy": __version__, "commit": commit(), "python": platform.python_version()} | peers


def facts(threads, python, ik):
    """Return what a file of results begins with: when, on what and with which versions it was measured."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "time": now,
        "machine": machine(threads) | {"read_bytes_per_second": bandwidth_now(threads)},
        "versions": versions(python, ik),
    }


def chosen(only, quick):
    """Return the cases to measure: those named, without the long ones if quick, without those too large for here."""
    cases = [case for case in CASES if re.search(only, case.name) and not (quick and case.heavy)]
    room = {"memory": memory_bytes(), "disk": shutil.disk_usage(ROOT).free}
    for case in list(cases):
        wanted = {"memory": case.memory, "disk": 0 if model_path(case.model).exists() else case.disk}
        if any(wanted[name] > room[name] for name in room):
            sizes = ", ".join(f"{wanted[name] / 1e9:.0f} GB of {name}" for name in room)
            print(f"left out: {case.name} (wants {sizes})", file=sys.stderr)
            cases.remove(case)
    return cases


def build_parser():
    parser = make_parser("bench/run.py", "Compare with llama.cpp and PEFT on this machine.")
    parser.add_argument("--peer-python", default=str(ROOT / "bench/.venv/bin/python"), help="Python that has the peers")
    parser.add_argument("--ik-llama-bench", metavar="PATH", help="llama-bench of ik_llama.cpp, to measure it too")
    parser.add_argument("--only", default="", type=pattern, metavar="REGEX", help="only measures whose names match")
    parser.add_argument("--without", default="", type=pattern, metavar="REGEX", help="no peers whose names match")
    parser.add_argument("--rounds", type=whole(1), default=3, metavar="N", help="times that the sides take turns")
    parser.add_argument("--quick", action="store_true", help="one round, one repetition, nothing that takes minutes")
    parser.add_argument("-t", "--threads", type=whole(1), default=physical_cores(), metavar="N")
    return parser


def pattern(text):
    """Return `text`, an argparse type: a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"wanted a regular expression, got {text!r} ({error})") from None
    return text


def main(argv):
    args = build_parser().parse_args(argv)
    rounds, repetitions = (1, 1) if args.quick else (args.rounds, 2)
    ik = args.ik_llama_bench and str(Path(args.ik_llama_bench).resolve())
    if ik and not (os.path.isfile(ik) and os.access(ik, os.X_OK)):
        raise UsageError(f"--ik-llama-bench {ik}: no such program")
    cases = chosen(args.only, args.quick)
    if not cases:
        raise UsageError(f"nothing to measure: --only {args.only!r}")
    results, content = [], facts(args.threads, args.peer_python, ik)
    bandwidth = content["machine"]["read_bytes_per_second"]
    print(f"reading memory: {bandwidth / 1e9:.1f} GB/s", file=sys.stderr)
    path = RESULTS / f"{stem_of(content)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for case in cases:
        results.append(measure(case, rounds, repetitions, args.peer_python, args.threads, ik, args.without))
        for line in lines_of(results[-1], bandwidth):
            print(*line, sep="  ", file=sys.stderr)
        # A part of the table must not take the place of the whole one in the docs.
        partial = bool(args.only or args.quick or len(results) < len(cases))
        path.write_text(json.dumps(content | {"partial": partial, "results": results}, indent=1) + "\n")
    print(table(results, bandwidth))
    print(f"kept in {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""ik_llama.cpp through a llama-bench that you built of it, in the better of its two modes; run by bench/run.py.

    python peer_ik_llama_cpp.py PROGRAM MODEL PROMPT GENERATE DEPTH THREADS REPETITIONS

It reads weights as they are in the file or, with -rtr 1, in rows interleaved when the model is loaded. Prints one JSON
object: {"ts": [tokens/s of each repetition], "peak_rss_bytes", "mode"}.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

MODES = (["-rtr", "0"], ["-rtr", "1"])


def call(program, *arguments):
    """Return llama-bench's only row, with the peak memory of its process."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([program, *map(str, arguments), "-o", "json"], stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit((err.read().strip().splitlines() or [f"{program} failed ({process.returncode})"])[-1])
        (row,) = json.load(out)
    return row | {"peak_rss_bytes": usage.ru_maxrss * 1024}


def version(program, model):
    """Return the commit that a llama-bench says it was built of."""
    return call(program, "-m", model, "-p", 1, "-n", 0, "-r", 1)["build_commit"]


def speed(program, model, prompt, generate, depth, threads, repetitions):
    """Time a prompt or a generation (behind `depth` tokens) in each mode; return what is printed, of the best one."""
    behind = ["-p", 0, "-n", 0, "-gp", f"{depth},{generate}"] if depth else ["-p", prompt, "-n", generate]
    rows = {}
    for mode in MODES:
        rows[" ".join(mode)] = call(program, "-m", model, *behind, "-t", threads, "-r", repetitions, *mode)
    mode, row = max(rows.items(), key=lambda item: statistics.median(item[1]["samples_ts"]))
    return {"ts": row["samples_ts"], "peak_rss_bytes": row["peak_rss_bytes"], "mode": mode}


if __name__ == "__main__":
    path, model_path, *numbers = sys.argv[1:]
    print(json.dumps(speed(path, model_path, *map(int, numbers))))

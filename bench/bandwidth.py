"""How fast this machine reads memory: `python bench/bandwidth.py [THREADS]` prints bytes per second as JSON.

Each thread looks for the largest number of its part of an array far larger than the caches; the median of several
rounds counts, as it does of the tokens per second that are compared with it: on a machine that is shared the best round
is a moment that no longer run can have throughout.
"""

import argparse
import json
import os
import statistics
import threading
import time

import numpy as np

MEGABYTES, ROUNDS = 512, 8


def read_bandwidth(threads, megabytes=MEGABYTES, rounds=ROUNDS):
    """Return the bytes per second that `threads` threads read together, the median of `rounds`."""
    parts = np.array_split(np.ones(megabytes << 18, np.int32), threads)
    found = []
    for _ in range(rounds):
        workers = [threading.Thread(target=part.max) for part in parts]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        found.append((megabytes << 20) / (time.perf_counter() - begin))
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser(description="Print the bytes per second that this machine reads from memory.")
    parser.add_argument("threads", type=int, nargs="?", default=os.cpu_count(), help="all processors when left out")
    threads = parser.parse_args().threads
    if threads < 1:
        parser.error(f"{threads} threads: wanted 1 or more")
    print(json.dumps(read_bandwidth(threads)))


if __name__ == "__main__":
    main()

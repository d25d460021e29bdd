"""What the operating system is asked for: processors; memory that stays, how much there is, how much is used.

Where it does not say, or is not Linux, each function does without.
"""

import math
import os
import sys
from pathlib import Path

# mlockall's flags: what is mapped now, of that only what is or comes into memory (Linux)
MCL_CURRENT, MCL_ONFAULT = 1, 4


def processors():
    """Return how many logical processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores():
    """Return how many physical cores this process may use: on Linux by affinity mask and CPU quota, else all CPUs."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    cores = {_core_of(cpu) for cpu in cpus}
    return max(1, math.ceil(min(len(cores), _cpu_quota())))


def fit_threads(threads):
    """Return `threads` (None: the physical cores; 0 or less, as in llama.cpp: all processors), at most the processors.

    More would wait for each other by spinning.
    """
    n_cpus = processors()
    if threads is None:
        return min(physical_cores(), n_cpus)
    return min(threads, n_cpus) if threads > 0 else n_cpus


def _core_of(cpu):
    """Return (package, core) of a logical CPU, or the CPU itself where the kernel does not say."""
    folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (folder / "physical_package_id").read_text().strip(), (folder / "core_id").read_text().strip()
    except OSError:
        return cpu


def _cpu_quota():
    """Return the CPUs a container may use by cgroup v2's cpu.max, infinity without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def cpu_name():
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        # Late: only those who measure ask.
        import platform

        return platform.processor() or platform.machine()


def lock_memory():
    """Keep this process's pages in memory (mlockall); return why the system refuses, "" where it does not.

    The pages of a model's file that were given back after packing stay out of it.
    """
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mlockall(MCL_CURRENT | MCL_ONFAULT if sys.platform == "linux" else MCL_CURRENT)
        return os.strerror(ctypes.get_errno()) if failed else ""
    except (AttributeError, OSError):
        return "not on this system"


def peak_rss_bytes():
    """Return the largest resident size of this process so far, in bytes.

    Linux's own VmHWM begins at 0 with the program; getrusage, used elsewhere, may count the process that started it.
    """
    try:
        with open("/proc/self/status", "rb") as file:
            lines = [line for line in file if line.startswith(b"VmHWM:")]
        return int(lines[0].split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        # Not everywhere, and needed here only.
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes():
    """Return the present resident size of this process in bytes; the largest so far where the system does not say."""
    return _field("/proc/self/status", b"VmRSS:") or peak_rss_bytes()


def available_bytes():
    """Return how much more memory this process can have without swapping, None where the system does not say.

    By /proc/meminfo and, in a container, by what its cgroup (v2) leaves; file caches there count as free.
    """
    free = _field("/proc/meminfo", b"MemAvailable:")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/memory.stat", "rb") as file:
            anonymous = int(next(line for line in file if line.startswith(b"anon ")).split()[1])
    except (OSError, ValueError, StopIteration):
        return free
    return min(free or limit, max(0, limit - anonymous))


def _field(path, name):
    """Return a field that /proc gives in kB, as bytes; None where it does not."""
    try:
        with open(path, "rb") as file:
            line = next(line for line in file if line.startswith(name))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, IndexError, ValueError):
        return None

"""What the operating system is asked for: processors, and memory that stays.

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

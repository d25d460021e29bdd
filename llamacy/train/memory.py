"""How much memory this process has and needs, and how much more there is."""

import resource
import sys


def peak_rss_bytes():
    """Return the largest resident size of this process so far, in bytes.

    Linux's own VmHWM begins at 0 with the program; getrusage, used elsewhere, may count the process that started it.
    """
    try:
        with open("/proc/self/status", "rb") as file:
            lines = [line for line in file if line.startswith(b"VmHWM:")]
        return int(lines[0].split()[1]) * 1024
    except (OSError, IndexError, ValueError):
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

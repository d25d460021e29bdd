"""How much memory this process has needed."""

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

"""`--mlock`: this process's memory stays in memory, where the system lets us."""

import os
import sys

# mlockall's flags: what is mapped now, of that only what is or comes into memory (Linux)
MCL_CURRENT, MCL_ONFAULT = 1, 4


def lock_memory():
    """Keep this process's pages in memory (mlockall); a warning on stderr when the system refuses.

    The pages of the model's file that were given back after packing stay out of it.
    """
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mlockall(MCL_CURRENT | MCL_ONFAULT if sys.platform == "linux" else MCL_CURRENT)
        reason = os.strerror(ctypes.get_errno())
    except (AttributeError, OSError):
        failed, reason = True, "not on this system"
    if failed:
        print(f"warning: --mlock: {reason}; going on without it (see `ulimit -l`)", file=sys.stderr)

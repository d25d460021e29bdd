"""What the operating system is asked for: processors; memory that stays, goes, how much there is, how much is used.

Where it does not say, or is not Linux, each function does without; LLAMACY_PORTABLE=1 in the environment makes them so
everywhere. What the kernels ask for is in pyx/simd/system.pxd.
"""

import math
import mmap
import os
import sys
from pathlib import Path

LINUX = sys.platform.startswith("linux") and os.environ.get("LLAMACY_PORTABLE") != "1"

# mlockall's flags: what is mapped now, of that only what is or comes into memory (Linux)
MCL_CURRENT, MCL_ONFAULT = 1, 4


def machine():
    """Return the architecture as uname names it."""
    return os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "").lower()


# Bits of AT_HWCAP (Linux, arch/arm64/include/uapi/asm/hwcap.h), not /proc/cpuinfo: under qemu-user that is the host's.
ARM_BITS = {"asimd": 1, "asimddp": 20}
AT_HWCAP = 16


def arm_features():
    """Return the features that ARM_BITS names and this CPU has; empty where the system does not say."""
    try:
        words = memoryview(_file("/proc/self/auxv").read_bytes()).cast("Q")
    except OSError:
        return {"asimd", "asimddp"} if "1" in _sysctl("hw.optional.arm.FEAT_DotProd") else set()
    caps = dict(zip(words[::2], words[1::2], strict=True)).get(AT_HWCAP, 0)
    return {name for name, bit in ARM_BITS.items() if caps >> bit & 1}


def x86_features():
    """Return this CPU's features as Linux names them; empty where the system does not say."""
    try:
        lines = _file("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return _sysctl("machdep.cpu.features", "machdep.cpu.leaf7_features")
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def _file(path):
    """Return a Path of Linux's that tells something; OSError where this is not Linux."""
    if not LINUX:
        raise FileNotFoundError(path)
    return Path(path)


def _sysctl(*names):
    """Return the words that macOS has for these names, in lower case; empty elsewhere."""
    if sys.platform != "darwin":
        return set()
    import subprocess

    done = subprocess.run(["/usr/sbin/sysctl", "-n", *names], capture_output=True, text=True)
    return set(done.stdout.lower().split())


def processors():
    """Return how many logical processors this process may use."""
    return len(_affinity()) or os.cpu_count() or 1


def _affinity():
    """Return the logical processors this process may use, empty where the system does not say."""
    return os.sched_getaffinity(0) if LINUX else set()


def physical_cores():
    """Return how many physical cores this process may use: on Linux by affinity mask and CPU quota, else all CPUs."""
    cores = {_core_of(cpu) for cpu in _affinity()} or range(os.cpu_count() or 1)
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
        quota, period = _file("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def cpu_name():
    """Return the processor's name."""
    try:
        with open(_file("/proc/cpuinfo")) as file:
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
        failed = libc.mlockall(MCL_CURRENT | MCL_ONFAULT if LINUX else MCL_CURRENT)
        return os.strerror(ctypes.get_errno()) if failed else ""
    except (AttributeError, OSError):
        return "not on this system"


def give_back(mapped, start, n_bytes):
    """Let the system have whole pages of an mmap, to be read again when touched; return whether it took them."""
    if not (LINUX and hasattr(mmap, "MADV_DONTNEED")):
        return False
    mapped.madvise(mmap.MADV_DONTNEED, start, n_bytes)
    return True


def peak_rss_bytes():
    """Return the largest resident size of this process so far, in bytes.

    Linux's own VmHWM begins at 0 with the program; getrusage, used elsewhere, may count the process that started it.
    """
    try:
        with open(_file("/proc/self/status"), "rb") as file:
            lines = [line for line in file if line.startswith(b"VmHWM:")]
        return int(lines[0].split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        # Needed here only.
        try:
            import resource
        except ImportError:  # not on this system
            return 0
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
        with open(_file("/sys/fs/cgroup/memory.max")) as file:
            limit = int(file.read())
        with open(_file("/sys/fs/cgroup/memory.stat"), "rb") as file:
            anonymous = int(next(line for line in file if line.startswith(b"anon ")).split()[1])
    except (OSError, ValueError, StopIteration):
        return free
    return min(free or limit, max(0, limit - anonymous))


def _field(path, name):
    """Return a field that /proc gives in kB, as bytes; None where it does not."""
    try:
        with open(_file(path), "rb") as file:
            line = next(line for line in file if line.startswith(name))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, IndexError, ValueError):
        return None

"""The instruction sets: what each needs of a compiler and of a CPU. setup.py reads it too, before anything is built."""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

X86, ARM = ("x86_64",), ("aarch64", "arm64")


class Isa(NamedTuple):
    """One set of kernels: a file of pyx/simd and a package of llamacy.kernels, both of its name."""

    machines: tuple  # as uname names them
    flags: list  # the compiler's, on top of every set's
    needs: set  # CPU features as Linux names them


AVX2 = Isa(X86, ["-mavx2", "-mfma", "-mf16c"], {"avx2", "fma", "f16c"})
# Best first.
ISAS = {
    # VNNI included: without it the products would have to be written once more
    "avx512": Isa(
        X86,
        [*AVX2.flags, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"],
        AVX2.needs | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    ),
    "avx2": AVX2,
    # Scheduled before registers are given, loads run ahead and push sums to the stack (gcc 12): 1213 instead of
    # 554 instructions for a block of 4 tokens in 16 bits, 547 instead of 356 in 8.
    "neon": Isa(ARM, ["-march=armv8.2-a+dotprod", "-fno-schedule-insns"], {"asimd", "asimddp"}),
    "generic": Isa(X86 + ARM, [], set()),
}

# Bits of AT_HWCAP (Linux, arch/arm64/include/uapi/asm/hwcap.h), not /proc/cpuinfo: under qemu-user that is the host's.
ARM_BITS = {"asimd": 1, "asimddp": 20}
AT_HWCAP = 16


def _arm_features():
    words = memoryview(Path("/proc/self/auxv").read_bytes()).cast("Q")
    caps = dict(zip(words[::2], words[1::2], strict=True)).get(AT_HWCAP, 0)
    return {name for name, bit in ARM_BITS.items() if caps >> bit & 1}


def _x86_features():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


@cache
def cpu_features():
    """Return this CPU's features as Linux names them, of ARM's those a set needs; empty where it is not Linux."""
    try:
        return _arm_features() if os.uname().machine in ARM else _x86_features()
    except OSError:
        return set()


def of_this_machine():
    """Return the sets of this machine's architecture, best first; the portable one where it is unknown."""
    return [name for name, isa in ISAS.items() if os.uname().machine in isa.machines] or ["generic"]


def lacking(name):
    """Return what this machine lacks to run the set: CPU features, or its architecture."""
    if name not in of_this_machine():
        return [f"the architecture, {ISAS[name].machines[0]}"]
    return sorted(ISAS[name].needs - cpu_features())

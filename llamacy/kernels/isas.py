"""The instruction sets: what each needs of a compiler and of a CPU. setup.py reads it too, before anything is built."""

from functools import cache
from typing import NamedTuple

from llamacy import system
from llamacy.system import machine

X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")


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


@cache
def cpu_features():
    """Return this CPU's features as Linux names them; empty where the system does not say."""
    return system.arm_features() if machine() in ARM else system.x86_features()


def of_this_machine():
    """Return the sets of this machine's architecture, best first; the portable one where it is unknown."""
    return [name for name, isa in ISAS.items() if machine() in isa.machines] or ["generic"]


def lacking(name):
    """Return what this machine lacks to run the set: CPU features, or its architecture."""
    if name not in of_this_machine():
        return [f"the architecture, {ISAS[name].machines[0]}"]
    return sorted(ISAS[name].needs - cpu_features())

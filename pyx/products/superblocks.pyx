"""The units of a matrix's scales for superblock sums: superblocks.pxd."""

from libc.math cimport ldexpf
from libc.stdint cimport uint8_t

from ..simd.verbs cimport vf, vf_amax, vf_set1, vf_store
from .tiles cimport quad_scale

cdef extern from "<math.h>" nogil:
    float frexpf(float, int*)


cdef void find_units(const uint8_t* tile, int nb, size_t tile_bytes, bint fifth, bint wide, float* units) noexcept nogil:
    """units[16] of a row group's nb tiles; 1 for a row whose scales are all zero"""
    cdef float d[16]
    cdef int b, r, power
    cdef vf peak = vf_set1(0)
    for b in range(nb):
        peak = vf_amax(peak, quad_scale(tile + b * tile_bytes, fifth, wide))
    vf_store(d, peak)
    for r in range(16):
        frexpf(d[r], &power)        # d = 0.5 .. 1 times 2 ** power
        # whose inverse is finite too: scales of 2 ** -114 and less are as good as zero
        units[r] = ldexpf(1, max(power - 12, -126)) if d[r] > 0 else 1

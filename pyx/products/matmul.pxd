from libc.stdint cimport uint8_t

from .gemm cimport Packed

cdef class Arena:
    cdef uint8_t* memory
    cdef size_t size
    cdef size_t used
    cdef uint8_t* take(self, size_t n_bytes) except NULL

cdef class PackedMatrix:
    cdef Packed w
    cdef Arena arena

# Text to pieces: see splitter.pyx.

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free

from .splitting cimport Array, Stage

cdef struct Work:
    # Scratch of one call; nothing outlives it.
    Array codes         # uint32 code points
    Array ends          # int32 ends of pieces, in code points
    Array old_ends
    Array stack         # Retry
    Array symbols       # Symbol
    Array heap          # Merge
    Array text          # uint8 text with SentencePiece's spaces
    Array out           # int32 token ids


cdef inline void free_work(Work* work) noexcept nogil:
    free(work.codes.data)
    free(work.ends.data)
    free(work.old_ends.data)
    free(work.stack.data)
    free(work.symbols.data)
    free(work.heap.data)
    free(work.text.data)
    free(work.out.data)


cdef class Splitter:
    cdef object kept    # the arrays that the stages point into
    cdef Stage* stages
    cdef int n_stages

    cdef int cut(self, const uint8_t* text, int64_t n, Work* work) noexcept nogil

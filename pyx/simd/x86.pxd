# What all instruction sets of x86 share.

cdef extern from *:
    """
    #define prefetch_here(p) __asm__ volatile("prefetcht0 %0" : : "m"(*(const char*)(p)))
    """
    void prefetch_here(const void*) noexcept nogil      # where it is written: gcc would gather several

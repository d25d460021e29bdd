# Threads inside one parallel region: a barrier that spins, a shared counter of work, and fair shares of a range.

from .simd cimport pause

cdef extern from *:
    int _add "__atomic_add_fetch"(int*, int, int) noexcept nogil
    int _load "__atomic_load_n"(int*, int) noexcept nogil
    void _store "__atomic_store_n"(int*, int, int) noexcept nogil

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    ACQUIRE = 2
    RELEASE = 3
    ACQ_REL = 4
    SPINS = 4000        # some tens of microseconds; then the core is given away, for machines with fewer cores than threads

cdef struct Team:
    int n               # threads
    int arrived
    int phase
    int claimed


cdef inline void meet(Team* team) noexcept nogil:
    """Wait until all n threads are here; what each wrote before is seen by all after."""
    cdef int phase, spins = 0
    if team.n == 1:
        team.claimed = 0
        return
    phase = _load(&team.phase, ACQUIRE)
    if _add(&team.arrived, 1, ACQ_REL) == team.n:
        _store(&team.arrived, 0, RELEASE)
        _store(&team.claimed, 0, RELEASE)
        _store(&team.phase, phase + 1, RELEASE)
        return
    while _load(&team.phase, ACQUIRE) == phase:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            sched_yield()


cdef inline int claim(Team* team) noexcept nogil:
    """The next number of 0, 1, 2, ... since the last meet, each given to one thread."""
    return _add(&team.claimed, 1, ACQ_REL) - 1


cdef inline int share(int n, int i, int of) noexcept nogil:
    """Where part i of `of` nearly equal parts of range(n) begins."""
    return <int>(<long long>n * i // of)

# Threads inside one parallel region: a barrier that spins and then sleeps, a shared counter of work, fair shares of a range.

from ..simd.system cimport thread_sleep, threads_wake
from ..simd.verbs cimport pause

cdef extern from "<omp.h>" nogil:
    int omp_get_thread_num()
    int omp_get_num_threads()
    double omp_get_wtime()

cdef extern from *:
    int _add "__atomic_add_fetch"(int*, int, int) noexcept nogil
    int _load "__atomic_load_n"(int*, int) noexcept nogil
    void _store "__atomic_store_n"(int*, int, int) noexcept nogil

cdef enum:
    ACQUIRE = 2
    RELEASE = 3
    ACQ_REL = 4
    SEQ_CST = 5
    SPINS = 2000        # some tens of microseconds; then the core is given away: another program wants it, or fewer are there
    FEWEST = 100        # where waits end asleep again and again, spinning is not worth it: halved each time, down to this,
    REGAINED = 20       # won back by waits that end awake, and wholly at the next step
    LATE = 8            # one part in this many of a range goes to whoever is free

cdef struct Team:
    int n               # threads
    int arrived
    int phase
    int claimed
    int asleep
    int patience        # spins of a wait now
    int sleeps          # waits that ended asleep since the region began


cdef inline int join_team(Team* team) noexcept nogil:
    """What each thread of a parallel region does first: returns its number. Before the region `team` is as `barrier` leaves it.

    The runtime may give fewer threads than asked for; the barrier counts those that came.
    """
    _store(&team.n, omp_get_num_threads(), RELEASE)
    _store(&team.patience, SPINS, RELEASE)
    _store(&team.sleeps, 0, RELEASE)
    return omp_get_thread_num()


cdef inline void barrier(Team* team) noexcept nogil:
    """Wait until all n threads are here; what each wrote before is seen by all after."""
    cdef int phase, spins = 0, patience
    cdef bint slept = False
    if team.n == 1:
        team.claimed = 0
        return
    phase = _load(&team.phase, ACQUIRE)
    if _add(&team.arrived, 1, ACQ_REL) == team.n:
        _store(&team.arrived, 0, RELEASE)
        _store(&team.claimed, 0, RELEASE)
        # Either a sleeper's count is seen here, or it sees the new phase before it sleeps: hence SEQ_CST.
        _add(&team.phase, 1, SEQ_CST)
        if _load(&team.asleep, SEQ_CST):
            threads_wake(&team.phase)
        return
    patience = _load(&team.patience, ACQUIRE)
    while _load(&team.phase, ACQUIRE) == phase:
        spins += 1
        if spins < patience:
            pause()
            continue
        slept = True
        _add(&team.asleep, 1, SEQ_CST)
        thread_sleep(&team.phase, phase)
        _add(&team.asleep, -1, SEQ_CST)
    # Threads may overwrite each other's number: it is only a guess at how long waiting pays.
    if slept:
        _store(&team.patience, max(FEWEST, patience // 2), RELEASE)
        _add(&team.sleeps, 1, ACQ_REL)
    elif patience < SPINS:
        _store(&team.patience, patience + REGAINED, RELEASE)


cdef struct Walk:       # one thread's way through ranges dealt one after the other; begins as Walk(0, 0)
    int passed          # units of the ranges behind
    int held            # 1 + the unit claimed and not yet done, counted from the first range on; 0: none


cdef inline int claim(Team* team) noexcept nogil:
    """The next number of 0, 1, 2, ... since the last barrier, each given to one thread."""
    return _add(&team.claimed, 1, ACQ_REL) - 1


cdef inline int share(int n, int i, int of) noexcept nogil:
    """Where part i of `of` nearly equal parts of range(n) begins."""
    return <int>(<long long>n * i // of)


cdef inline bint next_static(Team* team, int total, int i, int n, int* n_taken, int* lo, int* hi) noexcept nogil:
    """Thread i's next part lo..hi of range(total); False when nothing is left. Before the first part turn is 0.

    First most of its fair share, which memory streams best; the rest in n pieces to whoever is free: a thread whose core
    or memory is slow just now is not waited for as long. Since the last barrier nothing else may have been claimed.
    """
    cdef int fixed = total - total // LATE if n > 1 else total, piece = (total - fixed + n - 1) // n
    n_taken[0] += 1
    if n_taken[0] == 1:
        lo[0], hi[0] = share(fixed, i, n), share(fixed, i + 1, n)
        if lo[0] < hi[0]:
            return True
    if piece == 0:
        return False
    lo[0] = fixed + claim(team) * piece
    hi[0] = min(lo[0] + piece, total)
    return lo[0] < total


cdef inline int piece_of(int left, int most, int n) noexcept nogil:
    return max(1, min(most, left // (2 * n)))


cdef inline bint next_guided(Team* team, int total, int most, int n, int* lo, int* hi) noexcept nogil:
    """The next part lo..hi of range(total) for whichever thread asks; False when nothing is left.

    Up to `most` at a time; towards the end ever less, down to one, so that n threads end nearly together.
    """
    cdef int _earlier
    lo[0] = 0
    for _earlier in range(claim(team)):
        lo[0] += piece_of(total - lo[0], most, n)
    hi[0] = min(lo[0] + piece_of(total - lo[0], most, n), total)
    return lo[0] < total


cdef inline int ceil_div(int total, int unit) noexcept nogil:
    return (total + unit - 1) // unit


cdef inline bint next_dynamic(Team* team, Walk* walk, int total, int unit, int* lo, int* hi) noexcept nogil:
    """The next `unit` of range(total) for whichever thread asks, lo..hi; False when nothing is left: on to the next range.

    All threads walk the same ranges in the same order, and nobody waits between two of them.
    """
    if walk.held == 0:
        walk.held = claim(team) + 1
    lo[0] = (walk.held - 1 - walk.passed) * unit
    hi[0] = min(lo[0] + unit, total)
    if lo[0] < total:
        walk.held = 0
        return True
    walk.passed += ceil_div(total, unit)
    return False

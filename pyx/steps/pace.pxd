# How many threads the steps of few tokens get. Beside another busy program a thread that waits for its core holds up all
# others at the next barrier, and a step with one thread less is quicker. Which is quicker now is found by trying, and only
# where waits end asleep step after step. No result depends on the number.

cdef enum:
    TRIAL = 8           # steps with the other number of threads
    HOLD = 64           # steps until the next trial; four times as many after each trial in vain, up to
    LONGEST = 16384
    ENOUGH = 2          # steps of a trial: it ends where they took a third longer than with all threads

cdef struct Pace:       # all zero at the beginning
    int T               # tokens of a step; the figures are of such steps
    int left            # steps until the next decision
    int hold
    bint fewer          # one thread is left out
    bint trying
    double seconds[2]   # of a step with all threads, with one less: a running mean, 0 where none was made
    double sleeps       # waits that end asleep, in a step: a running mean


cdef inline void note_step(Pace* p, int T, double seconds, int sleeps) noexcept nogil:
    """A step of T tokens took `seconds`: decide about the next ones."""
    cdef bint fewer = p.fewer
    if T != p.T:
        p.T, p.left, p.hold, p.trying, p.sleeps = T, TRIAL, HOLD, False, 0
        p.seconds[0], p.seconds[1] = 0, 0
    p.seconds[fewer] += (seconds - p.seconds[fewer]) * (0.25 if p.seconds[fewer] else 1)
    p.sleeps += (sleeps - p.sleeps) * 0.125
    p.left -= 1
    if p.trying and fewer and p.left <= TRIAL - ENOUGH and 3 * p.seconds[1] > 4 * p.seconds[0]:
        p.left = 0
    if p.left > 0:
        return
    if p.trying:
        p.trying, p.fewer = False, p.seconds[1] < p.seconds[0]
        p.hold = min(4 * p.hold, LONGEST) if fewer and not p.fewer else HOLD
        p.left = p.hold
    elif fewer or p.sleeps > 0.5:
        p.trying, p.fewer, p.left = True, not fewer, TRIAL
        p.seconds[p.fewer] = 0

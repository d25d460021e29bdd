"""What a sampler does to a whole vocabulary: argmax, the k largest, log-sum-exp, penalties over a window; and what it
looks for in a whole text: earlier occurrences of its end.

Axis: V = n_vocab (49k to 262k). Everything behind these functions works on a few dozen candidates, in NumPy.
The GIL is kept: each call takes some ten microseconds, and getting the GIL back from busy threads can take longer.
NaN never wins: it counts as minus infinity.
"""

from libc.math cimport INFINITY, log
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy

import numpy as np

# Values looked at between two looks at the threshold: a loop of this many compares is a few vector instructions.
cdef enum:
    BLOCK = 64


cdef struct Entry:
    float value
    int id


cdef inline bint any_above(const float* x, float floor) noexcept nogil:
    """Return whether any of BLOCK values is > floor."""
    cdef int hit = 0, j
    for j in range(BLOCK):
        hit |= x[j] > floor
    return hit


cdef Py_ssize_t largest(const float* x, Py_ssize_t n) noexcept nogil:
    """Return the lowest index of the largest value, -1 when no value is above minus infinity."""
    cdef Py_ssize_t best = -1, i = 0, j, end
    cdef float floor = -INFINITY
    while i < n:
        end = min(i + BLOCK, n)
        if end - i < BLOCK or any_above(x + i, floor):
            for j in range(i, end):
                if x[j] > floor:
                    floor = x[j]
                    best = j
        i = end
    return best


def argmax(const float[::1] x not None):
    """Return the lowest index of the largest of x (V), float32; -1 when no value is above minus infinity."""
    return largest(&x[0], x.shape[0]) if x.shape[0] else -1


cdef inline bint worse(Entry a, Entry b) noexcept nogil:
    """Return whether a ranks behind b: a smaller value, or the same one at a higher id."""
    return a.value < b.value or (a.value == b.value and a.id > b.id)


cdef void sift_down(Entry* heap, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """Move heap[i] down until no child is worse: the worst entry is then on top again."""
    cdef Entry moving = heap[i]
    cdef Py_ssize_t child = 2 * i + 1
    while child < n:
        if child + 1 < n and worse(heap[child + 1], heap[child]):
            child += 1
        if not worse(heap[child], moving):
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = moving


cdef void select(const float* x, Py_ssize_t n, Entry* heap, Py_ssize_t k) noexcept nogil:
    """Fill heap (k) with the k best of x (n), best first; 1 <= k <= n."""
    cdef Py_ssize_t i, j, end
    cdef Entry last
    for i in range(k):
        heap[i].value = x[i] if x[i] == x[i] else -INFINITY
        heap[i].id = <int> i
    for i in range(k // 2 - 1, -1, -1):
        sift_down(heap, i, k)
    i = k
    while i < n:
        end = min(i + BLOCK, n)
        if end - i < BLOCK or any_above(x + i, heap[0].value):
            for j in range(i, end):
                # Ids ascend, so an equal value ranks behind and stays out.
                if x[j] > heap[0].value:
                    heap[0].value = x[j]
                    heap[0].id = <int> j
                    sift_down(heap, 0, k)
        i = end
    for i in range(k - 1, 0, -1):
        last = heap[i]
        heap[i] = heap[0]
        heap[0] = last
        sift_down(heap, 0, i)


def top_k(const float[::1] x not None, Py_ssize_t k):
    """Return (ids int32, values float32) of the k largest of x (V), largest first, the lower id first on ties."""
    cdef Py_ssize_t n = x.shape[0], i
    k = max(0, min(k, n))
    ids, values = np.empty(k, np.int32), np.empty(k, np.float32)
    cdef int[::1] id_of = ids
    cdef float[::1] value_of = values
    if k == 0:
        return ids, values
    cdef Entry* heap = <Entry*> malloc(k * sizeof(Entry))
    if heap is NULL:
        raise MemoryError(f"top_k: no memory for {k} candidates")
    select(&x[0], n, heap, k)
    for i in range(k):
        id_of[i] = heap[i].id
        value_of[i] = heap[i].value
    free(heap)
    return ids, values


cdef union Bits:
    int i
    float f


cdef inline float exp_negative(float t) noexcept nogil:
    """Return exp(t) for t <= 0 within 2e-7 relative, and 0 below -87; plain arithmetic, so that loops vectorise.

    exp(t) = 2^n exp(r) with r = t - n log 2 in [-0.35, 0.35], and exp(r) by its series up to r^6 (next term: 1.3e-7).
    """
    cdef float clamped = t if t > -87.0 else -87.0
    cdef int n = <int> (clamped * <float> 1.44269504 - <float> 0.5)
    cdef float m = <float> n
    # log 2 in two parts: the first has few bits, so that m times it is exact.
    cdef float r = (clamped - m * <float> 0.693359375) + m * <float> 2.12194440e-4
    cdef float p = <float> (1.0 / 720.0)
    cdef Bits power
    p = p * r + <float> (1.0 / 120.0)
    p = p * r + <float> (1.0 / 24.0)
    p = p * r + <float> (1.0 / 6.0)
    p = p * r + <float> 0.5
    p = (p * r + <float> 1.0) * r + <float> 1.0
    power.i = (n + 127) << 23
    return p * power.f if t > -87.0 else 0.0


def log_sum_exp(const float[::1] x not None):
    """Return log(sum(exp(x))) of x (V) as a double; minus infinity when no value is above it.

    Terms are within 2e-7 and summed in double (eight at a time in float), so the error stays below 1e-6.
    """
    cdef Py_ssize_t n = x.shape[0], i, j, end, best = largest(&x[0], n) if n else -1
    cdef double total = 0
    cdef float top
    cdef float terms[BLOCK]
    if best < 0:
        return float("-inf")
    top = x[best]
    if top == INFINITY:
        return float("inf")
    i = 0
    while i < n:
        end = min(<Py_ssize_t> BLOCK, n - i)
        if end == BLOCK:
            for j in range(BLOCK):
                terms[j] = exp_negative(x[i + j] - top)
        else:
            for j in range(end):
                terms[j] = exp_negative(x[i + j] - top)
            for j in range(end, BLOCK):
                terms[j] = 0
        for j in range(0, BLOCK, 8):
            total += ((terms[j] + terms[j + 1]) + (terms[j + 2] + terms[j + 3])) + (
                (terms[j + 4] + terms[j + 5]) + (terms[j + 6] + terms[j + 7]))
        i += BLOCK
    return top + log(total)


cdef int ascending(const void* a, const void* b) noexcept nogil:
    return (<const int*> a)[0] - (<const int*> b)[0]


def penalize(float[::1] x not None, const int[::1] window not None, float repeat, float frequency, float presence):
    """Lower the logits x (V), in place, of the token ids in `window`: llama.cpp's repetition penalties.

    A token seen n > 0 times: x = x / repeat where x > 0, else x * repeat; then x -= n * frequency + presence.
    Ids must be in 0..V-1: IndexError otherwise, with x unchanged. Cost: O(w log w) in the window's length.
    """
    cdef Py_ssize_t w = window.shape[0], i = 0, start
    cdef int token
    if w == 0:
        return
    cdef int* seen = <int*> malloc(w * sizeof(int))
    if seen is NULL:
        raise MemoryError(f"penalize: no memory for a window of {w} tokens")
    try:
        memcpy(seen, &window[0], w * sizeof(int))
        qsort(seen, w, sizeof(int), ascending)
        if seen[0] < 0 or seen[w - 1] >= x.shape[0]:
            raise IndexError(f"token ids {seen[0]}..{seen[w - 1]} in a vocabulary of {x.shape[0]}")
        while i < w:
            token, start = seen[i], i
            while i < w and seen[i] == token:
                i += 1
            x[token] = x[token] / repeat if x[token] > 0 else x[token] * repeat
            x[token] -= (i - start) * frequency + presence
    finally:
        free(seen)


def repeats(const int[::1] window not None):
    """Return for each place in `window` (W) how many ids up to it are the same as the window's last ones, int32 (W).

    The longest common suffix of window[: i + 1] and window; 0 for the last place itself. One pass, O(W): the Z algorithm
    (Gusfield, Algorithms on Strings, 1.4) from the end to the beginning.
    """
    cdef Py_ssize_t n = window.shape[0], last = n - 1, back, left = 0, right = 0, length
    counts = np.zeros(n, np.int32)
    cdef int[::1] count = counts
    # `back` steps before the end; the `right - left` steps behind `left` are known to be the same as the first ones.
    for back in range(1, n):
        length = 0
        if back < right:
            length = min(right - back, <Py_ssize_t> count[last - (back - left)])
        while back + length < n and window[last - length] == window[last - back - length]:
            length += 1
        count[last - back] = <int> length
        if back + length > right:
            left, right = back, back + length
    return counts

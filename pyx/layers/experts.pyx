"""The router of a mixture of experts: logits to chosen experts and weights, in f32 with sums in f64, and back."""

from libc.math cimport exp
from libc.string cimport memset

from ..simd.verbs cimport vf, vf_fma, vf_hsum, vf_load, vf_set1

import numpy as np


cdef inline double largest(const float* logits, int n) noexcept nogil:
    """The largest logit; NaN where one is"""
    cdef double most = logits[0]
    cdef int i
    for i in range(1, n):
        if logits[i] > most or logits[i] != logits[i]:
            most = logits[i]
    return most


cdef inline double sigmoid(double x) noexcept nogil:
    return 1 / (1 + exp(-x)) if x > 0 else exp(x) / (1 + exp(x))


cdef void scores_of(const Routing* r, const float* logits, double* scores) noexcept nogil:
    """scores[n]"""
    cdef double most, total = 0
    cdef int i
    if r.scores == SIGMOID:
        for i in range(r.n):
            scores[i] = sigmoid(logits[i])
        return
    most = largest(logits, r.n)
    for i in range(r.n):
        scores[i] = exp(logits[i] - most)
        total += scores[i]
    for i in range(r.n):
        scores[i] /= total


cdef inline int best_left(const double* scores, const float* logits, const float* selection, const char* taken, int n) noexcept nogil:
    """The first of those not taken with the largest score, by logits where nothing is added: in f32 two scores may be one"""
    cdef double value, most = 0
    cdef int i, best = -1
    for i in range(n):
        value = scores[i] + selection[i] if selection != NULL else logits[i]
        if not taken[i] and (best < 0 or value > most):
            best, most = i, value
    return best


cdef void leave_groups_out(const Routing* r, const double* scores, const float* selection, char* taken) noexcept nogil:
    """taken = 1 for all experts but those of the groups that may be chosen from"""
    cdef double values[MAX_EXPERTS]
    cdef double value, best, second
    cdef int g, i, most, each = r.n // r.n_groups
    for g in range(r.n_groups):
        best = second = -1e300
        for i in range(g * each, (g + 1) * each):
            value = scores[i] + (selection[i] if selection != NULL else 0)
            if value > best:
                best, second = value, best
            elif value > second:
                second = value
        values[g] = best + second if r.scores == SIGMOID and each > 1 else best
    memset(taken, 1, r.n)
    for _j in range(r.n_used_groups):
        most = -1
        for g in range(r.n_groups):
            if taken[g * each] and (most < 0 or values[g] > values[most]):
                most = g
        memset(taken + most * each, 0, each)


cdef void route(const Routing* r, const float* logits, const float* selection, int* chosen, float* weights) noexcept nogil:
    """chosen[k], the first the likeliest, and weights[k] of one token's logits[n]

    Logits that are NaN give weights that are, and experts that exist.
    """
    cdef double scores[MAX_EXPERTS]
    cdef char taken[MAX_EXPERTS]
    cdef double total = 0
    cdef int j
    scores_of(r, logits, scores)
    memset(taken, 0, r.n)
    if r.n_groups > 1:
        leave_groups_out(r, scores, selection, taken)
    for j in range(r.k):
        chosen[j] = best_left(scores, logits, selection, taken, r.n)
        taken[chosen[j]] = 1
        total += scores[chosen[j]]
    for j in range(r.k):
        weights[j] = <float>(r.scale * scores[chosen[j]] / (total if r.renormalised else 1))


cdef void route_backward(const Routing* r, const float* logits, const int* chosen, const float* weights, const float* e, float* dlogits) noexcept nogil:
    """dlogits[n] of one token; e[k]: each weight times its gradient, which stays finite however small the weight is

    A chosen score s has d log s = dlogit - sum(softmax dlogits), or (1 - s) dlogit of a sigmoid; renormalising takes the
    weighted mean off.
    """
    cdef double scores[MAX_EXPERTS]
    cdef double own[MAX_EXPERTS]
    cdef double total = 0
    cdef int i, j
    scores_of(r, logits, scores)
    for j in range(r.k):
        total += e[j]
    for j in range(r.k):
        own[j] = e[j] - (weights[j] / r.scale * total if r.renormalised else 0)
    memset(dlogits, 0, 4 * <size_t>r.n)
    for j in range(r.k):
        i = chosen[j]
        dlogits[i] = <float>(own[j] * (1 - scores[i]) if r.scores == SIGMOID else own[j])
    if r.scores == SOFTMAX and not r.renormalised:
        for i in range(r.n):
            dlogits[i] -= <float>(scores[i] * total)


cdef int sort_by_expert(const Routing* r, const int* chosen, int n_tokens, int* active, int* first, int* place, int* token_of) noexcept nogil:
    """Rows of (token, choice) sorted by expert, tokens in order: expert e has rows first[e] .. first[e + 1] of (T k)

    active (n): the experts with rows, whose number is returned; place (T, k): each choice's row; token_of (T k): each row's
    token.
    """
    cdef int e, t, j, at, n_active = 0
    memset(first, 0, sizeof(int) * (r.n + 1))
    for t in range(n_tokens * r.k):
        first[chosen[t] + 1] += 1
    for e in range(r.n):
        first[e + 1] += first[e]
    for t in range(n_tokens):
        for j in range(r.k):
            at = first[chosen[t * r.k + j]]
            first[chosen[t * r.k + j]] += 1
            place[t * r.k + j], token_of[at] = at, t
    for e in range(r.n, 0, -1):
        first[e] = first[e - 1]
    first[0] = 0
    for e in range(r.n):
        if first[e] < first[e + 1]:
            active[n_active] = e
            n_active += 1
    return n_active


cdef float shared_weight(const float* gate, const float* x, int n) noexcept nogil:
    """sigmoid(gate x) of a row x[n]; n is a multiple of 16"""
    cdef vf s = vf_set1(0)
    cdef int i
    for i in range(0, n, 16):
        s = vf_fma(vf_load(gate + i), vf_load(x + i), s)
    return <float>sigmoid(vf_hsum(s))


def routes(logits, int k, scores="softmax", bint renormalised=False, float scale=1, selection=None, e=None, groups=(0, 0)):
    """Rows of logits (T, n) f32, groups (how many, of them used) -> (chosen (T, k), weights f32 (T, k)), or dlogits (T, n) where e (T, k) is given."""
    cdef float[:, ::1] x = np.ascontiguousarray(logits, np.float32), w, back, given
    cdef int T = <int>x.shape[0], t
    cdef Routing r = Routing(<int>x.shape[1], k, {"softmax": SOFTMAX, "sigmoid": SIGMOID}[scores], renormalised, scale, groups[0], groups[1])
    cdef float[::1] added
    cdef const float* bias = NULL
    cdef int[:, ::1] chosen = np.zeros((T, k), np.int32)
    if not 1 <= k <= r.n <= MAX_EXPERTS:
        raise ValueError(f"{k} of {r.n} experts, wanted 1 to {MAX_EXPERTS}")
    if selection is not None:
        added = np.ascontiguousarray(selection, np.float32)
        bias = &added[0]
    w, back = np.zeros((T, k), np.float32), np.zeros((T, r.n), np.float32)
    for t in range(T):
        route(&r, &x[t, 0], bias, &chosen[t, 0], &w[t, 0])
    if e is None:
        return np.asarray(chosen), np.asarray(w)
    given = np.ascontiguousarray(e, np.float32)
    for t in range(T):
        route_backward(&r, &x[t, 0], &chosen[t, 0], &w[t, 0], &given[t, 0], &back[t, 0])
    return np.asarray(back)


def sorted_rows(const int[:, ::1] chosen, int n):
    """chosen (T, k) of n experts -> (first (n + 1,), place (T, k), token_of (T k,), active): see sort_by_expert."""
    cdef Routing r = Routing(n, <int>chosen.shape[1], SOFTMAX, False, 1, 0, 0)
    cdef int[::1] active = np.zeros(n, np.int32), first = np.zeros(n + 1, np.int32), token_of = np.zeros(chosen.shape[0] * chosen.shape[1], np.int32)
    cdef int[:, ::1] place = np.zeros((chosen.shape[0], chosen.shape[1]), np.int32)
    if np.min(chosen) < 0 or np.max(chosen) >= n:
        raise ValueError(f"an expert is outside 0..{n - 1}")
    n = sort_by_expert(&r, &chosen[0, 0], <int>chosen.shape[0], &active[0], &first[0], &place[0, 0], &token_of[0])
    return np.asarray(first), np.asarray(place), np.asarray(token_of), np.asarray(active)[:n]

# Keys and values as whole numbers of 16 bits, one step (f32) for each position: four times nearer than f16, and both
# products of attention are sums of 16-bit products in int32, twice as many a cycle as f32's and exact in any order.
#
#   keys     f32 steps[16];   int16 [head_dim padded to 16, / 2][16 positions][2]
#   values   f32 steps[16];   int16 [8][head_dim padded to 16][2 positions]
#   queries, in place of hdp floats:             int16 codes[hdp];     f32 step
#   weights, in place of a chunk's scores:       int16 codes[CHUNK];   f32 step
#
# Why no sum leaves int32. Codes of queries and keys are at most MOST, a row's 2-norm at most NORM and what rounding adds
# (under 100 for any head): any part of q . k is at most 46100^2 < 2^31. A row's weights are at most MOST and sum to at most
# SUM and CHUNK / 2 for rounding; values are at most VALUE: 130128 * 16383 < 2^31.

from libc.math cimport INFINITY, sqrtf
from libc.stdint cimport int16_t, uint8_t
from libc.string cimport memcpy, memset

from ..simd.verbs cimport (
    vf, vf_add, vf_amax, vf_fma, vf_fma1, vf_hamax, vf_hmax, vf_hsum, vf_load, vf_max, vf_min, vf_mul, vf_set1,
    vf_store, vf_to_i, vi, vi_dot, vi_store_s16, vi_to_f, vi_zero, vw, vw_load,
)
from .vmath cimport vf_exp2

cdef extern from *:
    """
    #define LLAMACY_LOG2_E 1.44269504f
    #define LLAMACY_LEAST 1e-37f
    #define LLAMACY_LARGEST 1e15f
    #define LLAMACY_OF(x) (1.0f / (x))
    """
    const float LOG2_E "LLAMACY_LOG2_E"
    const float LEAST "LLAMACY_LEAST"           # steps of weights
    const float LARGEST "LLAMACY_LARGEST"       # steps of anything else
    const float OF_MOST "LLAMACY_OF(32767)"
    const float OF_NORM "LLAMACY_OF(46000)"
    const float OF_VALUE "LLAMACY_OF(16383)"
    const float OF_SUM "LLAMACY_OF(130000)"

cdef enum:
    MOST = 32767
    NORM = 46000
    VALUE = 16383
    SUM = 130000
    STEPS = 64              # bytes of a part before its codes


cdef inline vf load_some(const float* x, int n) noexcept nogil:
    """x[16], zero from n on"""
    cdef float row[16]
    if n >= 16:
        return vf_load(x)
    memset(row, 0, sizeof(row))
    memcpy(row, x, 4 * n)
    return vf_load(row)


cdef inline void store_some(float* x, vf v, int n) noexcept nogil:
    """x[n] = the first lanes of v, n up to 16 or more"""
    cdef float row[16]
    if n >= 16:
        vf_store(x, v)
        return
    vf_store(row, v)
    memcpy(x, row, 4 * n)


cdef inline float step_of(const float* x, int n, bint values) noexcept nogil:
    """What x's codes count, so that they keep the limits above; NaN where x holds an infinity or NaN."""
    cdef vf most = vf_set1(0), squares = vf_set1(0), v
    cdef int i
    cdef float peak, d
    for i in range(0, n, 16):
        v = load_some(x + i, n - i)
        most, squares = vf_amax(most, v), vf_fma(v, v, squares)
    peak = vf_hamax(most)
    d = peak * OF_VALUE if values else max(peak * OF_MOST, sqrtf(vf_hsum(squares)) * OF_NORM)
    # no product of steps is infinite
    return min(d, LARGEST) - (peak - peak)


cdef inline void codes_of(vf x, float inverse, int16_t* out) noexcept nogil:
    x = vf_max(vf_min(vf_mul(x, vf_set1(inverse)), vf_set1(MOST)), vf_set1(-MOST))
    vi_store_s16(out, vf_to_i(x))


cdef inline void store16(uint8_t* part, int head_dim, size_t hdp, const float* x, int j, bint across) noexcept nogil:
    """x[head_dim] as position j of a tile's part: a column of keys (across) or half of a pair of values' rows"""
    cdef int16_t* data = <int16_t*>(part + STEPS)
    cdef int16_t code[16]
    cdef float d = step_of(x, head_dim, not across)
    cdef int i, b
    (<float*>part)[j] = d
    for b in range(0, head_dim, 16):
        codes_of(load_some(x + b, head_dim - b), 1 / d if d > 0 else 0, code)
        if across:
            for i in range(0, 16, 2):
                memcpy(data + 16 * (b + i) + 2 * j, code + i, 4)
        else:
            for i in range(16):
                data[j // 2 * 2 * hdp + 2 * (b + i) + j % 2] = code[i]


cdef inline void round_query(float* q, int hdp, float d) noexcept nogil:
    """q[hdp] becomes codes and their step d, that of step_of, in place"""
    cdef int b
    for b in range(0, hdp, 16):
        # 16 codes end where the floats they are made of begin, or before
        codes_of(vf_load(q + b), 1 / d if d > 0 else 0, <int16_t*>q + b)
    q[hdp // 2] = d


cdef inline float softmax16_of(float* s, int first, int n, const uint8_t* values, size_t tile, int step_at, float* peak) noexcept nogil:
    """softmax16, below; first: zero is a constant"""
    cdef vf top = vf_set1(-INFINITY), total = vf_set1(0), most = vf_set1(0), sum = vf_set1(0), shift, a
    cdef Py_ssize_t i, begin = first // 16 * 16, end = (n + 15) // 16 * 16
    cdef float d
    cdef const uint8_t* steps = values + begin // 16 * tile
    vf_store(s + n, top)
    for i in range(begin, first):
        s[i] = -INFINITY
    for i in range(begin, end, 16):
        top = vf_max(top, vf_load(s + i))
    peak[0] = vf_hmax(top)
    shift = vf_set1(-LOG2_E * peak[0])
    for i in range(begin, end, 16):
        a = vf_exp2(vf_fma1(vf_load(s + i), LOG2_E, shift))
        total = vf_add(total, a)
        # behind the last position the cache holds anything, also NaN
        a = vf_mul(a, load_some(<const float*>steps, n - <int>i))
        vf_store(s + i, a)
        if i < first:
            memset(s + i, 0, 4 * (first - i))
            a = vf_load(s + i)
        most, sum = vf_max(most, a), vf_add(sum, a)
        steps += tile
    # NaN is seen by the sum
    d = vf_hsum(sum) * OF_SUM
    d = vf_hmax(most) * OF_MOST if vf_hmax(most) * OF_MOST > d else d
    a = vf_set1(1 / d if d >= LEAST else 0)
    for i in range(begin, end, 16):
        # at most MOST and a rounding
        vi_store_s16(<int16_t*>s + i, vf_to_i(vf_mul(vf_load(s + i), a)))
    # a row beside this one may begin sooner, or end a tile later
    memset(s, 0, 2 * begin)
    if end < 2 * step_at:
        memset(<int16_t*>s + end, 0, 32)
    s[step_at] = d
    return vf_hsum(total)


cdef inline float softmax16(float* s, int first, int n, const uint8_t* values, size_t tile, int step_at, float* peak) noexcept nogil:
    """Scores s[first:n] become weights for the values: codes of exp(s - peak) * step of the value, zero before them; returns
    the sum of exp.

    values: the first tile's part, `tile` bytes from one to the next; codes up to a multiple of 16; s[step_at] = their step.
    s has room for 16 more.
    """
    if first:
        return softmax16_of(s, first, n, values, tile, step_at, peak)
    return softmax16_of(s, 0, n, values, tile, step_at, peak)


cdef inline void some_scores(const uint8_t* part, const float* q, size_t ldq, int rows, float* s, size_t lds) noexcept nogil:
    """s[rows][16] = q . the keys of a tile; rows (1 to 4) is constant"""
    cdef const int16_t* w = <const int16_t*>(part + STEPS)
    cdef const int16_t* q0 = <const int16_t*>q
    cdef const int16_t* q1 = <const int16_t*>(q + ldq)
    cdef const int16_t* q2 = <const int16_t*>(q + 2 * ldq)
    cdef const int16_t* q3 = <const int16_t*>(q + 3 * ldq)
    cdef vi a0 = vi_zero(), a1 = vi_zero(), a2 = vi_zero(), a3 = vi_zero()
    cdef vf d = vf_load(<const float*>part)
    cdef vw v
    cdef Py_ssize_t b, i
    for b in range(0, <Py_ssize_t>ldq, 8):
        for i in range(b, b + 8, 2):
            v = vw_load(w + 16 * i)
            a0 = vi_dot(a0, v, q0 + i)
            if rows > 1:
                a1 = vi_dot(a1, v, q1 + i)
            if rows > 2:
                a2 = vi_dot(a2, v, q2 + i)
            if rows > 3:
                a3 = vi_dot(a3, v, q3 + i)
    i = ldq // 2
    vf_store(s, vf_mul(vf_mul(vi_to_f(a0), d), vf_set1(q[i])))
    if rows > 1:
        vf_store(s + lds, vf_mul(vf_mul(vi_to_f(a1), d), vf_set1(q[i + ldq])))
    if rows > 2:
        vf_store(s + 2 * lds, vf_mul(vf_mul(vi_to_f(a2), d), vf_set1(q[i + 2 * ldq])))
    if rows > 3:
        vf_store(s + 3 * lds, vf_mul(vf_mul(vi_to_f(a3), d), vf_set1(q[i + 3 * ldq])))


cdef inline void scores16(const uint8_t* part, const float* q, size_t hdp, int rows, float* s, size_t lds) noexcept nogil:
    """s[rows][16] = q . the keys of a tile, q rows of round_query"""
    while rows >= 4:
        some_scores(part, q, hdp, 4, s, lds)
        q, s, rows = q + 4 * hdp, s + 4 * lds, rows - 4
    if rows == 3:
        some_scores(part, q, hdp, 3, s, lds)
    elif rows == 2:
        some_scores(part, q, hdp, 2, s, lds)
    elif rows == 1:
        some_scores(part, q, hdp, 1, s, lds)


cdef inline void some_values(const uint8_t* part, size_t tile, int n_tiles, size_t hdp, const float* p, size_t ldp, int step_at, int rows, float* o, size_t ldo) noexcept nogil:
    """o[rows][16] = p . 16 channels of the values of n_tiles tiles; rows (1 to 4) is constant"""
    cdef const int16_t* p0 = <const int16_t*>p
    cdef const int16_t* p1 = <const int16_t*>(p + ldp)
    cdef const int16_t* p2 = <const int16_t*>(p + 2 * ldp)
    cdef const int16_t* p3 = <const int16_t*>(p + 3 * ldp)
    cdef const int16_t* w
    cdef vi a0 = vi_zero(), a1 = vi_zero(), a2 = vi_zero(), a3 = vi_zero()
    cdef vw v
    cdef Py_ssize_t t, i
    for t in range(0, 16 * n_tiles, 16):
        w = <const int16_t*>part
        for i in range(t, t + 16, 2):
            v = vw_load(w)
            a0 = vi_dot(a0, v, p0 + i)
            if rows > 1:
                a1 = vi_dot(a1, v, p1 + i)
            if rows > 2:
                a2 = vi_dot(a2, v, p2 + i)
            if rows > 3:
                a3 = vi_dot(a3, v, p3 + i)
            w += 2 * hdp
        part += tile
    vf_store(o, vf_mul(vi_to_f(a0), vf_set1(p[step_at])))
    if rows > 1:
        vf_store(o + ldo, vf_mul(vi_to_f(a1), vf_set1(p[step_at + ldp])))
    if rows > 2:
        vf_store(o + 2 * ldo, vf_mul(vi_to_f(a2), vf_set1(p[step_at + 2 * ldp])))
    if rows > 3:
        vf_store(o + 3 * ldo, vf_mul(vi_to_f(a3), vf_set1(p[step_at + 3 * ldp])))


cdef inline void values16(const uint8_t* part, size_t tile, int n_tiles, size_t hdp, const float* p, size_t ldp, int step_at, int rows, float* o) noexcept nogil:
    """o[rows][hdp] = p . the values of n_tiles tiles, p rows of softmax16 (1 to 4)"""
    cdef size_t lane
    for lane in range(0, hdp, 16):
        if rows == 4:
            some_values(part + STEPS + 4 * lane, tile, n_tiles, hdp, p, ldp, step_at, 4, o + lane, hdp)
        elif rows == 3:
            some_values(part + STEPS + 4 * lane, tile, n_tiles, hdp, p, ldp, step_at, 3, o + lane, hdp)
        elif rows == 2:
            some_values(part + STEPS + 4 * lane, tile, n_tiles, hdp, p, ldp, step_at, 2, o + lane, hdp)
        else:
            some_values(part + STEPS + 4 * lane, tile, n_tiles, hdp, p, ldp, step_at, 1, o + lane, hdp)

"""Rows of f32 to blocks whose scales are searched for: the K types, the IQ4 types, and the simple ones by importance.

A block says w = d s q - dmin m with small integers: codes q, a scale s and a minimum m for each group, and two f16
factors. Each group is fitted alone (scale_search.pxd); d and dmin are fitted to the groups' scales and minima; then, with errors
measured on what the block really says, each group tries the neighbours of its s and m, and d and dmin are fitted again
to all codes, while that helps. One section per type: its ranges and where the bits go (layouts: kquants.pyx).
"""

from libc.math cimport fabsf, sqrtf
from libc.stdint cimport int8_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

from .blocks cimport code_block_bytes, write_codes
from .sizes cimport IQ4_NL_BYTES, IQ4_XS_BYTES, Q2_K_BYTES, Q3_K_BYTES, Q4_K_BYTES, Q5_K_BYTES, Q6_K_BYTES
from .scale_search cimport (
    Codes, MAX_ROUNDS, Sums, TINY, code_sums, fit_affine, fit_scale, residual, round_codes, weighted,
)
from .groups cimport IQ4_LEVELS, half_at, to_f16
from ..simd.verbs cimport vf_round, vf_set1, vf_store

cdef struct Ranges:         # what a type's blocks can say
    Codes codes
    int groups              # of a block, at most 16
    Codes scales            # a block's s as codes of d
    Codes minima            # its m as codes of dmin; size 0: none
    float even              # what all errors cost alike, in rms, beside |x|

cdef struct Block:
    float[256] x
    float[256] w            # what an error of each number costs
    float[256] q
    float[16] s
    float[16] m
    float d
    float dmin
    float error

cdef int8_t[256] IQ4_NEAREST            # level nearest i - 128
cdef uint8_t[256] IQ4_INDEX             # and its index


cdef void fill_nearest() noexcept:
    cdef int i, j, best
    for i in range(256):
        best = 0
        for j in range(1, 16):
            if abs(IQ4_LEVELS[j] - (i - 128)) < abs(IQ4_LEVELS[best] - (i - 128)):
                best = j
        IQ4_NEAREST[i], IQ4_INDEX[i] = IQ4_LEVELS[best], <uint8_t>best

fill_nearest()


cdef inline uint16_t half(float* x) noexcept nogil:
    """*x rounded to f16, and its bits"""
    cdef uint16_t h = to_f16(x[0])
    x[0] = half_at(<const uint8_t*>&h)
    return h


cdef inline void put_half(uint8_t* p, float x) noexcept nogil:
    cdef uint16_t h = half(&x)
    memcpy(p, &h, 2)


cdef inline float clipped(float x, const Codes* k) noexcept nogil:
    """x as a code: rounded, in range, the lowest for a NaN"""
    cdef float lanes[16]
    vf_store(lanes, vf_round(vf_set1(x)))
    return (lanes[0] if lanes[0] < k.high else k.high) if lanes[0] > k.low else k.low


cdef inline void weigh(int n, const float* x, const float* importance, float even, float* w) noexcept nogil:
    """What errors of n numbers cost: |x| + even * rms, with an importance (|x| + 4 rms) * importance.

    An error in a large weight costs more than plain least squares says where there are few bits, hardly more with 4 and
    more of them, or where the columns' importance is known (measured: docs/quantisation.md); the rms keeps errors around
    zero from costing nothing. All costs are equal where nothing else makes sense.
    """
    cdef int i
    cdef float base = 0, total = 0
    for i in range(n):
        base += x[i] * x[i]
    base = sqrtf(base / n) * (even if importance == NULL else 4)
    for i in range(n):
        w[i] = (fabsf(x[i]) + base) * (1 if importance == NULL else importance[i])
        total += w[i]
    if not total > 0:
        for i in range(n):
            w[i] = 1


# ---- blocks of 256 ----

cdef void first_guess(const Ranges* r, Block* y) noexcept nogil:
    """d, dmin and each group's s, m: every group fitted alone, then one factor for all"""
    cdef float a[16]
    cdef float b[16]
    cdef float cost_a[16]
    cdef float cost_b[16]
    cdef float qq
    cdef int g, i, size = r.codes.size
    memset(a, 0, sizeof(a))
    memset(b, 0, sizeof(b))
    memset(cost_a, 0, sizeof(cost_a))
    memset(cost_b, 0, sizeof(cost_b))
    for g in range(r.groups):
        if r.minima.size:
            a[g] = fit_affine(&r.codes, y.x + g * size, y.w + g * size, True, &b[g], &cost_a[g])
            for i in range(g * size, (g + 1) * size):
                cost_b[g] += y.w[i]
        else:
            a[g] = fit_scale(&r.codes, y.x + g * size, y.w + g * size, &cost_a[g])
    y.d, y.dmin = fit_scale(&r.scales, a, cost_a, &qq), 0
    half(&y.d)
    if r.minima.size:
        y.dmin = fit_scale(&r.minima, b, cost_b, &qq)
        half(&y.dmin)
    for g in range(r.groups):
        y.s[g] = clipped(a[g] / y.d, &r.scales) if y.d != 0 else 0
        y.m[g] = clipped(b[g] / y.dmin, &r.minima) if y.dmin != 0 else 0


cdef float settle_group(const Ranges* r, Block* y, int g) noexcept nogil:
    """s and m of group g from their neighbourhood, with the codes that make the least error, which is returned"""
    cdef int size = r.codes.size, change, i, _turn
    cdef const float* x = y.x + g * size
    cdef const float* w = y.w + g * size
    cdef float q[32]
    cdef float s0 = y.s[g], m0 = y.m[g], total = 0, s, m, a, b, error, best = -1
    cdef Sums sums
    for i in range(size):
        total += w[i]
    for change in range(-1, 2):
        s, m = s0 + change, m0
        if s < r.scales.low or s > r.scales.high:
            continue
        a = y.d * s
        for _turn in range(2):
            b = y.dmin * m
            round_codes(&r.codes, x, 1 / a if fabsf(a) > TINY else 0, b, q)
            error = residual(size, x, w, q, a, b)
            if error < best or best < 0:
                best, y.s[g], y.m[g] = error, s, m
                memcpy(y.q + g * size, q, size * sizeof(float))
            if y.dmin == 0:
                break
            sums = code_sums(size, x, w, q)
            b = clipped((a * sums.q - weighted(size, w, x, False)) / (total * y.dmin), &r.minima)
            if b == m:
                break
            m = b
    return best


cdef void refit(const Ranges* r, Block* y) noexcept nogil:
    """d and dmin with the least error for given codes, s and m"""
    cdef float uu = 0, uv = 0, vv = 0, ux = 0, vx = 0, det, total
    cdef int g, i, size = r.codes.size
    cdef Sums sums
    for g in range(r.groups):
        sums = code_sums(size, y.x + g * size, y.w + g * size, y.q + g * size)
        uu += y.s[g] * y.s[g] * sums.qq
        ux += y.s[g] * sums.qx
        if r.minima.size:
            total = 0
            for i in range(g * size, (g + 1) * size):
                total += y.w[i]
            uv += y.s[g] * y.m[g] * sums.q
            vv += y.m[g] * y.m[g] * total
            vx += y.m[g] * weighted(size, y.w + g * size, y.x + g * size, False)
    det = uu * vv - uv * uv
    if det > 0:
        y.d = (ux * vv - vx * uv) / det
        y.dmin = (y.d * uv - vx) / vv
        half(&y.dmin)
    elif uu > 0:
        y.d = ux / uu
    half(&y.d)


cdef void search(const Ranges* r, const float* x, const float* importance, int i, Block* y) noexcept nogil:
    """the block that comes nearest to the i-th 256 numbers, as far as the search goes"""
    cdef Block trial
    cdef int attempt, g
    memcpy(trial.x, x + 256 * i, sizeof(trial.x))
    weigh(256, trial.x, NULL if importance == NULL else importance + 256 * i, r.even, trial.w)
    first_guess(r, &trial)
    for attempt in range(MAX_ROUNDS):
        trial.error = 0
        for g in range(r.groups):
            trial.error += settle_group(r, &trial, g)
        if attempt and not trial.error < y.error:
            return
        memcpy(y, &trial, sizeof(Block))
        refit(r, &trial)

cdef inline int at(const float* q, int i, int offset) noexcept nogil:
    return <int>q[i] + offset


cdef inline void put_runs(const float* q, int bits, int run, int offset, int shift, uint8_t* p) noexcept nogil:
    """256 codes + offset, their bits from `shift` on, packed in p: `run` bytes hold the lowest bits of that many
    neighbours, the next bits up belong to the numbers after those"""
    cdef int i, per_byte = 8 // bits, in_stretch
    memset(p, 0, 32 * bits)
    for i in range(256):
        in_stretch = i % (run * per_byte)
        p[i // (run * per_byte) * run + in_stretch % run] |= <uint8_t>(
            ((at(q, i, offset) >> shift) & ((1 << bits) - 1)) << (bits * (in_stretch // run)))


cdef Codes NONE = Codes(0, 0, 0, 0, 0, NULL)


# ---- Q2_K ----

cdef Ranges Q2_K = Ranges(
    Codes(16, 0, 3, 0.15, 8, NULL), 16, Codes(16, 0, 15, 0.25, 12, NULL), Codes(16, 0, 15, 0.25, 12, NULL), 1)

cdef void search_row_q2_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    cdef Block y
    cdef int i, g
    for i in range(n):
        search(&Q2_K, x, importance, i, &y)
        for g in range(16):
            row[g] = <uint8_t>(at(y.s, g, 0) | at(y.m, g, 0) << 4)
        put_runs(y.q, 2, 32, 0, 0, row + 16)
        put_half(row + 80, y.d)
        put_half(row + 82, y.dmin)
        row += Q2_K_BYTES


# ---- Q3_K ----

cdef Ranges Q3_K = Ranges(
    Codes(16, -4, 3, 0.2, 7, NULL), 16, Codes(16, -32, 31, 0.5, 12, NULL), NONE, 1)

cdef void search_row_q3_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    cdef Block y
    cdef int i, g, s
    for i in range(n):
        search(&Q3_K, x, importance, i, &y)
        put_runs(y.q, 1, 32, 4, 2, row)
        put_runs(y.q, 2, 32, 4, 0, row + 32)
        memset(row + 96, 0, 12)
        for g in range(16):
            s = at(y.s, g, 32)
            row[96 + (g & 7)] |= <uint8_t>((s & 15) << (4 * (g >> 3)))
            row[104 + (g & 3)] |= <uint8_t>((s >> 4) << (2 * (g >> 2)))
        put_half(row + 108, y.d)
        row += Q3_K_BYTES


# ---- Q4_K, Q5_K ----

cdef Ranges Q4_K = Ranges(
    Codes(32, 0, 15, 0.25, 9, NULL), 8, Codes(16, 0, 63, 1, 16, NULL), Codes(16, 0, 63, 1, 16, NULL), 4)
cdef Ranges Q5_K = Ranges(
    Codes(32, 0, 31, 0.35, 9, NULL), 8, Codes(16, 0, 63, 1, 16, NULL), Codes(16, 0, 63, 1, 16, NULL), 4)

cdef inline void put_scales_and_minima(const Block* y, uint8_t* row) noexcept nogil:
    """f16 d, dmin and 12 bytes: s 0-3, m 0-3 with the top bits of s 4-7, m 4-7; then the low nibbles of those"""
    cdef int g, s, m
    put_half(row, y.d)
    put_half(row + 2, y.dmin)
    for g in range(4):
        s, m = at(y.s, g + 4, 0), at(y.m, g + 4, 0)
        row[4 + g] = <uint8_t>(at(y.s, g, 0) | (s >> 4) << 6)
        row[8 + g] = <uint8_t>(at(y.m, g, 0) | (m >> 4) << 6)
        row[12 + g] = <uint8_t>((s & 15) | (m & 15) << 4)

cdef void search_row_q4_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    cdef Block y
    cdef int i
    for i in range(n):
        search(&Q4_K, x, importance, i, &y)
        put_scales_and_minima(&y, row)
        put_runs(y.q, 4, 32, 0, 0, row + 16)
        row += Q4_K_BYTES

cdef void search_row_q5_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    cdef Block y
    cdef int i
    for i in range(n):
        search(&Q5_K, x, importance, i, &y)
        put_scales_and_minima(&y, row)
        put_runs(y.q, 1, 32, 0, 4, row + 16)
        put_runs(y.q, 4, 32, 0, 0, row + 48)
        row += Q5_K_BYTES


# ---- Q6_K ----

cdef Ranges Q6_K = Ranges(
    Codes(16, -32, 31, 0.4, 7, NULL), 16, Codes(16, -128, 127, 2, 12, NULL), NONE, 4)

cdef void search_row_q6_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    cdef Block y
    cdef int i, g
    for i in range(n):
        search(&Q6_K, x, importance, i, &y)
        put_runs(y.q, 4, 64, 32, 0, row)
        put_runs(y.q, 2, 32, 32, 4, row + 128)
        for g in range(16):
            row[192 + g] = <uint8_t>(at(y.s, g, 0) & 255)
        put_half(row + 208, y.d)
        row += Q6_K_BYTES


# ---- IQ4_NL, IQ4_XS ----

# Scales that put the largest number further from the last level have smaller errors and worse answers (measured).
cdef Codes LEVELS = Codes(32, -127, 113, 1, 8, &IQ4_NEAREST[0])
cdef Ranges IQ4_XS = Ranges(LEVELS, 8, Codes(16, -32, 31, 0.5, 12, NULL), NONE, 1)

cdef inline void put_levels(const float* q, uint8_t* p) noexcept nogil:
    cdef int j
    for j in range(16):
        p[j] = IQ4_INDEX[at(q, j, 128)] | IQ4_INDEX[at(q, j + 16, 128)] << 4

cdef void search_row_iq4_xs(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    cdef Block y
    cdef int i, g, s
    for i in range(n):
        search(&IQ4_XS, x, importance, i, &y)
        put_half(row, y.d)
        memset(row + 2, 0, 6)
        for g in range(8):
            s = at(y.s, g, 32)
            row[2 + (g >> 2)] |= <uint8_t>((s >> 4) << (2 * (g & 3)))
            row[4 + (g >> 1)] |= <uint8_t>((s & 15) << (4 * (g & 1)))
            put_levels(y.q + 32 * g, row + 8 + 16 * g)
        row += IQ4_XS_BYTES

cdef void search_row_iq4_nl(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    cdef float q[32]
    cdef int i
    for i in range(n):
        search_32(&LEVELS, x, importance, i, False, q, row)
        put_levels(q, row + 2)
        row += IQ4_NL_BYTES


# ---- Q4_0, Q4_1, Q5_0, Q5_1 by importance (without it they are rounded, in quants.pyx) ----

cdef Codes AROUND_8 = Codes(32, -8, 7, 0.1, 9, NULL)
cdef Codes AROUND_16 = Codes(32, -16, 15, 0.1, 9, NULL)

cdef inline void search_codes(const Codes* k, const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    cdef bint fifth = k.high - k.low > 15, has_min = k.low == 0
    cdef float q[32]
    cdef uint8_t codes[32]
    cdef int i, j
    for i in range(n):
        search_32(k, x, importance, i, has_min, q, row)
        for j in range(32):
            codes[j] = <uint8_t>at(q, j, -<int>k.low)
        write_codes(row, fifth, has_min, codes)
        row += code_block_bytes(fifth, has_min)

cdef void search_row_q4_0(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    search_codes(&AROUND_8, x, importance, n, row)

cdef void search_row_q4_1(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    search_codes(&Q4_K.codes, x, importance, n, row)

cdef void search_row_q5_0(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    search_codes(&AROUND_16, x, importance, n, row)

cdef void search_row_q5_1(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil:
    search_codes(&Q5_K.codes, x, importance, n, row)


# ---- 32 numbers, one scale ----

cdef void search_32(const Codes* k, const float* x, const float* importance, int i, bint affine, float* q, uint8_t* p) noexcept nogil:
    """the codes q of x ~ d q (+ m) for the i-th 32 numbers; f16 d (and m) to p"""
    cdef float w[32]
    cdef float d, b = 0, unused
    x += 32 * i
    weigh(32, x, NULL if importance == NULL else importance + 32 * i, 1, w)
    d = fit_affine(k, x, w, False, &b, &unused) if affine else fit_scale(k, x, w, &unused)
    half(&d)
    half(&b)
    round_codes(k, x, 1 / d if fabsf(d) > TINY else 0, b, q)
    put_half(p, d)
    if affine:
        put_half(p + 2, -b)

# Any CPU: the verbs that the kernels are written in, in plain loops, which say what each of them does in every file of this
# folder. Vectors have 16 lanes, one per matrix row (or column):
#   vf  16 x f32          vi  16 x i32
#   vb  16 rows x 4 x u8  (four neighbours of k per row)     vw  16 rows x 2 x i16 (two neighbours of k per row)
#   vh  16 rows x 2 x i16 partial sums (i32 ones where a set adds four products at once; only vh_sum tells)
#
# NaN: arithmetic hands it on and makes it of infinities as IEEE 754 has it; so does what moves f32 about. vf_max and vf_min
# give b where either is NaN; vf_amax and vf_hamax see it always. As an integer it may be any number, so a block that holds
# one must get a scale that is NaN. Integer verbs know none.

from libc.math cimport fabsf, rintf, sqrtf
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

cdef struct vf:
    float x[16]

cdef struct vi:
    int32_t x[16]

cdef struct vb:
    uint8_t x[64]

cdef struct vw:
    int16_t x[32]

cdef struct vh:
    int16_t x[32]


cdef enum:
    U8_OFFSET = 0     # what vh_mix wants its inputs raised by: nothing


cdef inline void pause() noexcept nogil:
    pass

cdef inline void prefetch(const void* p) noexcept nogil:
    pass

cdef inline void prefetch_line(const void* p) noexcept nogil:
    """The same just here, amid arithmetic: several requests at once wait for each other and hold up the loads behind them"""
    pass


# ---- f32 ----

cdef inline vf vf_load(const float* p) noexcept nogil:
    cdef vf r
    memcpy(&r, p, 64)
    return r

cdef inline void vf_store(float* p, vf a) noexcept nogil:
    memcpy(p, &a, 64)

cdef inline vf vf_set1(float x) noexcept nogil:
    cdef vf r
    cdef int i
    for i in range(16):
        r.x[i] = x
    return r

cdef inline vf vf_add(vf a, vf b) noexcept nogil:
    cdef int i
    for i in range(16):
        a.x[i] = a.x[i] + b.x[i]
    return a

cdef inline vf vf_sub(vf a, vf b) noexcept nogil:
    cdef int i
    for i in range(16):
        a.x[i] = a.x[i] - b.x[i]
    return a

cdef inline vf vf_mul(vf a, vf b) noexcept nogil:
    cdef int i
    for i in range(16):
        a.x[i] = a.x[i] * b.x[i]
    return a

cdef inline vf vf_div(vf a, vf b) noexcept nogil:
    cdef int i
    for i in range(16):
        a.x[i] = a.x[i] / b.x[i]
    return a

cdef inline vf vf_max(vf a, vf b) noexcept nogil:
    """the larger; b where either is NaN"""
    cdef int i
    for i in range(16):
        a.x[i] = a.x[i] if a.x[i] > b.x[i] else b.x[i]
    return a

cdef inline vf vf_min(vf a, vf b) noexcept nogil:
    """the smaller; b where either is NaN"""
    cdef int i
    for i in range(16):
        a.x[i] = a.x[i] if a.x[i] < b.x[i] else b.x[i]
    return a

cdef inline vf vf_sqrt(vf a) noexcept nogil:
    cdef int i
    for i in range(16):
        a.x[i] = sqrtf(a.x[i])
    return a

cdef inline vf vf_abs(vf a) noexcept nogil:
    cdef int i
    for i in range(16):
        a.x[i] = fabsf(a.x[i])
    return a

cdef inline vf vf_amax(vf most, vf a) noexcept nogil:
    """the larger of `most`, which has no signs, and |a|; NaN where either is: compared as integers, it is above infinity"""
    cdef int32_t bits[16]
    cdef int32_t other[16]
    cdef int i
    memcpy(bits, &most, 64)
    memcpy(other, &a, 64)
    for i in range(16):
        other[i] = other[i] & 0x7fffffff
        bits[i] = bits[i] if bits[i] > other[i] else other[i]
    memcpy(&a, bits, 64)
    return a

cdef inline vf vf_fma(vf a, vf b, vf c) noexcept nogil:
    """a * b + c"""
    cdef int i
    for i in range(16):
        c.x[i] = a.x[i] * b.x[i] + c.x[i]
    return c

cdef inline vf vf_fnma(vf a, vf b, vf c) noexcept nogil:
    """c - a * b"""
    cdef int i
    for i in range(16):
        c.x[i] = c.x[i] - a.x[i] * b.x[i]
    return c

cdef inline vf vf_fma1(vf a, float x, vf c) noexcept nogil:
    """a * x + c with one x for all lanes"""
    cdef int i
    for i in range(16):
        c.x[i] = a.x[i] * x + c.x[i]
    return c

cdef inline vf vf_round(vf a) noexcept nogil:
    """nearest integer, halves to even"""
    cdef int i
    for i in range(16):
        a.x[i] = rintf(a.x[i])
    return a

cdef inline vf vf_pow2(vf n) noexcept nogil:
    """2 ** n for whole n in -126..127; of others, NaN among them, any number"""
    cdef int32_t bits[16]
    cdef int i
    for i in range(16):
        bits[i] = (<int32_t>n.x[i] + 127) << 23
    memcpy(&n, bits, 64)
    return n

cdef inline float vf_hsum(vf a) noexcept nogil:
    """sum of the lanes, as a tree"""
    cdef int i
    for i in range(8):
        a.x[i] = a.x[i] + a.x[i + 8]
    for i in range(4):
        a.x[i] = a.x[i] + a.x[i + 4]
    return (a.x[0] + a.x[2]) + (a.x[1] + a.x[3])

cdef inline float vf_hmax(vf a) noexcept nogil:
    """largest lane; a NaN may be missed where not all lanes are"""
    cdef int i
    for i in range(1, 16):
        a.x[0] = a.x[0] if a.x[0] > a.x[i] else a.x[i]
    return a.x[0]

cdef inline float vf_hamax(vf most) noexcept nogil:
    """largest lane where none has a sign; NaN where any is"""
    cdef int32_t bits[16]
    cdef int i
    memcpy(bits, &most, 64)
    for i in range(1, 16):
        bits[0] = bits[0] if bits[0] > bits[i] else bits[i]
    memcpy(&most, bits, 4)
    return most.x[0]


# ---- 16-bit floats in memory ----

cdef inline float _half_to_float(uint16_t h) noexcept nogil:
    """f16 bits to f32, subnormals, infinities and NaN included"""
    cdef uint32_t sign = <uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff, bits
    cdef float f
    if rest >= 0x7c00:
        bits = sign | 0x7f800000 | ((rest & 0x3ff) << 13)
        memcpy(&f, &bits, 4)
        return f
    # Placed in f32's exponent field the number is 2 ** 112 times too small, for subnormals too: one exact multiply.
    bits = rest << 13
    memcpy(&f, &bits, 4)
    f = f * 5.192296858534828e33
    memcpy(&bits, &f, 4)
    bits |= sign
    memcpy(&f, &bits, 4)
    return f

cdef inline uint16_t _float_to_half(float f) noexcept nogil:
    """f32 to f16 bits, round half to even; overflow to infinity"""
    cdef uint32_t bits, sign, shift, kept, rest, half
    memcpy(&bits, &f, 4)
    sign = (bits >> 16) & 0x8000
    bits &= 0x7fffffff
    if bits > 0x7f800000:
        return <uint16_t>(sign | 0x7e00)
    if bits >= 0x477ff000:
        return <uint16_t>(sign | 0x7c00)
    if bits < 0x33000000:
        return <uint16_t>sign
    if bits >= 0x38800000:
        kept, rest, half = (bits >> 13) - 0x1c000, bits & 0x1fff, 0x1000
    else:
        shift = 126 - (bits >> 23)
        bits = (bits & 0x7fffff) | 0x800000
        kept, rest, half = bits >> shift, bits & ((<uint32_t>1 << shift) - 1), <uint32_t>1 << (shift - 1)
    if rest > half or (rest == half and kept & 1):
        kept += 1
    return <uint16_t>(sign | kept)

cdef inline vf vf_load_f16(const void* p) noexcept nogil:
    cdef vf r
    cdef int i
    for i in range(16):
        r.x[i] = _half_to_float((<const uint16_t*>p)[i])
    return r

cdef inline void vf_store_f16(void* p, vf a) noexcept nogil:
    """round half to even; beyond 65519 infinity, NaN stays NaN"""
    cdef int i
    for i in range(16):
        (<uint16_t*>p)[i] = _float_to_half(a.x[i])

cdef inline vf vf_load_bf16(const void* p) noexcept nogil:
    cdef vf r
    cdef uint32_t bits[16]
    cdef int i
    for i in range(16):
        bits[i] = <uint32_t>(<const uint16_t*>p)[i] << 16
    memcpy(&r, bits, 64)
    return r

cdef inline void vf_store_bf16(void* p, vf a) noexcept nogil:
    """round half to even; NaN stays NaN, which rounding its bits could turn to zero"""
    cdef uint32_t bits[16]
    cdef uint32_t rounded
    cdef int i
    memcpy(bits, &a, 64)
    for i in range(16):
        rounded = (bits[i] + 0x7fff + ((bits[i] >> 16) & 1)) >> 16
        (<uint16_t*>p)[i] = <uint16_t>(rounded | (0x7fff if a.x[i] != a.x[i] else 0))


# ---- integers ----

cdef inline vf vf_load_s8(const int8_t* p) noexcept nogil:
    """16 int8 as f32"""
    cdef vf r
    cdef int i
    for i in range(16):
        r.x[i] = p[i]
    return r

cdef inline vi vi_zero() noexcept nogil:
    cdef vi r
    cdef int i
    for i in range(16):
        r.x[i] = 0
    return r

cdef inline vi vi_load(const int32_t* p) noexcept nogil:
    cdef vi r
    memcpy(&r, p, 64)
    return r

cdef inline void vi_store(int32_t* p, vi a) noexcept nogil:
    memcpy(p, &a, 64)

cdef inline vi vi_add(vi a, vi b) noexcept nogil:
    cdef int i
    for i in range(16):
        a.x[i] = a.x[i] + b.x[i]
    return a

cdef inline vi vi_sub(vi a, vi b) noexcept nogil:
    cdef int i
    for i in range(16):
        a.x[i] = a.x[i] - b.x[i]
    return a

cdef inline vi vi_bits(const uint8_t* p, int shift, int mask, int to) noexcept nogil:
    """16 words: (word >> shift & mask) << to"""
    cdef vi r
    cdef uint32_t words[16]
    cdef int i
    memcpy(words, p, 64)
    for i in range(16):
        r.x[i] = <int32_t>((words[i] >> shift & <uint32_t>mask) << to)
    return r

cdef inline vi vi_nibbles(const uint8_t* p, int i) noexcept nogil:
    """byte i of 8 words: the low nibbles, then the high ones"""
    cdef vi r
    cdef int j
    for j in range(8):
        r.x[j], r.x[j + 8] = p[4 * j + i] & 15, p[4 * j + i] >> 4
    return r

cdef inline vi vi_byte(const uint8_t* p, int i) noexcept nogil:
    """byte i of 16 words, with its sign"""
    cdef vi r
    cdef int j
    for j in range(16):
        r.x[j] = <int8_t>p[4 * j + i]
    return r

cdef inline vi vi_times128(vi a) noexcept nogil:
    cdef int i
    for i in range(16):
        a.x[i] = a.x[i] * 128
    return a

cdef inline vf vi_to_f(vi a) noexcept nogil:
    cdef vf r
    cdef int i
    for i in range(16):
        r.x[i] = <float>a.x[i]
    return r

cdef inline vi vf_to_i(vf a) noexcept nogil:
    """nearest integer, halves to even; |a| < 2 ** 31: of others, NaN among them, any number"""
    cdef vi r
    cdef int i
    for i in range(16):
        r.x[i] = <int32_t>rintf(a.x[i])
    return r

cdef inline int32_t vi_hsum(vi a) noexcept nogil:
    cdef int32_t s = 0
    cdef int i
    for i in range(16):
        s += a.x[i]
    return s

cdef inline void vi_store_s16(int16_t* p, vi a) noexcept nogil:
    """16 lanes as int16, saturated"""
    cdef int i
    for i in range(16):
        p[i] = <int16_t>(32767 if a.x[i] > 32767 else (-32768 if a.x[i] < -32768 else a.x[i]))

cdef inline void vi_store_s8(int8_t* p, vi a) noexcept nogil:
    """16 lanes as int8, saturated"""
    cdef int i
    for i in range(16):
        p[i] = <int8_t>(127 if a.x[i] > 127 else (-128 if a.x[i] < -128 else a.x[i]))

cdef inline vb vb_load(const uint8_t* p) noexcept nogil:
    """64 bytes"""
    cdef vb r
    memcpy(&r, p, 64)
    return r

cdef inline void vb_store(uint8_t* p, vb a) noexcept nogil:
    memcpy(p, &a, 64)

cdef inline vb vb_nibbles(const uint8_t* p) noexcept nogil:
    """32 bytes to 64 values: the low nibbles are rows 0..7, the high nibbles rows 8..15"""
    cdef vb r
    cdef int i
    for i in range(32):
        r.x[i] = p[i] & 15
        r.x[i + 32] = p[i] >> 4
    return r

cdef inline vb vb_or_bit(vb a, vb bits, int g, int to) noexcept nogil:
    """a with bit g of each byte of `bits` put in as bit `to` (constants)"""
    cdef int i
    for i in range(64):
        a.x[i] |= ((bits.x[i] >> g) & 1) << to
    return a

cdef inline vb vb_minus(vb a, int n) noexcept nogil:
    """a - n, bytes with a sign from here on"""
    cdef int i
    for i in range(64):
        a.x[i] = <uint8_t>(a.x[i] - n)
    return a

cdef inline vb vb_add(vb a, vb b) noexcept nogil:
    cdef int i
    for i in range(64):
        a.x[i] = <uint8_t>(a.x[i] + b.x[i])
    return a

cdef inline vh vh_zero() noexcept nogil:
    cdef vh r
    cdef int i
    for i in range(32):
        r.x[i] = 0
    return r

cdef inline vh vh_start(const int16_t* twice) noexcept nogil:
    """each row's sum = the sum of the two numbers, which are equal"""
    cdef vh r
    cdef int i
    for i in range(32):
        r.x[i] = twice[0]
    return r

cdef inline vh vh_dot(vh acc, vb w, const int8_t* a) noexcept nogil:
    """acc += w * a[0..4) per row, in int16: two products a lane; the caller bounds the sum"""
    cdef int i
    for i in range(16):
        acc.x[2 * i] += <int16_t>(w.x[4 * i] * a[0] + w.x[4 * i + 1] * a[1])
        acc.x[2 * i + 1] += <int16_t>(w.x[4 * i + 2] * a[2] + w.x[4 * i + 3] * a[3])
    return acc

cdef inline vh vh_mix(vh acc, vb w, const uint8_t* a) noexcept nogil:
    """acc += w * a[0..4) per row, w with signs, a raised by U8_OFFSET, in int16; the caller bounds the sum"""
    cdef const int8_t* x = <const int8_t*>a
    cdef int i
    for i in range(16):
        acc.x[2 * i] += <int16_t>(<int8_t>w.x[4 * i] * x[0] + <int8_t>w.x[4 * i + 1] * x[1])
        acc.x[2 * i + 1] += <int16_t>(<int8_t>w.x[4 * i + 2] * x[2] + <int8_t>w.x[4 * i + 3] * x[3])
    return acc

cdef inline vi vh_weigh(vi acc, vh sums, vw by) noexcept nogil:
    """acc += each row's sum times its first number in `by`, which is there twice"""
    cdef int i
    for i in range(16):
        # as vectors add: on the way to a sum that fits, one may not
        acc.x[i] = <int32_t>(<uint32_t>acc.x[i] + <uint32_t>((<int32_t>sums.x[2 * i] + <int32_t>sums.x[2 * i + 1]) * by.x[2 * i]))
    return acc

cdef inline vi vh_sum(vh acc) noexcept nogil:
    """the two int16 lanes of each row added to one int32"""
    cdef vi r
    cdef int i
    for i in range(16):
        r.x[i] = <int32_t>acc.x[2 * i] + <int32_t>acc.x[2 * i + 1]
    return r

cdef inline vw vw_load(const int16_t* p) noexcept nogil:
    """16 rows x 2 int16"""
    cdef vw r
    memcpy(&r, p, 64)
    return r

cdef inline void vw_store(int16_t* p, vw a) noexcept nogil:
    memcpy(p, &a, 64)

cdef inline vw vw_load_s8(const int8_t* p) noexcept nogil:
    """16 rows x 2 int8, widened"""
    cdef vw r
    cdef int i
    for i in range(32):
        r.x[i] = p[i]
    return r

cdef inline vw vb_pair(vb a, int j, int offset) noexcept nogil:
    """bytes 2j and 2j + 1 (j constant, 0 or 1) of each row less `offset`, as int16"""
    cdef vw r
    cdef int i
    for i in range(16):
        r.x[2 * i] = <int16_t>(a.x[4 * i + 2 * j] - offset)
        r.x[2 * i + 1] = <int16_t>(a.x[4 * i + 2 * j + 1] - offset)
    return r

cdef inline vw vw_mul(vw a, vw b) noexcept nogil:
    """a * b, the products fitting int16"""
    cdef int i
    for i in range(32):
        a.x[i] = <int16_t>(a.x[i] * b.x[i])
    return a

cdef inline vi vi_dot(vi acc, vw w, const int16_t* a) noexcept nogil:
    """acc += w * a[0..2) per row"""
    cdef int i
    for i in range(16):
        acc.x[i] = <int32_t>(<uint32_t>acc.x[i] + <uint32_t>(<int32_t>w.x[2 * i] * a[0]) + <uint32_t>(<int32_t>w.x[2 * i + 1] * a[1]))
    return acc

cdef inline vf vw_even(vw a) noexcept nogil:
    """the first int16 of each row as f32"""
    cdef vf r
    cdef int i
    for i in range(16):
        r.x[i] = <float>a.x[2 * i]
    return r

cdef inline vf vw_odd(vw a) noexcept nogil:
    """the second int16 of each row as f32"""
    cdef vf r
    cdef int i
    for i in range(16):
        r.x[i] = <float>a.x[2 * i + 1]
    return r

cdef inline vw vw_join(vi even, vi odd) noexcept nogil:
    """int32 lanes that fit int16, as pairs (even, odd)"""
    cdef vw r
    cdef int i
    for i in range(16):
        r.x[2 * i] = <int16_t>even.x[i]
        r.x[2 * i + 1] = <int16_t>odd.x[i]
    return r


# ---- shuffles ----

cdef inline void transpose8(const float* src, size_t ss, float* dst, size_t ds) noexcept nogil:
    """8 x 8 words: dst[j * ds + i] = src[i * ss + j]"""
    cdef int i, j
    for i in range(8):
        for j in range(8):
            dst[j * ds + i] = src[i * ss + j]

"""Rows of floats and of the simple types (32 elements, one scale) to f32, and f32 to those that gguf.quants rounds, byte for
byte as it does; their row in the table of types says which."""

from libc.math cimport fabsf, floorf, ldexpf
from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from .blocks cimport code_block_bytes, read_codes, write_codes
from .groups cimport FP4_LEVELS, half_at, to_f16, u16_at
from .sizes cimport MXFP4_BYTES, Q8_0_BYTES, TQ1_0_BYTES, TQ2_0_BYTES
from ..simd.verbs cimport vf_load, vf_load_f16, vf_store, vf_store_f16

cdef extern from "<math.h>" nogil:
    float roundf(float)
    float log2f(float)


# ---- codes of four and five bits: x = d (q - offset), or d q + m ----

cdef inline void dequantize_codes(const uint8_t* row, int n, float* out, bint fifth, bint has_min) noexcept nogil:
    cdef uint32_t codes[8]
    cdef const uint8_t* q = <const uint8_t*>codes
    cdef uint16_t bits[2]
    cdef int _b, j
    cdef float d, m
    for _b in range(n):
        read_codes(row, fifth, has_min, codes, bits, bits + 1)
        d = half_at(<const uint8_t*>bits)
        if has_min:
            m = half_at(<const uint8_t*>(bits + 1))
            for j in range(32):
                out[j] = <float>(q[j] * d) + m
        else:
            for j in range(32):
                out[j] = (<int>q[j] - (16 if fifth else 8)) * d
        row += code_block_bytes(fifth, has_min)
        out += 32

cdef inline void quantize_codes(const float* x, int n, uint8_t* row, bint fifth, bint has_min) noexcept nogil:
    cdef int _b, j, limit = 31 if fifth else 15, middle = 16 if fifth else 8
    cdef float d, inverse, low = 0
    cdef uint8_t q[32]
    cdef uint16_t bits[2]
    for _b in range(n):
        if has_min:
            low = least(x)
            d = (most(x) - low) / limit
        else:
            d = signed_peak(x) / -middle
        inverse = reciprocal(d)
        for j in range(32):
            q[j] = above(x[j], low, inverse, limit) if has_min else code(x[j], inverse, middle + 0.5, limit)
        bits[0], bits[1] = to_f16(d), to_f16(low)
        memcpy(row, bits, 4 if has_min else 2)
        write_codes(row, fifth, has_min, q)
        row += code_block_bytes(fifth, has_min)
        x += 32

cdef void dequantize_row_q4_0(const uint8_t* row, int n, float* out) noexcept nogil:
    dequantize_codes(row, n, out, False, False)

cdef void quantize_row_q4_0(const float* x, int n, uint8_t* row) noexcept nogil:
    quantize_codes(x, n, row, False, False)

cdef void dequantize_row_q4_1(const uint8_t* row, int n, float* out) noexcept nogil:
    dequantize_codes(row, n, out, False, True)

cdef void quantize_row_q4_1(const float* x, int n, uint8_t* row) noexcept nogil:
    quantize_codes(x, n, row, False, True)

cdef void dequantize_row_q5_0(const uint8_t* row, int n, float* out) noexcept nogil:
    dequantize_codes(row, n, out, True, False)

cdef void quantize_row_q5_0(const float* x, int n, uint8_t* row) noexcept nogil:
    quantize_codes(x, n, row, True, False)

cdef void dequantize_row_q5_1(const uint8_t* row, int n, float* out) noexcept nogil:
    dequantize_codes(row, n, out, True, True)

cdef void quantize_row_q5_1(const float* x, int n, uint8_t* row) noexcept nogil:
    quantize_codes(x, n, row, True, True)


# ---- Q8_0 ----

cdef void dequantize_row_q8_0(const uint8_t* row, int n, float* out) noexcept nogil:
    cdef const int8_t* q
    cdef int _b, j
    cdef float d
    for _b in range(n):
        d, q = half_at(row), <const int8_t*>row + 2
        for j in range(32):
            out[j] = q[j] * d
        row += Q8_0_BYTES
        out += 32

cdef void quantize_row_q8_0(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef int _b, j
    cdef float d, inverse
    cdef uint16_t bits
    for _b in range(n):
        d = fabsf(signed_peak(x)) / 127
        inverse = reciprocal(d)
        bits = to_f16(d)
        memcpy(row, &bits, 2)
        for j in range(32):
            row[2 + j] = <uint8_t><int8_t>roundf(x[j] * inverse)
        row += Q8_0_BYTES
        x += 32


# ---- floats, and types of one rule each ----

cdef void dequantize_row_f32(const uint8_t* row, int n, float* out) noexcept nogil:
    memcpy(out, row, 4 * <size_t>n)

cdef void quantize_row_f32(const float* x, int n, uint8_t* row) noexcept nogil:
    memcpy(row, x, 4 * <size_t>n)


cdef void dequantize_row_f16(const uint8_t* row, int n, float* out) noexcept nogil:
    cdef int i
    for i in range(0, n - 15, 16):
        vf_store(out + i, vf_load_f16(row + 2 * i))
    for i in range(n // 16 * 16, n):
        out[i] = half_at(row + 2 * i)

cdef void quantize_row_f16(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef int i
    for i in range(0, n - 15, 16):
        vf_store_f16(row + 2 * i, vf_load(x + i))
    for i in range(n // 16 * 16, n):
        (<uint16_t*>row)[i] = to_f16(x[i])


cdef void dequantize_row_bf16(const uint8_t* row, int n, float* out) noexcept nogil:
    cdef uint32_t bits
    cdef int i
    for i in range(n):
        bits = u16_at(row + 2 * i) << 16
        memcpy(out + i, &bits, 4)

cdef void quantize_row_bf16(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef uint32_t bits
    cdef int i
    for i in range(n):
        memcpy(&bits, x + i, 4)
        if (bits & 0x7fffffff) > 0x7f800000:
            bits = (bits >> 16 << 16) | 0x400000       # a NaN stays one, quiet
        else:
            bits += 0x7fff + ((bits >> 16) & 1)
        (<uint16_t*>row)[i] = <uint16_t>(bits >> 16)


cdef void quantize_row_mxfp4(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef int _b, j
    cdef float peak, e, half_step
    for _b in range(n):
        peak = fabsf(signed_peak(x))
        e = floorf(log2f(peak)) + 125 if peak > 0 else 0
        row[0] = <uint8_t>((e if e < 254 else 254) if e > 0 else 0)
        half_step = ldexpf(1, row[0] - 128)
        for j in range(16):
            row[1 + j] = nearest_fp4(x[j], half_step) | nearest_fp4(x[j + 16], half_step) << 4
        x += 32
        row += MXFP4_BYTES

cdef inline uint8_t nearest_fp4(float x, float half_step) noexcept nogil:
    """the first of the 16 levels that is nearest"""
    cdef int i
    cdef uint8_t best = 0
    cdef float error, least_error = fabsf(half_step * FP4_LEVELS[0] - x)
    for i in range(1, 16):
        error = fabsf(half_step * FP4_LEVELS[i] - x)
        if error < least_error:
            best, least_error = <uint8_t>i, error
    return best


cdef inline float ternary(const float* x, uint8_t* q) noexcept nogil:
    """256 values as x ~ d (q - 1): d is the largest magnitude"""
    cdef int i
    cdef float d = fabsf(signed_peak(x, 256)), inverse = reciprocal(d), v
    for i in range(256):
        v = roundf(x[i] * inverse)
        q[i] = 2 if v > 0 else (0 if v < 0 else 1)
    return d

cdef inline uint8_t trits(const uint8_t* q, int n, int apart) noexcept nogil:
    """a byte of n digits to base 3, the first the highest, as kquants.pyx reads it"""
    cdef int i, number = 0
    for i in range(5):
        number = 3 * number + (q[i * apart] if i < n else 0)
    return <uint8_t>((256 * number + 242) // 243)

cdef void quantize_row_tq1_0(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef uint8_t q[256]
    cdef uint16_t d
    cdef int b, j
    for b in range(n):
        d = to_f16(ternary(x + 256 * b, q))
        for j in range(32):
            row[j] = trits(q + j, 5, 32)
        for j in range(16):
            row[32 + j] = trits(q + 160 + j, 5, 16)
        for j in range(4):
            row[48 + j] = trits(q + 240 + j, 4, 4)
        memcpy(row + 52, &d, 2)
        row += TQ1_0_BYTES

cdef void quantize_row_tq2_0(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef uint8_t q[256]
    cdef uint16_t d
    cdef int b, i, j
    for b in range(n):
        d = to_f16(ternary(x + 256 * b, q))
        for i in range(0, 64, 32):
            for j in range(i, i + 32):
                row[j] = q[3 * i + j] | q[3 * i + j + 32] << 2 | q[3 * i + j + 64] << 4 | q[3 * i + j + 96] << 6
        memcpy(row + 64, &d, 2)
        row += TQ2_0_BYTES


# ---- what the quantisers share ----

cdef inline float signed_peak(const float* x, int n=32) noexcept nogil:
    """the first of n values with the largest magnitude, sign kept"""
    cdef int j
    cdef float peak = x[0]
    for j in range(1, n):
        if fabsf(x[j]) > fabsf(peak):
            peak = x[j]
    return peak

cdef inline float reciprocal(float d) noexcept nogil:
    """1 / d, or 0 where that is infinite: d is zero, or smaller than any scale that f16 could hold"""
    cdef float inverse = 1 / d
    return inverse if fabsf(inverse) <= 3.4028234663852886e38 else 0

cdef inline float least(const float* x) noexcept nogil:
    cdef int j
    cdef float low = x[0]
    for j in range(32):
        low = x[j] if x[j] < low else low
    return low

cdef inline float most(const float* x) noexcept nogil:
    cdef int j
    cdef float high = x[0]
    for j in range(32):
        high = x[j] if x[j] > high else high
    return high

cdef inline uint8_t code(float x, float inverse, double offset, int limit) noexcept nogil:
    """trunc(x * inverse + offset), at most limit; in f64, where the product is exact whatever the compiler fuses"""
    cdef int q = <int>(<double>x * <double>inverse + offset)
    return <uint8_t>(limit if q > limit else (0 if q < 0 else q))

cdef inline uint8_t above(float x, float low, float inverse, int limit) noexcept nogil:
    """trunc((x - low) * inverse + 0.5), at most limit"""
    cdef float scaled = (x - low) * inverse
    cdef int q = <int>(<double>scaled + 0.5)
    return <uint8_t>(limit if q > limit else (0 if q < 0 else q))

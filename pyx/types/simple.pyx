"""Rows of floats and of the simple types (32 elements, one scale) to f32, and f32 to those that gguf.quants rounds, byte for
byte as it does; their row in the table of types says which."""

from libc.math cimport fabsf, floorf, ldexpf
from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from .blocks cimport block_q4_0, block_q4_1, block_q5_0, block_q5_1, block_q8_0
from .groups cimport FP4_LEVELS
from .sizes cimport MXFP4_BYTES, TQ1_0_BYTES, TQ2_0_BYTES
from ..simd.verbs cimport vf_load, vf_load_f16, vf_set1, vf_store, vf_store_f16

cdef extern from "<math.h>" nogil:
    float roundf(float)
    float log2f(float)


cdef inline float from_f16(uint16_t h) noexcept nogil:
    cdef uint16_t lanes[16]
    cdef float out[16]
    lanes[0] = h
    vf_store(out, vf_load_f16(lanes))
    return out[0]


cdef inline uint16_t to_f16(float x) noexcept nogil:
    cdef uint16_t lanes[16]
    vf_store_f16(lanes, vf_set1(x))
    return lanes[0]


cdef inline uint16_t half(const uint8_t* row, int i) noexcept nogil:
    """16 bits of a row, which may begin at any address: in safetensors files, at an odd one"""
    cdef uint16_t h
    memcpy(&h, row + 2 * i, 2)
    return h


cdef inline uint32_t word(const uint8_t* p) noexcept nogil:
    cdef uint32_t w
    memcpy(&w, p, 4)
    return w


# ---- one section per type: x = d * q + m ----

cdef void dequantize_row_q4_0(const uint8_t* row, int n, float* out) noexcept nogil:
    cdef const block_q4_0* x = <const block_q4_0*>row
    cdef int b, j
    cdef float d
    for b in range(n):
        d = from_f16(x[b].d)
        for j in range(16):
            out[32 * b + j] = ((x[b].qs[j] & 15) - 8) * d
            out[32 * b + j + 16] = ((x[b].qs[j] >> 4) - 8) * d

cdef void quantize_row_q4_0(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef block_q4_0* y = <block_q4_0*>row
    cdef int b, j
    cdef float peak, d, inverse
    for b in range(n):
        peak = signed_peak(x + 32 * b)
        d = peak / -8
        inverse = reciprocal(d)
        y[b].d = to_f16(d)
        for j in range(16):
            y[b].qs[j] = code(x[32 * b + j], inverse, 8.5, 15) | code(x[32 * b + j + 16], inverse, 8.5, 15) << 4


cdef void dequantize_row_q4_1(const uint8_t* row, int n, float* out) noexcept nogil:
    cdef const block_q4_1* x = <const block_q4_1*>row
    cdef int b, j
    cdef float d, m
    for b in range(n):
        d, m = from_f16(x[b].d), from_f16(x[b].m)
        for j in range(16):
            out[32 * b + j] = <float>((x[b].qs[j] & 15) * d) + m
            out[32 * b + j + 16] = <float>((x[b].qs[j] >> 4) * d) + m

cdef void quantize_row_q4_1(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef block_q4_1* y = <block_q4_1*>row
    cdef int b, j
    cdef float low, d, inverse
    for b in range(n):
        low = least(x + 32 * b)
        d = (most(x + 32 * b) - low) / 15
        inverse = reciprocal(d)
        y[b].d, y[b].m = to_f16(d), to_f16(low)
        for j in range(16):
            y[b].qs[j] = above(x[32 * b + j], low, inverse, 15) | above(x[32 * b + j + 16], low, inverse, 15) << 4


cdef void dequantize_row_q5_0(const uint8_t* row, int n, float* out) noexcept nogil:
    cdef const block_q5_0* x = <const block_q5_0*>row
    cdef int b, j
    cdef float d
    cdef uint32_t high
    for b in range(n):
        d, high = from_f16(x[b].d), word(x[b].qh)
        for j in range(16):
            out[32 * b + j] = (<int>((x[b].qs[j] & 15) | ((high >> j) & 1) << 4) - 16) * d
            out[32 * b + j + 16] = (<int>((x[b].qs[j] >> 4) | ((high >> (j + 16)) & 1) << 4) - 16) * d

cdef void quantize_row_q5_0(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef block_q5_0* y = <block_q5_0*>row
    cdef int b, j
    cdef float d, inverse
    cdef uint32_t high, lo, hi
    for b in range(n):
        d = signed_peak(x + 32 * b) / -16
        inverse = reciprocal(d)
        y[b].d, high = to_f16(d), 0
        for j in range(16):
            lo, hi = code(x[32 * b + j], inverse, 16.5, 31), code(x[32 * b + j + 16], inverse, 16.5, 31)
            y[b].qs[j] = <uint8_t>((lo & 15) | (hi & 15) << 4)
            high |= (lo >> 4) << j | (hi >> 4) << (j + 16)
        memcpy(y[b].qh, &high, 4)


cdef void dequantize_row_q5_1(const uint8_t* row, int n, float* out) noexcept nogil:
    cdef const block_q5_1* x = <const block_q5_1*>row
    cdef int b, j
    cdef float d, m
    cdef uint32_t high
    for b in range(n):
        d, m, high = from_f16(x[b].d), from_f16(x[b].m), word(x[b].qh)
        for j in range(16):
            out[32 * b + j] = <float>(<int>((x[b].qs[j] & 15) | ((high >> j) & 1) << 4) * d) + m
            out[32 * b + j + 16] = <float>(<int>((x[b].qs[j] >> 4) | ((high >> (j + 16)) & 1) << 4) * d) + m

cdef void quantize_row_q5_1(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef block_q5_1* y = <block_q5_1*>row
    cdef int b, j
    cdef float low, d, inverse
    cdef uint32_t high, lo, hi
    for b in range(n):
        low = least(x + 32 * b)
        d = (most(x + 32 * b) - low) / 31
        inverse = reciprocal(d)
        y[b].d, y[b].m, high = to_f16(d), to_f16(low), 0
        for j in range(16):
            lo, hi = above(x[32 * b + j], low, inverse, 31), above(x[32 * b + j + 16], low, inverse, 31)
            y[b].qs[j] = <uint8_t>((lo & 15) | (hi & 15) << 4)
            high |= (lo >> 4) << j | (hi >> 4) << (j + 16)
        memcpy(y[b].qh, &high, 4)


cdef void dequantize_row_q8_0(const uint8_t* row, int n, float* out) noexcept nogil:
    cdef const block_q8_0* x = <const block_q8_0*>row
    cdef int b, j
    cdef float d
    for b in range(n):
        d = from_f16(x[b].d)
        for j in range(32):
            out[32 * b + j] = x[b].qs[j] * d

cdef void quantize_row_q8_0(const float* x, int n, uint8_t* row) noexcept nogil:
    cdef block_q8_0* y = <block_q8_0*>row
    cdef int b, j
    cdef float d, inverse
    for b in range(n):
        d = fabsf(signed_peak(x + 32 * b)) / 127
        inverse = reciprocal(d)
        y[b].d = to_f16(d)
        for j in range(32):
            y[b].qs[j] = <int8_t>roundf(x[32 * b + j] * inverse)


cdef void dequantize_row_f32(const uint8_t* row, int n, float* out) noexcept nogil:
    memcpy(out, row, 4 * <size_t>n)

cdef void quantize_row_f32(const float* x, int n, uint8_t* row) noexcept nogil:
    memcpy(row, x, 4 * <size_t>n)


cdef void dequantize_row_f16(const uint8_t* row, int n, float* out) noexcept nogil:
    cdef int i
    for i in range(0, n - 15, 16):
        vf_store(out + i, vf_load_f16(row + 2 * i))
    for i in range(n // 16 * 16, n):
        out[i] = from_f16(half(row, i))

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
        bits = <uint32_t>half(row, i) << 16
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

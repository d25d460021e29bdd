"""Rows of quantised blocks to f32 and back, byte for byte as GGUF files hold them (source: gguf.quants)."""

from cython.parallel cimport prange
from libc.math cimport fabsf, floorf, ldexpf
from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from .blocks cimport block_q4_0, block_q4_1, block_q5_0, block_q5_1, block_q8_0
from .iquants cimport (
    dequantize_row_iq1_m, dequantize_row_iq1_s, dequantize_row_iq2_s, dequantize_row_iq2_xs, dequantize_row_iq2_xxs,
    dequantize_row_iq3_s, dequantize_row_iq3_xxs,
)
from .kquantize cimport (
    search_row_iq4_nl, search_row_iq4_xs, search_row_q2_k, search_row_q3_k, search_row_q4_0, search_row_q4_1,
    search_row_q4_k, search_row_q5_0, search_row_q5_1, search_row_q5_k, search_row_q6_k,
)
from .kquants cimport (
    FP4_LEVELS, dequantize_row_iq4_nl, dequantize_row_iq4_xs, dequantize_row_mxfp4, dequantize_row_q2_k,
    dequantize_row_q3_k, dequantize_row_q4_k, dequantize_row_q5_k, dequantize_row_q6_k, dequantize_row_q8_k,
    dequantize_row_tq1_0, dequantize_row_tq2_0,
)
from ..simd.verbs cimport vf_load, vf_load_f16, vf_set1, vf_store, vf_store_f16

import numpy as np

from llamacy.kernels.threads import check_threads

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
        out[i] = from_f16((<const uint16_t*>row)[i])

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
        bits = <uint32_t>(<const uint16_t*>row)[i] << 16
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
        row += 17

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
        row += 54

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
        row += 66


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


cdef enum:
    N_TYPES = 26

cdef RowType ROW_TYPES[N_TYPES]
ROW_TYPES[0] = RowType(0, 1, 4, dequantize_row_f32, quantize_row_f32, NULL)
ROW_TYPES[1] = RowType(1, 1, 2, dequantize_row_f16, quantize_row_f16, NULL)
ROW_TYPES[2] = RowType(2, 32, 18, dequantize_row_q4_0, quantize_row_q4_0, search_row_q4_0)
ROW_TYPES[3] = RowType(3, 32, 20, dequantize_row_q4_1, quantize_row_q4_1, search_row_q4_1)
ROW_TYPES[4] = RowType(6, 32, 22, dequantize_row_q5_0, quantize_row_q5_0, search_row_q5_0)
ROW_TYPES[5] = RowType(7, 32, 24, dequantize_row_q5_1, quantize_row_q5_1, search_row_q5_1)
ROW_TYPES[6] = RowType(8, 32, 34, dequantize_row_q8_0, quantize_row_q8_0, NULL)
ROW_TYPES[7] = RowType(30, 1, 2, dequantize_row_bf16, quantize_row_bf16, NULL)
# Types with more than one level of scales: groups of 32 in kquants.pyx
ROW_TYPES[8] = RowType(10, 256, 84, dequantize_row_q2_k, NULL, search_row_q2_k)
ROW_TYPES[9] = RowType(11, 256, 110, dequantize_row_q3_k, NULL, search_row_q3_k)
ROW_TYPES[10] = RowType(12, 256, 144, dequantize_row_q4_k, NULL, search_row_q4_k)
ROW_TYPES[11] = RowType(13, 256, 176, dequantize_row_q5_k, NULL, search_row_q5_k)
ROW_TYPES[12] = RowType(14, 256, 210, dequantize_row_q6_k, NULL, search_row_q6_k)
ROW_TYPES[13] = RowType(20, 32, 18, dequantize_row_iq4_nl, NULL, search_row_iq4_nl)
ROW_TYPES[14] = RowType(23, 256, 136, dequantize_row_iq4_xs, NULL, search_row_iq4_xs)
ROW_TYPES[15] = RowType(39, 32, 17, dequantize_row_mxfp4, quantize_row_mxfp4, NULL)
# Read only
ROW_TYPES[16] = RowType(15, 256, 292, dequantize_row_q8_k, NULL, NULL)
ROW_TYPES[17] = RowType(34, 256, 54, dequantize_row_tq1_0, quantize_row_tq1_0, NULL)
ROW_TYPES[18] = RowType(35, 256, 66, dequantize_row_tq2_0, quantize_row_tq2_0, NULL)
ROW_TYPES[19] = RowType(16, 256, 66, dequantize_row_iq2_xxs, NULL, NULL)
ROW_TYPES[20] = RowType(17, 256, 74, dequantize_row_iq2_xs, NULL, NULL)
ROW_TYPES[21] = RowType(22, 256, 82, dequantize_row_iq2_s, NULL, NULL)
ROW_TYPES[22] = RowType(18, 256, 98, dequantize_row_iq3_xxs, NULL, NULL)
ROW_TYPES[23] = RowType(21, 256, 110, dequantize_row_iq3_s, NULL, NULL)
ROW_TYPES[24] = RowType(19, 256, 50, dequantize_row_iq1_s, NULL, NULL)
ROW_TYPES[25] = RowType(29, 256, 56, dequantize_row_iq1_m, NULL, NULL)


cdef const RowType* row_type(int number) noexcept nogil:
    """The table's row for GGUF type `number`, or NULL."""
    cdef int i
    for i in range(N_TYPES):
        if ROW_TYPES[i].number == number:
            return &ROW_TYPES[i]
    return NULL


cdef const RowType* checked(int number, size_t n_cols) except NULL:
    cdef const RowType* kind = row_type(number)
    if kind == NULL:
        raise ValueError(f"type {number} is not known here")
    if n_cols % kind.block:
        raise ValueError(f"rows of {n_cols} elements do not divide into blocks of {kind.block}")
    return kind


def types():
    """Return the GGUF numbers of the types known here."""
    return [ROW_TYPES[i].number for i in range(N_TYPES)]


def dequantize(const uint8_t[:, ::1] rows, int number, int n_threads=1):
    """Rows of blocks, uint8 (n, row bytes), of GGUF type `number` -> f32 (n, n_cols)."""
    cdef const RowType* kind = checked(number, 0)
    cdef int n_blocks = <int>(rows.shape[1] // kind.block_bytes)
    cdef float[:, ::1] out = np.empty((rows.shape[0], n_blocks * kind.block), np.float32)
    cdef Py_ssize_t r
    if rows.shape[1] % kind.block_bytes:
        raise ValueError(f"rows of {rows.shape[1]} bytes do not divide into blocks of {kind.block_bytes}")
    check_threads(n_threads)
    if rows.shape[0] and n_blocks:
        for r in prange(rows.shape[0], num_threads=n_threads, schedule="static", nogil=True):
            kind.dequantize(&rows[r, 0], n_blocks, &out[r, 0])
    return np.asarray(out)


def writable():
    """Return the GGUF numbers of the types that rows can be quantised to."""
    return [ROW_TYPES[i].number for i in range(N_TYPES) if ROW_TYPES[i].quantize != NULL or ROW_TYPES[i].search != NULL]


def quantize(const float[:, ::1] x, int number, int n_threads=1, const float[::1] importance=None):
    """x f32 (n, n_cols) -> rows of blocks of GGUF type `number`, uint8 (n, row bytes).

    importance: f32 (n_cols,), not negative: what a squared error in each column costs; without it types that gguf.quants
    can write are rounded bit for bit as it does. Types that are only rounded take no notice.
    """
    cdef const RowType* kind = checked(number, x.shape[1])
    cdef int n_blocks = <int>(x.shape[1] // kind.block)
    cdef uint8_t[:, ::1] out = np.empty((x.shape[0], n_blocks * kind.block_bytes), np.uint8)
    cdef const float* costs = NULL
    cdef Py_ssize_t r
    if kind.quantize == NULL and kind.search == NULL:
        raise ValueError(f"type {number} can be read, not written")
    if importance is not None and importance.shape[0] != x.shape[1]:
        raise ValueError(f"importance of {importance.shape[0]} columns for rows of {x.shape[1]}")
    if importance is not None and kind.search != NULL and n_blocks:
        costs = &importance[0]
    check_threads(n_threads)
    if x.shape[0] and n_blocks:
        for r in prange(x.shape[0], num_threads=n_threads, schedule="static", nogil=True):
            if costs != NULL or kind.quantize == NULL:
                kind.search(&x[r, 0], costs, n_blocks, &out[r, 0])
            else:
                kind.quantize(&x[r, 0], n_blocks, &out[r, 0])
    return np.asarray(out)

"""What 8-bit inputs set aside (inputs.pyx), multiplied in f32: a column of W times one number, for a few columns of hundreds.

For many tokens each column that they meet is widened once per strip of weights; for few it is looked up in the tiles. Both
add block after block, outlier after outlier, so that their results are equal bit for bit.
"""

from libc.stdint cimport int16_t, uint8_t, uint64_t
from libc.string cimport memset

from .inputs cimport Outliers, eight_bits, lowest_bit
from ..simd.verbs cimport (
    vf, vf_fma1, vf_load, vf_mul, vf_set1, vf_store, vf_sub, vi, vi_add, vi_bits, vi_byte, vi_nibbles, vi_to_f,
)
from .tiles cimport quad_scale


cdef void find_columns(const Acts* x, int b, int n, int t0, int t1, Columns* c) noexcept nogil:
    """The outliers of tokens t0..t1 in blocks b..b + n"""
    cdef int16_t number[32 * U8_BLOCKS]
    cdef const uint8_t* bits
    cdef const Outliers* out
    cdef uint64_t left
    cdef int t, i, j, k, bit, entries = 0
    memset(number, 0xff, sizeof(number))
    c.n = 0
    for t in range(t0, t1):
        bits, out = x.outlier_bits + t * <size_t>x.n_blocks + b, x.outliers + t * <size_t>x.n_blocks + b
        for i in range(0, n, 8):
            left = eight_bits(bits + i, n - i)
            while left:
                bit = lowest_bit(left)
                left &= left - 1
                j = i + (bit >> 3)
                k = 32 * j + out[j].k[bit & 7]
                if number[k] < 0:
                    number[k], c.column[c.n] = <int16_t>c.n, <int16_t>k
                    c.n += 1
                c.which[entries], c.value[entries] = number[k], out[j].value[bit & 7]
                entries += 1
        c.end[t - t0] = entries


cdef void add_columns(const uint8_t* q, const float* d, const Columns* c, int n_tokens, float* w,
                      float* y, size_t ldy) noexcept nogil:
    """y += the panel's products with the outliers; q: its codes, with signs or below 128; w: room for c.n columns [16]"""
    cdef int i, k, t, e = 0
    cdef vf acc
    for i in range(c.n):
        k = c.column[i]
        vf_store(w + 16 * i, vf_mul(vf_load(d + 16 * (k >> 5)), vi_to_f(vi_byte(q + 64 * (k >> 2), k & 3))))
    for t in range(n_tokens):
        if e < c.end[t]:
            acc = vf_load(y)
            while e < c.end[t]:
                acc = vf_fma1(vf_load(w + 16 * c.which[e]), c.value[e], acc)
                e += 1
            vf_store(y, acc)
        y += ldy


cdef inline vf nibbles_column(const uint8_t* tile, bint fifth, size_t k) noexcept nogil:
    """16 rows' codes of column k"""
    cdef vi code = vi_nibbles(tile + 32 * (k >> 2), <int>k & 3)
    if fifth:
        code = vi_add(code, vi_bits(tile + 256, <int>(8 * (k & 3) + (k >> 2)), 1, 4))
    return vi_to_f(code)


cdef void nibbles_outliers(const uint8_t* tile, int b, int end, const Acts* x, size_t t, float* y,
                           bint fifth, int offset, size_t tile_bytes, bint wide) noexcept nogil:
    """y[16] += blocks b .. end, their codes less `offset`, times input t's outliers. A call: inlined, its loop would spill the caller's."""
    cdef const uint8_t* bits = x.outlier_bits + t * x.n_blocks + b
    cdef const Outliers* out = x.outliers + t * x.n_blocks + b
    cdef uint64_t left
    cdef size_t i, j
    cdef vf column, acc = vf_load(y), less = vf_set1(<float>offset)
    while b < end:
        left = eight_bits(bits, end - b)
        while left:
            i, j = <size_t>lowest_bit(left) >> 3, <size_t>lowest_bit(left) & 7
            left &= left - 1
            column = vf_sub(nibbles_column(tile + i * tile_bytes, fifth, out[i].k[j]), less)
            acc = vf_fma1(vf_mul(quad_scale(tile + i * tile_bytes, fifth, wide), column), out[i].value[j], acc)
        b, bits, out, tile = b + 8, bits + 8, out + 8, tile + 8 * tile_bytes
    vf_store(y, acc)
